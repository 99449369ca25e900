"""R2D2's update, against a player that goes step by step and plain loops in float64."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from onibi.learners.exploration import ExplorationSettings
from onibi.learners.networks.core_settings import STATE_COLUMN, CoreSettings
from onibi.learners.networks.mlp import MlpSettings
from onibi.learners.r2d2 import R2d2Learner
from onibi.learners.r2d2_settings import R2d2Settings
from onibi.learners.support import SupportSettings
from onibi.learners.target_network import TargetSettings
from onibi.learners.value_losses import BINNED_LOSSES, DISTRIBUTION_LOSSES
from onibi.platform.spec import ArraySpec, ReplaySpec

LENGTH, BURN_IN, BATCH, DISCOUNT = 6, 3, 7, 0.9
SUPPORT = SupportSettings(low=-20.0, high=20.0, bins=41, spacing="symlog")


def settings_of(loss="mse", **others):
    support = {"support": SUPPORT} if loss in BINNED_LOSSES else {}
    given = {
        "value_loss": loss,
        "discount": DISCOUNT,
        "n_steps": 2,
        "length": LENGTH,
        "burn_in": BURN_IN,
        "period": 3,
        "batch_size": BATCH,
        "core": CoreSettings(size=5),
        "network": MlpSettings(hidden=(8,)),
        **support,
    }
    return R2d2Settings(**given | others)


@pytest.fixture
def make_sequences(make_batch):
    """Sequences with burn-ins and ends of all lengths, some terminated, padding behind them."""

    def make(spec, settings, rng):
        batch = make_batch(spec, R2d2Learner.needs(settings), rng)
        time = np.arange(LENGTH + BURN_IN)[:, None]
        batch.burn_in[:] = rng.integers(BURN_IN + 1, size=BATCH)
        batch.steps[:] = batch.burn_in + rng.integers(1, LENGTH + 1, size=BATCH)
        batch.steps[0] = batch.burn_in[0] + LENGTH
        batch.used[:] = time < batch.steps
        batch.learning_mask[:] = batch.used & (time >= batch.burn_in)
        batch.reward[~batch.used] = 0.0
        terminated = rng.random(BATCH) < 0.5
        batch.continues[batch.steps[terminated] - 1, np.flatnonzero(terminated)] = 0.0
        if STATE_COLUMN in batch.first_extra:
            batch.first_extra[STATE_COLUMN][:, -1] = rng.integers(spec.actions + 1, size=BATCH)
        for leaf in batch.observation.values():
            leaf[:] = leaf[np.minimum(np.arange(len(leaf))[:, None], batch.steps), np.arange(BATCH)]
        return batch

    return make


def learner_of(spec, settings, spread=0.8):
    """A learner whose network and target are far from their start, and apart."""
    learner = R2d2Learner(settings, spec, None, 0, "cpu")
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for network in (learner._network, learner._target):
            for parameter in network.parameters():
                parameter.add_(torch.randn(parameter.shape, generator=generator) * spread)
    return learner


def evaluated(learner, batch, reward):
    """Loss of one update and what it was made of, without making it."""
    loss, learnt = learner._losses(learner._inputs(batch, reward))
    learner.copies.learned()
    return loss.detach(), learnt


@torch.no_grad()
def played(network, batch, b):
    """Values [steps + 1, A] of sequence b by single steps from the state it starts from."""
    state = torch.from_numpy(batch.first_extra[STATE_COLUMN][b : b + 1])
    previous, state = state[:, -1].long(), state[:, : network.core.state_size]
    found = []
    for t in range(batch.steps[b] + 1):
        observation = {name: torch.from_numpy(leaf[t, b : b + 1]) for name, leaf in batch.observation.items()}
        values, state = network.step(observation, previous, state)
        if t < batch.steps[b]:
            previous = torch.from_numpy(batch.action[t, b : b + 1]) + 1
        found.append(values[0].double().numpy())
    return np.array(found)


def expected_target(learner, batch, reward, b, t):
    """The n-step double-Q target of row t of sequence b."""
    settings = learner.settings
    own, target = played(learner._network, batch, b), played(learner._target, batch, b)
    end = min(t + settings.n_steps, batch.steps[b])
    total = sum(DISCOUNT ** (k - t) * float(reward[k, b]) for k in range(t, end))
    if batch.continues[end - 1, b]:
        chooser = own if settings.double else target
        total += DISCOUNT ** (end - t) * target[end, chooser[end].argmax()]
    return total


@pytest.mark.parametrize("cell", ["lstm", "gru"])
@pytest.mark.parametrize("double", [True, False])
@pytest.mark.parametrize("loss", ["mse", "hl_gauss"])
def test_predictions_and_targets_are_those_of_a_player_that_goes_step_by_step(
    specs, make_sequences, cell, double, loss
):
    settings = settings_of(loss, double=double, core=CoreSettings(cell=cell, size=5))
    learner = learner_of(specs["mixed"], settings)
    batch = make_sequences(specs["mixed"], settings, np.random.default_rng(0))
    reward = batch.reward + 0.5
    _, learnt = evaluated(learner, batch, reward)
    target = learnt.target.view(LENGTH, BATCH)
    prediction = learner.value_head.decode(learnt.prediction).view(LENGTH, BATCH)
    checked = 0
    for b in range(BATCH):
        own = played(learner._network, batch, b)
        for t in range(batch.burn_in[b], batch.steps[b]):
            at = t - batch.burn_in[b]
            assert prediction[at, b].item() == pytest.approx(own[t, batch.action[t, b]], abs=1e-4)
            assert target[at, b].item() == pytest.approx(expected_target(learner, batch, reward, b, t), abs=1e-4)
            checked += 1
    assert checked == batch.learning_mask.sum() > 20
    assert learnt.learned.sum() == checked


def test_the_loss_is_the_weighted_mean_over_the_rows_to_learn_from(specs, make_sequences):
    learner = learner_of(specs["flat"], settings_of())
    batch = make_sequences(specs["flat"], learner.settings, np.random.default_rng(0))
    batch.weight[:] = np.linspace(0.1, 1.0, BATCH)
    loss, _ = evaluated(learner, batch, batch.reward)
    total = 0.0
    for b in range(BATCH):
        own = played(learner._network, batch, b)
        for t in range(batch.burn_in[b], batch.steps[b]):
            error = expected_target(learner, batch, batch.reward, b, t) - own[t, batch.action[t, b]]
            total += batch.weight[b] * error**2 / 2
    assert loss.item() == pytest.approx(total / batch.learning_mask.sum(), rel=1e-4)


def test_the_priority_is_made_of_the_errors_of_the_rows_to_learn_from(specs, make_sequences):
    still = TargetSettings(rate=1.0, period_updates=100)
    settings = settings_of(learning_rate=0.0, priority_largest_share=0.9, target=still)
    learner = learner_of(specs["flat"], settings)
    batch = make_sequences(specs["flat"], settings, np.random.default_rng(0))
    priorities = learner.update(batch, batch.reward).priorities
    assert priorities.dtype == np.float32
    for b in range(BATCH):
        own = played(learner._network, batch, b)
        errors = [
            abs(expected_target(learner, batch, batch.reward, b, t) - own[t, batch.action[t, b]])
            for t in range(batch.burn_in[b], batch.steps[b])
        ]
        assert priorities[b] == pytest.approx(0.9 * max(errors) + 0.1 * np.mean(errors), rel=1e-3, abs=1e-4)


def test_without_prioritized_draws_no_priorities_are_told(specs, make_sequences):
    learner = learner_of(specs["flat"], settings_of(priorities=None))
    batch = make_sequences(specs["flat"], learner.settings, np.random.default_rng(0))
    assert learner.update(batch, batch.reward).priorities is None


# --- targets at the borders, by hand: Q is 8 for every observation, 4 for the target's other action ---

CONSTANT = ReplaySpec(observation=(ArraySpec(name="observation", dtype="float32", shape=(1,)),), actions=2)


def constant_learner(loss="mse", own=(3.0, 1.0), target=(8.0, 4.0), **others):
    settings = settings_of(loss, dueling=False, discount=0.5, n_steps=2, **others)
    learner = R2d2Learner(settings, CONSTANT, None, 0, "cpu")
    with torch.no_grad():
        for network, values in ((learner._network, own), (learner._target, target)):
            for parameter in network.parameters():
                parameter.zero_()
            network.head.advantage.bias.copy_(torch.tensor(values))
    return learner


def one_sequence(make_sequences, learner, *, burn_in, steps, terminated):
    batch = make_sequences(CONSTANT, learner.settings, np.random.default_rng(0))
    batch = dataclasses.replace(batch)
    batch.burn_in[:], batch.steps[:] = burn_in, burn_in + steps
    time = np.arange(LENGTH + BURN_IN)[:, None]
    batch.used[:] = time < batch.steps
    batch.learning_mask[:] = batch.used & (time >= burn_in)
    batch.continues[:] = 1.0
    if terminated:
        batch.continues[burn_in + steps - 1] = 0.0
    reward = np.full((LENGTH + BURN_IN, BATCH), 777.0, np.float32)  # of burn-in and padding: must not count
    reward[burn_in : burn_in + steps] = np.array([1.0, 2.0, 4.0, 8.0, 16.0, 32.0])[:steps, None]
    return batch, reward


@pytest.mark.parametrize("burn_in", [0, 1, BURN_IN])
@pytest.mark.parametrize(
    ("steps", "terminated", "expected"),
    [
        # Inside: r + ½r′ + ¼·8. The last window has one step: r + ½·8.
        (6, False, [1 + 1 + 2, 2 + 2 + 2, 4 + 4 + 2, 8 + 8 + 2, 16 + 16 + 2, 32 + 4]),
        (6, True, [1 + 1 + 2, 2 + 2 + 2, 4 + 4 + 2, 8 + 8 + 2, 16 + 16, 32]),
        (3, False, [1 + 1 + 2, 2 + 2 + 2, 4 + 4]),  # truncated, or rows are yet to come
        (3, True, [1 + 1 + 2, 2 + 2, 4]),
        (1, False, [1 + 4]),
        (1, True, [1]),
    ],
)
def test_targets_at_the_borders_of_a_sequence(make_sequences, burn_in, steps, terminated, expected):
    learner = constant_learner()
    batch, reward = one_sequence(make_sequences, learner, burn_in=burn_in, steps=steps, terminated=terminated)
    _, learnt = evaluated(learner, batch, reward)
    assert learnt.target.view(LENGTH, BATCH)[:steps, 0].tolist() == expected
    assert learnt.learned.view(LENGTH, BATCH)[:, 0].tolist() == [True] * steps + [False] * (LENGTH - steps)


def test_double_takes_the_networks_action_and_the_targets_value(make_sequences):
    for own, double, value in (((1.0, 3.0), True, 4.0), ((3.0, 1.0), True, 8.0), ((1.0, 3.0), False, 8.0)):
        learner = constant_learner(own=own, double=double)
        batch, reward = one_sequence(make_sequences, learner, burn_in=0, steps=1, terminated=False)
        assert evaluated(learner, batch, reward)[1].target[0].item() == 1 + value / 2


def test_with_a_temperature_the_bootstrap_is_the_softmax_policys(make_sequences):
    softmax = ExplorationSettings(temperature=float(1 / np.log(3)))  # exp(Q/τ) = 3^Q
    learner = constant_learner(own=(2.0, 1.0), exploration=softmax)  # odds of 3 to 1
    batch, reward = one_sequence(make_sequences, learner, burn_in=0, steps=1, terminated=False)
    assert evaluated(learner, batch, reward)[1].target[0].item() == pytest.approx(1 + (0.75 * 8 + 0.25 * 4) / 2)


def test_value_rescaling_is_taken_off_before_the_return_and_put_on_behind_it(make_sequences):
    def h(x):
        return np.sign(x) * (np.sqrt(abs(x) + 1) - 1) + 1e-3 * x

    learner = constant_learner(target=(float(h(8.0)), 0.0), value_rescaling=1e-3)
    batch, reward = one_sequence(make_sequences, learner, burn_in=0, steps=2, terminated=False)
    target = evaluated(learner, batch, reward)[1].target.view(LENGTH, BATCH)
    assert target[:2, 0].tolist() == pytest.approx([h(1 + 1 + 2), h(2 + 4)], rel=1e-5)
    # without: the numbers of the network are values themselves
    assert constant_learner().settings.value_rescaling is None


# --- the state that a sequence starts from ---


def test_the_stored_state_matters_and_a_zero_start_ignores_it(specs, make_sequences):
    spec = specs["flat"]
    stored, zero = settings_of(), settings_of(state="zero")
    batch = make_sequences(spec, stored, np.random.default_rng(0))
    other_state = batch.first_extra[STATE_COLUMN] + np.where(np.arange(11) < 10, 1.0, 0.0).astype(np.float32)
    other = dataclasses.replace(batch, first_extra={STATE_COLUMN: other_state})
    found = {
        settings.state: [
            evaluated(learner_of(spec, settings), each, each.reward)[1].prediction for each in (batch, other)
        ]
        for settings in (stored, zero)
    }
    assert not torch.allclose(*found["stored"], atol=1e-3)
    without = dataclasses.replace(batch, first_extra={})
    unread = evaluated(learner_of(spec, zero), without, without.reward)[1].prediction
    assert torch.equal(found["zero"][0], unread)


def test_states_are_kept_where_sequences_can_begin_and_only_if_they_are_stored():
    stored, zero = R2d2Learner.needs(settings_of()), R2d2Learner.needs(settings_of(state="zero"))
    assert stored.draws.first_row_columns == (STATE_COLUMN,)
    assert [(state.name, state.shape) for state in stored.states] == [(STATE_COLUMN, (11,))]
    alone = R2d2Learner.needs(settings_of(previous_action=False))
    assert alone.states[0].shape == (10,)
    assert (zero.draws.first_row_columns, zero.states) == ((), ())
    for period, burn_in, kept in ((40, 40, 40), (40, 0, 40), (40, 20, 20), (4, 6, 2), (3, 4, 1)):
        needs = R2d2Learner.needs(settings_of(length=80, period=period, burn_in=burn_in))
        assert needs.states[0].period == kept
    assert (stored.draws.length, stored.draws.burn_in, stored.draws.period) == (LENGTH, BURN_IN, 3)


def test_no_gradient_flows_into_the_burn_in(specs, make_sequences):
    """Observations of the burn-in change the loss, but no parameter's gradient sees how."""
    settings = settings_of(n_steps=1)
    learner = learner_of(specs["flat"], settings)
    batch = make_sequences(specs["flat"], settings, np.random.default_rng(0))
    inputs = learner._inputs(batch, batch.reward)
    leaf = inputs["observation"]["observation"].clone().requires_grad_()
    inputs["observation"]["observation"] = leaf
    loss, _ = learner._losses(inputs)
    loss.backward()
    reached = leaf.grad.abs().sum(dim=2) > 0
    time = np.arange(LENGTH + BURN_IN + 1)[:, None]
    assert not reached.numpy()[time < batch.burn_in].any()
    # the last row's observation is read by its own prediction, what follows it by the target alone
    assert (reached.numpy() == (time >= batch.burn_in) & (time < batch.steps)).all()
    moved = dataclasses.replace(batch, observation={"observation": batch.observation["observation"].copy()})
    moved.observation["observation"][:BURN_IN][(time < batch.burn_in)[:BURN_IN]] += 1.0
    assert evaluated(learner, moved, batch.reward)[0].item() != pytest.approx(loss.item(), rel=1e-3)


