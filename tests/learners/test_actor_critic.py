"""IMPALA and APPO: losses against plain float64 loops, what an update does, masks, memory, continuous actions."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pytest
import torch

from onibi.learners.action_distributions import NEVER
from onibi.learners.appo import AppoLearner, AppoSettings
from onibi.learners.impala import ImpalaLearner, ImpalaSettings
from onibi.learners.networks.core_settings import CoreSettings
from onibi.learners.networks.mlp import MlpSettings
from onibi.learners.policy_losses import masked_mean
from onibi.learners.support import SupportSettings
from onibi.platform.errors import CheckpointError, ConfigError, NonFiniteError
from onibi.platform.spec import ACTION_MASK, ArraySpec, ReplaySpec

NETWORK = MlpSettings(hidden=(16, 16), layer_norm=False, activation="tanh")
SMALL = {"rows": 6, "batch_lanes": 4, "network": NETWORK, "value_loss": "mse", "metrics_period_updates": 1}
HL_GAUSS = {"value_loss": "hl_gauss", "support": SupportSettings(low=-5.0, high=5.0)}
GRU = CoreSettings(cell="gru", size=8)


def moved(learner, scale=0.5):
    """The learner with every parameter away from its start."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in learner._shared._network.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * scale)
    return learner


def plain_outputs(learner, slab):
    """(logits or means, values) of each observation by float64 loops over lanes and rows."""
    network = learner._shared._network
    arrays = {name: each.detach().double().numpy() for name, each in network.state_dict().items()}

    def layer(name, x):
        return arrays[f"{name}.weight"] @ x + arrays[f"{name}.bias"]

    lanes, rows = slab.used.shape
    heads, values = [], np.zeros((lanes, rows + 1))
    for lane in range(lanes):
        heads.append([])
        for row in range(rows + 1):
            x = slab.observation["observation"][lane, row].astype(np.float64)
            for at in range(2):
                x = np.tanh(layer(f"actor.encoder.trunk.linear.{at}", x))
            heads[lane].append(layer("actor.head.linear", x))
            values[lane, row] = layer("value", x)[0]
    return np.array(heads), values, arrays.get("actor.head.log_std")


def plain_loss(learner, slab, kind):
    """The loss of a slab, written as the papers have it, and its parts."""
    settings = learner.settings
    heads, values, log_std = plain_outputs(learner, slab)
    lanes, rows = slab.used.shape
    log_prob, entropy = np.zeros((lanes, rows)), np.zeros((lanes, rows))
    for lane, row in itertools.product(range(lanes), range(rows)):
        if log_std is None:
            shifted = heads[lane, row] - heads[lane, row].max()
            log_probs = shifted - np.log(np.exp(shifted).sum())
            log_prob[lane, row] = log_probs[slab.action[lane, row]]
            entropy[lane, row] = -(np.exp(log_probs) * log_probs).sum()
        else:
            standardised = (slab.action[lane, row] - heads[lane, row]) / np.exp(log_std)
            log_prob[lane, row] = (-0.5 * standardised**2 - log_std - 0.5 * np.log(2 * np.pi)).sum()
            entropy[lane, row] = (log_std + 0.5 * np.log(2 * np.pi * np.e)).sum()
    ratio = np.exp(log_prob - slab.extra["action_log_prob"])
    targets, advantages = np.zeros((lanes, rows)), np.zeros((lanes, rows))
    for lane in range(lanes):
        following = 0.0  # v_{t+1} − V_{t+1}
        for row in reversed(range(rows)):
            goes_on = (
                row + 1 < rows
                and slab.used[lane, row + 1]
                and not (slab.terminated[lane, row] or slab.truncated[lane, row])
            )
            gamma = 0.0 if slab.terminated[lane, row] else settings.discount
            following = following if goes_on else 0.0
            delta = slab.reward[lane, row] + gamma * values[lane, row + 1] - values[lane, row]
            if kind == "gae":
                advantages[lane, row] = delta + gamma * settings.trace_decay * following
                following = advantages[lane, row]
            else:
                advantages[lane, row] = delta + gamma * following
                trace = settings.trace_decay * min(settings.trace_bound, ratio[lane, row])
                following = min(settings.rho_bound, ratio[lane, row]) * delta + gamma * trace * following
            targets[lane, row] = values[lane, row] + following
    steps = [(lane, row) for lane, row in itertools.product(range(lanes), range(rows)) if slab.used[lane, row]]
    if kind == "impala":
        policy = [-min(settings.rho_bound, ratio[at]) * advantages[at] * log_prob[at] for at in steps]
    else:
        if settings.normalize_advantages:
            over = np.array([advantages[at] for at in steps])
            advantages = (advantages - over.mean()) / over.std()
        clip = settings.clip
        policy = [
            -min(ratio[at] * advantages[at], np.clip(ratio[at], 1 - clip, 1 + clip) * advantages[at]) for at in steps
        ]
    value = [0.5 * (targets[at] - values[at]) ** 2 for at in steps]
    parts = [np.mean(policy), np.mean(value), np.mean([entropy[at] for at in steps])]
    return parts[0] + settings.value_coefficient * parts[1] - settings.entropy_coefficient * parts[2], parts


