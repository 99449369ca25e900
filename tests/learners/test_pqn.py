from __future__ import annotations

import numpy as np
import pytest
import torch

from onibi.learners.networks.mlp import MlpSettings
from onibi.learners.pqn import PqnLearner, PqnSettings
from onibi.learners.support import SupportSettings
from onibi.platform.config import read_settings
from onibi.platform.errors import CheckpointError, ConfigError, NonFiniteError
from onibi.platform.policy import LaneRange, weights_version
from onibi.platform.spec import ArraySpec, ReplaySpec

ONE_NUMBER = ReplaySpec(observation=(ArraySpec(name="observation", dtype="float32", shape=(1,)),), actions=2)


def settings_of(**others):
    given = {"value_loss": "mse", "rows": 6, "batch_lanes": 4, "minibatches": 3, "epochs": 2}
    return PqnSettings(**given | {"network": MlpSettings(hidden=(16,))} | others)


def learner_of(spec, seed=0, **others):
    return PqnLearner(settings_of(**others), spec, (-1.0, 2.0), seed, "cpu")


def slab_of(spec, learner, make_batch, seed=0):
    return make_batch(spec, PqnLearner.needs(learner.settings), np.random.default_rng(seed))


def with_ends(slab):
    """Lane 0 terminates at row 2, lane 1 is truncated at row 1, lane 2 at the last row; final rows follow."""
    slab.terminated[0, 2] = slab.truncated[1, 1] = slab.truncated[2, 5] = 1
    for lane, row in ((0, 3), (1, 2)):
        slab.used[lane, row], slab.role[lane, row] = False, 1
        slab.reward[lane, row], slab.action[lane, row] = 0.0, 0
    return slab


# --- returns ---


def known_values(learner):
    """A linear network of one number x: the value of action a is (3, 2)[a] · x for x > 0."""
    with torch.no_grad():
        for parameter in learner._network.parameters():
            parameter.zero_()
        learner._network.encoder.trunk.linear[0].weight.fill_(1.0)
        learner._network.head.advantage.weight.copy_(torch.tensor([[3.0], [2.0]]))


def returns_of(learner, slab):
    observation = {name: torch.from_numpy(leaf) for name, leaf in slab.observation.items()}
    return learner._returns(slab, slab.reward, observation).numpy()


def test_a_terminated_a_truncated_and_an_open_lane_by_hand(make_batch):
    network = MlpSettings(hidden=(1,), layer_norm=False)
    learner = learner_of(
        ONE_NUMBER, rows=3, batch_lanes=3, minibatches=1, discount=0.5, trace_decay=0.5, network=network
    )
    known_values(learner)
    slab = slab_of(ONE_NUMBER, learner, make_batch)
    slab.observation["observation"][:] = 1.0  # each observation is worth 3 …
    slab.observation["observation"][:, 2] = 2.0  # … the one behind row 1 is worth 6
    slab.reward[:] = [[1, 2, 0], [1, 2, 0], [1, 2, 4]]
    slab.terminated[0, 1] = slab.truncated[1, 1] = 1
    slab.used[:2, 2] = False
    found = returns_of(learner, slab)
    # λ and γ are ½.  Lane 0: G₁ = 2; G₀ = 1 + ½(½·3 + ½·2).  Lane 1: G₁ = 2 + ½·6; G₀ = 1 + ½(½·3 + ½·5).
    # Lane 2: G₂ = 4 + ½·3; G₁ = 2 + ½(½·6 + ½·5.5); G₀ = 1 + ½(½·3 + ½·4.875).
    expected = [[2.25, 2.0, 0.0], [3.0, 5.0, 0.0], [2.96875, 4.875, 5.5]]
    np.testing.assert_allclose(found, expected, rtol=1e-6)