def test_the_previous_action_is_read_from_the_state_first_and_from_the_row_before_then(specs, make_sequences):
    """Rewards and errors of a row depend on the actions before it, its own and no later one."""
    settings = settings_of(n_steps=1)
    learner = learner_of(specs["flat"], settings)
    batch = make_sequences(specs["flat"], settings, np.random.default_rng(0))
    inputs = learner._inputs(batch, batch.reward)
    previous = learner._previous(inputs)
    assert previous[0].tolist() == batch.first_extra[STATE_COLUMN][:, -1].astype(int).tolist()
    assert previous[1:][torch.from_numpy(batch.used)].tolist() == (batch.action[batch.used] + 1).tolist()
    blind = learner_of(specs["flat"], settings_of(n_steps=1, previous_action=False))
    other = dataclasses.replace(batch, action=(batch.action + 1) % 3)
    for each, changes in ((learner, True), (blind, False)):
        before, after = (evaluated(each, one, one.reward)[1].outputs for one in (batch, other))
        assert torch.equal(before, after) != changes


# --- what must not count ---


def test_padding_teaches_nothing(specs, make_sequences):
    states = []
    for filling in (0.0, 123.0):
        learner = learner_of(specs["flat"], settings_of())
        batch = make_sequences(specs["flat"], learner.settings, np.random.default_rng(0))
        reward = np.where(batch.used, batch.reward, filling).astype(np.float32)
        batch.action[~batch.used] = 2 if filling else 0
        learner.update(batch, reward)
        states.append(learner.state_dict())
    assert [name for name in states[0] if not torch.equal(states[0][name], states[1][name])] == []