CASES = {
    "impala": (ImpalaLearner, ImpalaSettings(**SMALL, trace_decay=0.9, rho_bound=1.5)),
    "appo vtrace": (AppoLearner, AppoSettings(**SMALL, trace_bound=1.2)),
    "appo gae": (AppoLearner, AppoSettings(**SMALL, returns="gae", trace_decay=0.9, normalize_advantages=False)),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", ["flat", "box"])
@pytest.mark.parametrize("seed", range(3))
def test_the_loss_is_what_plain_loops_give(specs, slab_of, case, name, seed):
    owner, settings = CASES[case]
    spec = specs[name]
    learner = moved(owner(settings, spec, None, 0, "cpu"))
    slab = slab_of(owner, settings, spec, seed)
    loss, learnt = learner._losses(learner._shared.inputs(slab, slab.reward))
    kind = "impala" if case == "impala" else settings.returns
    expected, parts = plain_loss(learner, slab, kind)
    used = learnt.used
    found = [float(masked_mean(each, used).detach()) for each in (learnt.policy, learnt.value, learnt.entropy)]
    np.testing.assert_allclose(found, parts, rtol=2e-4)
    assert float(loss.detach()) == pytest.approx(expected, rel=2e-4)


@pytest.mark.parametrize("case", CASES)
def test_final_rows_and_what_stands_in_them_change_nothing(specs, slab_of, case):
    owner, settings = CASES[case]
    learner = moved(owner(settings, specs["flat"], None, 0, "cpu"))
    slab = slab_of(owner, settings, specs["flat"])
    assert not slab.used.all()
    before, _ = learner._losses(learner._shared.inputs(slab, slab.reward))
    slab.action[~slab.used] = 2
    slab.extra["action_log_prob"][~slab.used] = 55.0
    after, _ = learner._losses(learner._shared.inputs(slab, slab.reward))
    assert before.item() == after.item()


@pytest.mark.parametrize("owner", [ImpalaLearner, AppoLearner])
@pytest.mark.parametrize("options", [HL_GAUSS, {"value_loss": "huber"}, {**HL_GAUSS, "value_loss": "two_hot"}])
def test_each_value_loss_is_learnt(specs, slab_of, owner, options):
    fast = {"learning_rate": 1e-2, "entropy_coefficient": 0.0, "discount": 0.5}
    settings = owner.Settings(**{**SMALL, **options, **fast})
    learner = owner(settings, specs["flat"], None, 0, "cpu")
    slab = slab_of(owner, settings, specs["flat"])
    slab.extra["action_log_prob"][:] = -np.log(3)
    told = [learner.update(slab, slab.reward).metrics for _ in range(60)]
    assert told[-1]["value_loss_above_floor"] < 0.5 * told[0]["value_loss_above_floor"]


def test_impala_makes_the_action_likelier_that_paid(specs, slab_of):
    settings = ImpalaSettings(**SMALL, learning_rate=1e-2, discount=0.0)
    learner = ImpalaLearner(settings, specs["flat"], None, 0, "cpu")
    slab = slab_of(ImpalaLearner, settings, specs["flat"], ends=False)
    reward = (slab.action == 2).astype(np.float32)
    slab.extra["action_log_prob"][:] = -np.log(3)
    for _ in range(60):
        learner.update(slab, reward)
    found = learner._shared.evaluate(learner._shared.inputs(slab, reward))
    assert found.policy.log_probs.exp()[..., 2].mean() > 0.8


def test_an_update_of_appo_makes_epochs_times_minibatches_steps_over_each_lane_once_an_epoch(specs, slab_of):
    settings = AppoSettings(**SMALL, epochs=3, minibatches=2)
    learner = AppoLearner(settings, specs["flat"], None, 0, "cpu")
    slab = slab_of(AppoLearner, settings, specs["flat"])
    parts = learner._parts()
    assert [sorted(torch.cat(parts[at : at + 2]).tolist()) for at in (0, 2, 4)] == [[0, 1, 2, 3]] * 3
    assert len({tuple(part.tolist()) for part in learner._parts() + parts}) > 2
    learner.update(slab, slab.reward)
    assert learner.updates == 6


def test_a_value_is_not_paid_for_moving_further_than_the_value_clip(specs, slab_of):
    settings = AppoSettings(**SMALL, epochs=2, value_clip=0.1)
    learner = AppoLearner(settings, specs["flat"], None, 0, "cpu")
    slab = slab_of(AppoLearner, settings, specs["flat"])
    inputs = learner._shared.inputs(slab, slab.reward)
    found = learner._shared.evaluate(inputs)
    targets = learner._targets(found)
    targets = dataclasses.replace(targets, values=found.values[:, :-1] + 1.0)  # all values should rise
    zeros = torch.zeros_like(targets.values)
    for old, expected in ((found.values[:, :-1], 1.0), (found.values[:, :-1] - 0.3, 0.0)):
        prediction = found.outputs.detach().requires_grad_()
        loss, _ = learner._shared.loss(dataclasses.replace(found, outputs=prediction), targets, zeros, old)
        (gradient,) = torch.autograd.grad(loss, prediction)
        used = found.steps.used.bool()
        moves = (gradient[:, :-1, 0][used] != 0).float()
        # ½(v − y)² of the value itself is smaller than of the one held 0.2 behind, and that one does not move
        assert moves.mean().item() == expected
    assert learner.update(slab, slab.reward).metrics


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"minibatches": 3}, "does not divide"),
        ({"value_clip": 1.0}, "second step"),
        ({**HL_GAUSS, "value_clip": 1.0, "epochs": 2}, "value_clip is read by"),
        ({"returns": "gae", "rho_bound": 2.0}, "vtrace"),
        ({"core": GRU, "shared_encoder": False}, "shared_encoder"),
        ({"value_loss": "hl_gauss", "normalize_reward": True}, "support"),
    ],
)
def test_options_that_nothing_reads_are_refused(options, told):
    with pytest.raises(ValueError, match=told):
        AppoSettings(**{**SMALL, **options})