@pytest.mark.parametrize("trace_decay", [0.0, 0.65, 1.0])
def test_returns_are_those_of_a_plain_loop(specs, make_batch, trace_decay):
    spec = specs["flat"]
    learner = learner_of(spec, trace_decay=trace_decay, discount=0.9)
    slab = with_ends(slab_of(spec, learner, make_batch))
    with torch.no_grad():
        leaf = torch.from_numpy(slab.observation["observation"]).flatten(0, 1)
        best = learner._network.action_values({"observation": leaf}).max(dim=1).values.view(4, 7).double().numpy()
    expected = np.zeros((4, 6))
    for lane in range(4):
        for row in reversed(range(6)):
            if not slab.used[lane, row]:
                continue
            reward, value = float(slab.reward[lane, row]), best[lane, row + 1]
            if slab.terminated[lane, row]:
                expected[lane, row] = reward
            elif slab.truncated[lane, row] or row == 5:
                expected[lane, row] = reward + 0.9 * value
            else:
                mixed = (1 - trace_decay) * value + trace_decay * expected[lane, row + 1]
                expected[lane, row] = reward + 0.9 * mixed
    np.testing.assert_allclose(returns_of(learner, slab), expected, atol=1e-5)


# --- updates ---


def test_an_epoch_learns_from_each_row_once_in_minibatches_of_equal_size(specs, make_batch):
    learner = learner_of(specs["flat"], epochs=3)
    slab = slab_of(specs["flat"], learner, make_batch)
    slab.observation["observation"][:, :-1, 0] = np.arange(24).reshape(4, 6)  # a name for each row
    seen, inner = [], learner._program.step
    learner._program.step = lambda inputs: (seen.append(inputs["observation"]["observation"][:, 0]), inner(inputs))[1]
    learner.update(slab, slab.reward)
    assert [len(part) for part in seen] == [8] * 9
    orders = [torch.cat(seen[3 * epoch : 3 * epoch + 3]).tolist() for epoch in range(3)]
    assert all(sorted(order) == list(range(24)) for order in orders)
    assert orders[0] != orders[1] != orders[2]
    assert learner.updates == 9


def test_final_rows_do_not_teach(specs, make_batch):
    spec, states = specs["flat"], []
    for value in (0.0, 7.0):
        learner = learner_of(spec)
        slab = with_ends(slab_of(spec, learner, make_batch))
        slab.reward[~slab.used] = value
        slab.action[~slab.used] = int(value > 0)
        learner.update(slab, slab.reward)
        states.append(learner.state_dict())
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_the_mixed_reward_is_learnt_and_not_the_environments(specs, make_batch):
    spec, states = specs["flat"], []
    for own in (0.0, 1.0):
        learner = learner_of(spec)
        slab = slab_of(spec, learner, make_batch)
        slab.reward[:] = own
        learner.update(slab, np.full((4, 6), 0.5, np.float32))
        states.append(learner.state_dict())
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


@pytest.mark.parametrize("loss", ["mse", "huber", "hl_gauss", "two_hot"])
def test_a_restored_learner_goes_on_bit_for_bit(specs, make_batch, loss):
    first, second = (learner_of(specs["flat"], seed, value_loss=loss) for seed in (0, 1))
    slabs = [slab_of(specs["flat"], first, make_batch, seed) for seed in range(4)]
    for slab in slabs[:2]:
        first.update(slab, slab.reward)
    second.load_state_dict(first.state_dict())
    for learner in (first, second):
        for slab in slabs[2:]:
            learner.update(slab, slab.reward)
    states = first.state_dict(), second.state_dict()
    assert states[0].keys() == states[1].keys()
    assert [name for name in states[0] if not torch.equal(states[0][name], states[1][name])] == []
    assert not any(name.startswith("target.") for name in states[0])


def test_metrics_come_when_gradient_steps_pass_a_period(specs, make_batch):
    learner = learner_of(specs["flat"], metrics_period_updates=10)  # 6 steps a slab
    slab = slab_of(specs["flat"], learner, make_batch)
    told = [learner.update(slab, slab.reward) for _ in range(4)]
    assert [bool(update.metrics) for update in told] == [False, True, False, True]  # at 6, 12, 18, 24
    assert told[1].metrics["loss"] > 0
    assert told[1].metrics["skipped_updates"] == 0
    assert all(update.priorities is None for update in told)


def test_a_slab_that_is_not_finite_is_skipped_and_counted(specs, make_batch):
    learner = learner_of(specs["flat"], epochs=1, minibatches=2)
    slab = slab_of(specs["flat"], learner, make_batch)
    before = {name: tensor.clone() for name, tensor in learner._network.state_dict().items()}
    learner.update(slab, np.full((4, 6), np.nan, np.float32))
    assert all(torch.equal(tensor, learner._network.state_dict()[name]) for name, tensor in before.items())
    assert (learner.updates, learner.skipped_updates) == (2, 2)