def test_sequences_of_weight_zero_do_not_teach(specs, make_sequences):
    states = []
    for value in (0.1, 0.9):
        learner = learner_of(specs["flat"], settings_of())
        batch = make_sequences(specs["flat"], learner.settings, np.random.default_rng(0))
        batch.weight[3:] = 0.0
        reward = batch.reward.copy()
        reward[:, 3:] = value
        learner.update(batch, reward)
        states.append(learner.state_dict())
    assert [name for name in states[0] if not torch.equal(states[0][name], states[1][name])] == []


@pytest.mark.parametrize("loss", ["mse", "huber", "two_hot", "hl_gauss", *sorted(DISTRIBUTION_LOSSES)])
def test_every_value_loss_learns_the_constant_reward_of_a_one_step_game(specs, make_sequences, loss):
    support = {"support": SupportSettings(low=-1.0, high=2.0, bins=21)} if loss in BINNED_LOSSES else {}
    settings = settings_of(loss, learning_rate=3e-2, core=CoreSettings(size=16), **support)
    learner = R2d2Learner(settings, specs["flat"], None, 0, "cpu")
    for seed in range(80):
        batch = make_sequences(specs["flat"], settings, np.random.default_rng(seed))
        batch.continues[:] = np.where(batch.used, 0.0, 1.0)
        update = learner.update(batch, np.where(batch.used, 0.7, 0.0).astype(np.float32))
        assert (update.priorities > 0).all()
    _, learnt = evaluated(learner, batch, np.where(batch.used, 0.7, 0.0).astype(np.float32))
    read = learner.value_head.decode(learnt.prediction)[learnt.learned]
    assert read.mean().item() == pytest.approx(0.7, abs=0.12)
    assert learnt.target[learnt.learned].mean().item() == pytest.approx(0.7, abs=1e-3)