@pytest.mark.parametrize("owner", [ImpalaLearner, AppoLearner])
def test_a_deviation_of_continuous_actions_is_refused_where_actions_are_discrete(specs, owner):
    settings = owner.Settings(**SMALL, initial_log_std=-1.0)
    owner(settings, specs["box"], None, 0, "cpu")
    with pytest.raises(ConfigError, match=r"initial_log_std is -1.0, .* has 3 discrete"):
        owner(settings, specs["flat"], None, 0, "cpu")


def test_a_masked_action_is_never_likely_and_its_logit_is_not_learnt(slab_of):
    spec = ReplaySpec(
        observation=(
            ArraySpec(name="observation.state", dtype="float32", shape=(4,)),
            ArraySpec(name=ACTION_MASK, dtype="int8", shape=(3,), low=0, high=1),
        ),
        actions=3,
    )
    for owner in (ImpalaLearner, AppoLearner):
        settings = owner.Settings(**SMALL)
        learner = moved(owner(settings, spec, None, 0, "cpu"))
        slab = slab_of(owner, settings, spec)
        slab.observation[ACTION_MASK][:] = [1, 0, 1]
        slab.action[:] = np.where(slab.action == 1, 2, slab.action)
        inputs = learner._shared.inputs(slab, slab.reward)
        loss, learnt = learner._losses(inputs)
        loss.backward()
        head = learner._shared._network.actor.head.linear
        assert not head.weight.grad[1].any()
        assert head.weight.grad[0].any()
        assert (learner._shared.evaluate(inputs).policy.log_probs[..., 1] <= NEVER / 2).all()
        assert learnt.entropy.max() <= np.log(2) + 1e-6
        assert learner._shared._network.actor.encoder.input.features == 4  # the mask is no input