def test_statistics_are_those_of_rows_with_an_action_and_of_no_final_ones(specs, make_batch):
    learner = learner_of(specs["flat"], network=MlpSettings(hidden=(16,), normalize_observation=True))
    slab = with_ends(slab_of(specs["flat"], learner, make_batch))
    slab.observation["observation"][:, :-1][~slab.used] = 1e6
    learner.update(slab, slab.reward)
    normalizer = learner._network.encoder.normalizer
    assert normalizer.count == 4 * 6 - 2
    expected = slab.observation["observation"][:, :-1][slab.used].mean(axis=0)
    np.testing.assert_allclose(normalizer.mean, expected, rtol=1e-4, atol=1e-6)


def test_a_slab_of_final_rows_alone_moves_no_statistics(specs, make_batch):
    network = MlpSettings(hidden=(16,), normalize_observation=True)
    learner = learner_of(specs["flat"], rows=1, batch_lanes=4, minibatches=1, network=network)
    slab = slab_of(specs["flat"], learner, make_batch)
    learner.update(slab, slab.reward)
    before = {name: tensor.clone() for name, tensor in learner._network.encoder.normalizer.state_dict().items()}
    slab.used[:], slab.role[:] = False, 1
    learner.update(slab, np.zeros_like(slab.reward))
    after = learner._network.encoder.normalizer.state_dict()
    assert before["count"] == 4
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())


def test_a_state_of_another_network_is_refused(specs):
    state = learner_of(specs["flat"]).state_dict()
    with pytest.raises(CheckpointError, match="does not fit these settings"):
        learner_of(specs["flat"], network=MlpSettings(hidden=(8,))).load_state_dict(state)
    del state["rng.order"]
    with pytest.raises(CheckpointError, match=r"lacks the learner's.*rng\.order"):
        learner_of(specs["flat"]).load_state_dict(state)


def test_one_slab_that_is_not_finite_passes_by_however_many_steps_it_makes_and_ten_end_it(specs, make_batch):
    learner = learner_of(specs["flat"], epochs=3, minibatches=4)
    slab = slab_of(specs["flat"], learner, make_batch)
    bad = np.full_like(slab.reward, np.nan)
    for _ in range(9):
        learner.update(slab, bad)
    assert learner.skipped_updates == 9 * 12
    learner.update(slab, slab.reward)
    for _ in range(9):
        learner.update(slab, bad)
    with pytest.raises(NonFiniteError, match=r"update 240: .* 120 times in a row"):
        learner.update(slab, bad)


# --- settings and acting ---


@pytest.mark.parametrize(
    ("mapping", "said"),
    [
        ({"value_loss": "c51"}, "targets of pqn are scalars"),
        ({"value_loss": "mse", "support": {"bins": 9}}, "support is read by"),
        ({"minibatches": 7}, "do not part into so many equal ones"),
        ({"noisy": {}}, "noisy"),
    ],
)
def test_an_option_that_would_not_act_is_refused(mapping, said):
    with pytest.raises(ConfigError, match=said):
        read_settings(PqnSettings, mapping)


def test_its_policies_act_in_numpy_and_explore_by_the_ladder(specs, make_batch, make_observation):
    learner = learner_of(specs["flat"], value_loss="hl_gauss", support=SupportSettings(low=-1.0, high=2.0))
    factory = PqnLearner.policy_factory(learner.settings, specs["flat"])
    greedy, explorer = factory(None), factory(LaneRange(0, 5, 5))
    observation = make_observation(specs["flat"], 5, np.random.default_rng(0))
    for policy in (greedy, explorer):
        policy.load(learner.weights(weights_version(0, 1)))
    with torch.no_grad():
        values = learner._network.action_values({"observation": torch.from_numpy(observation["observation"])})
    rng = np.random.default_rng(0)
    assert greedy.act(observation, None, rng).action.tolist() == values.argmax(dim=1).tolist()
    assert len({tuple(explorer.act(observation, None, rng).action.tolist()) for _ in range(50)}) > 5