def test_an_update_that_is_not_finite_changes_nothing_and_tells_no_priorities(specs, make_sequences):
    learner = learner_of(specs["flat"], settings_of())
    batch = make_sequences(specs["flat"], learner.settings, np.random.default_rng(0))
    before = learner.state_dict()
    reward = batch.reward.copy()
    reward[batch.learning_mask] = np.nan
    assert learner.update(batch, reward).priorities is None
    after = learner.state_dict()
    assert learner.skipped_updates == 1
    changed = [name for name in before if not torch.equal(before[name], after[name])]
    assert all(name.startswith("counters.") for name in changed), changed


def test_the_target_follows_by_its_rate_every_period(specs, make_sequences):
    settings = settings_of(target=TargetSettings(rate=1.0, period_updates=2))
    learner = learner_of(specs["flat"], settings)
    batch = make_sequences(specs["flat"], settings, np.random.default_rng(0))
    for equal in (False, True, False):
        learner.update(batch, batch.reward)
        pairs = zip(learner._network.parameters(), learner._target.parameters(), strict=True)
        assert all(torch.equal(own, target) for own, target in pairs) == equal


def test_running_statistics_are_learnt_of_rows_to_learn_from_alone(specs, make_sequences):
    settings = settings_of(network=MlpSettings(hidden=(8,), normalize_observation=True))
    learner = R2d2Learner(settings, specs["flat"], None, 0, "cpu")
    batch = make_sequences(specs["flat"], settings, np.random.default_rng(0))
    observed = batch.observation["observation"]
    observed[~np.concatenate((batch.learning_mask, np.zeros_like(batch.learning_mask[:1])))] = 1e6
    for _ in range(12):
        learner.update(batch, batch.reward)
    normalizer = learner._network.encoder.normalizer
    assert normalizer.count.item() == 12 * BATCH
    assert normalizer.mean.abs().max() < 10
    assert torch.equal(normalizer.mean, learner._target.encoder.normalizer.mean)