def test_memory_reads_stored_states_where_pieces_begin_and_its_own_elsewhere(specs, slab_of):
    settings = ImpalaSettings(**SMALL, core=GRU)
    learner = moved(ImpalaLearner(settings, specs["flat"], None, 0, "cpu"))
    slab = slab_of(ImpalaLearner, settings, specs["flat"], seed=3)
    network, states = learner._shared._network, slab.extra["recurrent_state"]
    found = learner._shared.evaluate(learner._shared.inputs(slab, slab.reward))
    lanes, rows = slab.used.shape
    with torch.no_grad():
        for lane in range(lanes):
            state = torch.from_numpy(states[lane, :1])
            for row in range(rows + 1):
                if 0 < row < rows and slab.begins[lane, row]:
                    state = torch.from_numpy(states[lane, row : row + 1])
                leaves = {"observation": torch.from_numpy(slab.observation["observation"][lane, row : row + 1])}
                features, state = network.actor.core.step(network.actor.encoder(leaves), state)
                assert network.value(features).item() == pytest.approx(found.values[lane, row].item(), abs=1e-5)
    states[:, 1:][~slab.begins[:, 1:]] = 9.0  # of rows within a piece nobody reads it
    again = learner._shared.evaluate(learner._shared.inputs(slab, slab.reward))
    torch.testing.assert_close(again.values, found.values, rtol=0, atol=0)


@pytest.mark.parametrize("options", [{}, {"core": GRU}, {"normalize_reward": True}, {"epochs": 2, "minibatches": 2}])
def test_a_restored_learner_goes_on_bit_for_bit(specs, slab_of, options):
    network = dataclasses.replace(NETWORK, normalize_observation=True)
    settings = AppoSettings(**{**SMALL, "network": network, **options})
    slabs = [slab_of(AppoLearner, settings, specs["flat"], seed) for seed in range(4)]
    first = AppoLearner(settings, specs["flat"], None, 0, "cpu")
    for slab in slabs[:2]:
        first.update(slab, slab.reward)
    second = AppoLearner(settings, specs["flat"], None, 7, "cpu")
    second.load_state_dict(first.state_dict())
    for slab in slabs[2:]:
        for learner in (first, second):
            learner.update(slab, slab.reward)
    ours, theirs = first.state_dict(), second.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_a_checkpoint_of_other_settings_is_refused(specs):
    plain = AppoLearner(AppoSettings(**SMALL), specs["flat"], None, 0, "cpu")
    scaled = AppoLearner(AppoSettings(**SMALL, normalize_reward=True), specs["flat"], None, 0, "cpu")
    with pytest.raises(CheckpointError, match="does not fit"):
        scaled.load_state_dict(plain.state_dict())


def test_a_batch_that_is_not_finite_changes_nothing_but_the_counters(specs, slab_of):
    settings = ImpalaSettings(**SMALL)
    learner = ImpalaLearner(settings, specs["flat"], None, 0, "cpu")
    slab = slab_of(ImpalaLearner, settings, specs["flat"])
    learner.update(slab, slab.reward)
    before = learner.state_dict()
    told = learner.update(slab, np.full_like(slab.reward, np.nan))
    after = learner.state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"counters.updates", "counters.skipped_updates", "counters.skips_in_a_row"}
    assert told.metrics["skipped_updates"] == 1


def test_one_slab_that_is_not_finite_passes_by_however_many_steps_it_makes_and_ten_end_it(specs, slab_of):
    settings = AppoSettings(**SMALL, epochs=6, minibatches=2)
    learner = AppoLearner(settings, specs["flat"], None, 0, "cpu")
    slab = slab_of(AppoLearner, settings, specs["flat"])
    bad = np.full_like(slab.reward, np.nan)
    for _ in range(9):
        learner.update(slab, bad)
    learner.update(slab, slab.reward)
    for _ in range(9):
        learner.update(slab, bad)
    with pytest.raises(NonFiniteError, match=r"update 240: .* 120 times in a row"):
        learner.update(slab, bad)


def test_a_critic_of_its_own_leaves_the_actor_alone(specs, slab_of):
    settings = ImpalaSettings(**SMALL, shared_encoder=False)
    learner = moved(ImpalaLearner(settings, specs["flat"], None, 0, "cpu"))
    slab = slab_of(ImpalaLearner, settings, specs["flat"])
    found = learner._shared.evaluate(learner._shared.inputs(slab, slab.reward))
    found.outputs.sum().backward()
    network = learner._shared._network
    assert all(parameter.grad is None or not parameter.grad.any() for parameter in network.actor.parameters())
    assert all(parameter.grad.any() for parameter in network.critic_encoder.parameters())
    assert not any(name.startswith("critic") for name in learner.weights(0).arrays)
