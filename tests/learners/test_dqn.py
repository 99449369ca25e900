from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from onibi.learners.dqn import DqnLearner, DqnSettings
from onibi.learners.exploration import ExplorationSettings
from onibi.learners.networks.mlp import MlpSettings
from onibi.learners.support import SupportSettings
from onibi.learners.target_network import TargetSettings
from onibi.platform.config import read_settings, to_mapping
from onibi.platform.errors import CheckpointError, ConfigError, TrainingError
from onibi.platform.policy import weights_version
from onibi.platform.spec import ArraySpec, ReplaySpec

SUPPORT = SupportSettings(low=-1.0, high=2.0, bins=31)


def settings_of(loss="hl_gauss", **others):
    return DqnSettings(value_loss=loss, support=SUPPORT if loss == "hl_gauss" else SupportSettings(), **others)


def equal_states(first, second):
    return [name for name in first if not torch.equal(first[name], second[name])]


# --- the target, on networks whose values are known ---

ONE_NUMBER = ReplaySpec(observation=(ArraySpec(name="observation", dtype="float32", shape=(1,)),), actions=2)


def set_values(network, slopes):
    """Make a linear network of one number x: value of action a = slopes[a] · x for x > 0."""
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.zero_()
        network.encoder.trunk.linear[0].weight.fill_(1.0)
        network.head.advantage.weight.copy_(torch.tensor(slopes)[:, None])


def learner_with_known_values(**others):
    network = MlpSettings(hidden=(1,), layer_norm=False)
    settings = settings_of("mse", dueling=False, network=network, discount=0.5, n_steps=2, **others)
    learner = DqnLearner(settings, ONE_NUMBER, None, 0, "cpu")
    set_values(learner._network, [3.0, 2.0])
    set_values(learner._target, [10.0, 30.0])
    return learner


def targets(learner, windows, reward):
    return learner._target_values(learner._inputs(windows, reward))


def one_window(make_windows, continues=(1.0, 1.0), used=(True, True)):
    windows = make_windows(ONE_NUMBER, 1, 2, np.random.default_rng(0))
    windows.bootstrap_observation["observation"] = np.array([[1.0]], np.float32)
    windows.continues, windows.used = np.array([continues], np.float32), np.array([used])
    return windows


def test_double_takes_the_networks_action_and_the_targets_value(make_windows):
    windows, reward = one_window(make_windows), np.array([[1.0, 4.0]], np.float32)
    double = targets(learner_with_known_values(double=True), windows, reward)
    assert double.tolist() == [5.5]  # 1 + ½·4 + ¼·10: action 0 is the network's best
    single = targets(learner_with_known_values(double=False), windows, reward)
    assert single.tolist() == [10.5]  # 1 + ½·4 + ¼·30


def test_with_a_temperature_the_bootstrap_is_the_softmax_policys_expected_value(make_windows):
    windows, reward = one_window(make_windows), np.array([[1.0, 4.0]], np.float32)
    softmax = ExplorationSettings(temperature=float(1 / np.log(3)))  # exp(Q/τ) = 3^Q: odds of 3 to 1 for a gap of 1
    double = targets(learner_with_known_values(double=True, exploration=softmax), windows, reward)
    assert double.tolist() == pytest.approx([6.75])  # 1 + ½·4 + ¼·(¾·10 + ¼·30)
    single = targets(learner_with_known_values(double=False, exploration=softmax), windows, reward)
    assert single.tolist() == pytest.approx([10.5], abs=1e-6)  # the gap of 20 leaves 3⁻²⁰ to the other action


def test_termination_keeps_the_bootstrap_out_and_truncation_keeps_it_in(make_windows):
    learner, reward = learner_with_known_values(), np.array([[1.0, 0.0]], np.float32)
    terminated = one_window(make_windows, continues=(0.0, 1.0), used=(True, False))
    assert targets(learner, terminated, reward).tolist() == [1.0]
    truncated = one_window(make_windows, continues=(1.0, 1.0), used=(True, False))
    assert targets(learner, truncated, reward).tolist() == [6.0]  # 1 + ½·10


def test_the_mixed_reward_is_learnt_and_not_the_environments(specs, make_windows):
    windows = make_windows(specs["flat"], 16, 3, np.random.default_rng(0))
    states = []
    for own in (0.0, 1.0):
        windows.reward[:] = own
        learner = DqnLearner(settings_of(), specs["flat"], None, 0, "cpu")
        learner.update(windows, np.full((16, 3), 0.5, np.float32))
        states.append(learner.state_dict())
    assert equal_states(*states) == []


def test_rows_of_weight_zero_do_not_teach(specs, make_windows):
    rng = np.random.default_rng(0)
    states = []
    for value in (0.1, 0.9):
        windows = make_windows(specs["flat"], 16, 3, np.random.default_rng(1))
        windows.weight[8:] = 0.0
        reward = np.full((16, 3), 0.5, np.float32)
        reward[8:] = value + 0.0 * rng.random()
        learner = DqnLearner(settings_of(), specs["flat"], None, 0, "cpu")
        learner.update(windows, reward)
        states.append(learner.state_dict())
    assert equal_states(*states) == []


# --- the target network ---


@pytest.mark.parametrize(
    ("target", "after"),
    [
        (TargetSettings(rate=0.25, period_updates=1), [0.25, 0.4375, 0.578125]),  # 1 − ¾ᵏ of a step that stays
        (TargetSettings(rate=1.0, period_updates=2), [0.0, 1.0, 1.0]),
    ],
)
def test_the_target_follows_by_its_rate_every_period(specs, make_windows, target, after):
    learner = DqnLearner(settings_of(learning_rate=0.0, target=target), specs["flat"], None, 0, "cpu")
    with torch.no_grad():  # the network stands one above its target and, without a learning rate, stays there
        start = [parameter.add_(1.0) - 1.0 for parameter in learner._network.parameters()]
    windows = make_windows(specs["flat"], 8, 3, np.random.default_rng(0))
    for share in after:
        learner.update(windows, windows.reward)
        for parameter, first in zip(learner._target.parameters(), start, strict=True):
            torch.testing.assert_close(parameter, first + share, atol=1e-5, rtol=0)


@pytest.mark.parametrize(("rate", "after"), [(1.0, 1.0), (0.5, 0.0)])
def test_a_hard_copy_that_was_due_at_a_skipped_step_is_made_all_the_same(specs, make_windows, rate, after):
    target = TargetSettings(rate=rate, period_updates=2)
    learner = DqnLearner(settings_of(learning_rate=0.0, target=target), specs["flat"], None, 0, "cpu")
    with torch.no_grad():
        start = [parameter.add_(1.0) - 1.0 for parameter in learner._network.parameters()]
    windows = make_windows(specs["flat"], 8, 3, np.random.default_rng(0))
    learner.update(windows, windows.reward)
    learner.update(windows, np.full_like(windows.reward, math.nan))
    assert learner.skipped_updates == 1
    for parameter, first in zip(learner._target.parameters(), start, strict=True):
        torch.testing.assert_close(parameter, first + after, atol=1e-5, rtol=0)


def test_the_target_always_normalises_as_the_network_does(specs, make_windows):
    network = MlpSettings(normalize_observation=True)
    target = TargetSettings(rate=1.0, period_updates=1000)
    learner = DqnLearner(settings_of(network=network, target=target), specs["flat"], None, 0, "cpu")
    windows = make_windows(specs["flat"], 64, 3, np.random.default_rng(0))
    learner.update(windows, windows.reward)
    assert learner._network.encoder.normalizer.count.item() == 64
    assert torch.equal(learner._target.encoder.normalizer.mean, learner._network.encoder.normalizer.mean)
    assert not torch.equal(learner._target.head.value.bias, learner._network.head.value.bias)


# --- metrics, faults ---


def test_metrics_come_every_period_and_tell_what_happened(specs, make_windows):
    learner = DqnLearner(settings_of(metrics_period_updates=3), specs["flat"], None, 0, "cpu")
    windows = make_windows(specs["flat"], 32, 3, np.random.default_rng(0))
    windows.continues[:, 0] = 0.0  # target = first reward
    reward = np.zeros((32, 3), np.float32)
    reward[:8, 0] = 5.0  # outside of [−1, 2]
    updates = [learner.update(windows, reward) for _ in range(6)]
    assert [bool(update.metrics) for update in updates] == [False, False, True] * 2
    metrics = updates[-1].metrics
    assert metrics["clipped_share"] == 0.25
    assert metrics["target_mean"] == pytest.approx(1.25)
    assert 0 < metrics["loss_above_floor"] < metrics["loss"]
    assert metrics["q_max"] >= metrics["q_mean"]
    assert metrics["gradient_norm"] > 0
    assert metrics["skipped_updates"] == 0
    assert updates[-1].priorities is None


@pytest.mark.parametrize("where", ["reward", "observation"])
def test_a_batch_that_is_not_finite_changes_nothing_but_the_counters(specs, make_windows, where):
    network = MlpSettings(normalize_observation=True)
    learner = DqnLearner(settings_of("mse", network=network), specs["flat"], None, 0, "cpu")
    good = make_windows(specs["flat"], 16, 3, np.random.default_rng(0))
    learner.update(good, good.reward)
    before = learner._network.state_dict()
    before = {name: tensor.clone() for name, tensor in before.items()}
    bad = make_windows(specs["flat"], 16, 3, np.random.default_rng(1))
    reward = bad.reward.copy()
    (reward if where == "reward" else bad.observation["observation"])[3, 0] = math.nan
    learner.update(bad, reward)
    assert equal_states(before, learner._network.state_dict()) == []
    assert (learner.updates, learner.skipped_updates) == (2, 1)
    learner.update(good, good.reward)
    assert equal_states(before, learner._network.state_dict()) != []


def test_ten_batches_in_a_row_that_are_not_finite_end_learning_but_nine_do_not(specs, make_windows):
    learner = DqnLearner(settings_of("mse"), specs["flat"], None, 0, "cpu")
    windows = make_windows(specs["flat"], 16, 3, np.random.default_rng(0))
    nan = np.full((16, 3), math.nan, np.float32)
    for _ in range(2):
        for _ in range(9):
            learner.update(windows, nan)
        learner.update(windows, windows.reward)
    for _ in range(9):
        learner.update(windows, nan)
    with pytest.raises(TrainingError, match=r"10 times in a row.*learning_rate"):
        learner.update(windows, nan)
    assert learner.skipped_updates == 28


def test_a_long_gradient_is_shortened_to_the_norm_that_is_set(specs, make_windows):
    learner = DqnLearner(settings_of("mse", gradient_norm=1e-3), specs["flat"], None, 0, "cpu")
    windows = make_windows(specs["flat"], 16, 3, np.random.default_rng(0))
    learner.update(windows, windows.reward * 1000)
    norm = torch.linalg.vector_norm(torch.stack([p.grad.norm() for p in learner._network.parameters()]))
    assert norm.item() == pytest.approx(1e-3, rel=1e-3)


# --- state ---


@pytest.mark.parametrize("name", ["flat", "nethack"])
def test_a_restored_learner_goes_on_bit_for_bit(specs, make_windows, name):
    spec = specs[name]
    first, second = (DqnLearner(settings_of(), spec, None, seed, "cpu") for seed in (0, 1))
    batches = [make_windows(spec, 32, 3, np.random.default_rng(seed)) for seed in range(6)]
    for windows in batches[:3]:
        first.update(windows, windows.reward)
    second.load_state_dict(first.state_dict())
    assert second.updates == 3
    for learner in (first, second):
        for windows in batches[3:]:
            learner.update(windows, windows.reward)
    states = first.state_dict(), second.state_dict()
    assert states[0].keys() == states[1].keys()
    assert equal_states(*states) == []


def test_a_state_holds_copies(specs, make_windows):
    learner = DqnLearner(settings_of(), specs["flat"], None, 0, "cpu")
    windows = make_windows(specs["flat"], 16, 3, np.random.default_rng(0))
    learner.update(windows, windows.reward)
    state = learner.state_dict()
    kept = {name: tensor.clone() for name, tensor in state.items()}
    learner.update(windows, windows.reward)
    assert equal_states(kept, state) == []
    assert {name.split(".")[0] for name in state} == {"network", "target", "optimizer", "counters", "rng"}


def test_a_state_of_another_network_is_refused(specs):
    state = DqnLearner(settings_of(), specs["flat"], None, 0, "cpu").state_dict()
    wider = DqnLearner(settings_of(network=MlpSettings(hidden=(64,))), specs["flat"], None, 0, "cpu")
    with pytest.raises(CheckpointError, match="does not fit these settings"):
        wider.load_state_dict(state)
    same = DqnLearner(settings_of(), specs["flat"], None, 0, "cpu")
    del state["counters.updates"]
    with pytest.raises(CheckpointError, match=r"lacks the learner's.*updates"):
        same.load_state_dict(state)


def test_one_seed_makes_one_learner(specs):
    states = [DqnLearner(settings_of(), specs["flat"], None, seed, "cpu").state_dict() for seed in (7, 7, 8)]
    assert equal_states(states[0], states[1]) == []
    assert equal_states(states[0], states[2]) != []


# --- settings ---


@pytest.mark.parametrize(
    ("mapping", "said"),
    [
        ({"value_loss": "mse", "support": {"bins": 101}}, "support is read by .* c51 alone, not by mse"),
        ({"value_loss": "quantile", "support": {"spacing": "symlog"}}, "support is read by .* not by quantile"),
        ({"value_loss": "c51", "support": {"sigma_bins": 0.5}}, "sigma_bins .* is read by value_loss hl_gauss alone"),
        ({"value_loss": "hl_gauss", "huber_delta": 2.0}, "huber_delta is read by value_loss huber and quantile"),
        ({"value_loss": "c51", "quantiles": 8}, "quantiles is read by value_loss quantile and iqn alone, not by c51"),
        ({"support": {"spacing": "symlog", "sigma_value": 1.0}}, "set sigma_bins instead"),
        ({"value_loss": "hlgauss"}, "hl_gauss"),
        ({"discount": 1.5}, "discount"),
        ({"network": {"kind": "transformer"}}, "mlp"),
        ({"network": {"kind": "mlp", "hiden": [3]}}, "hidden"),
    ],
)
def test_an_option_that_would_not_act_is_refused(mapping, said):
    with pytest.raises(ConfigError, match=said):
        read_settings(DqnSettings, mapping)


def test_settings_with_a_named_network_survive_writing_and_reading():
    settings = read_settings(
        DqnSettings,
        {
            "network": {"kind": "cnn", "convolutions": [{"channels": 8, "kernel": 3, "stride": 2}], "hidden": [64]},
            "support": {"low": -1.0, "high": 1.0, "sigma_value": 0.1},
            "target": {"rate": 1.0, "period_updates": 500},
        },
    )
    assert settings.network.convolutions[0].channels == 8
    assert read_settings(DqnSettings, to_mapping(settings)) == settings


def test_auto_support_follows_the_bounds_that_are_given(specs):
    learner = DqnLearner(DqnSettings(), specs["flat"], (0.0, 10.0), 0, "cpu")
    assert (learner.value_head.support.low, learner.value_head.support.high) == (-1.0, 11.0)
    with pytest.raises(ConfigError, match="support"):
        DqnLearner(DqnSettings(), specs["flat"], None, 0, "cpu")


# --- another device ---


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("name", ["flat", "nethack", "image"])
def test_cuda_learns_what_the_cpu_learns(specs, make_windows, name):
    spec = specs[name]
    on_cpu, on_cuda = (DqnLearner(settings_of(), spec, None, 0, device) for device in ("cpu", "cuda"))
    on_cuda.load_state_dict(on_cpu.state_dict())
    for seed in range(5):
        windows = make_windows(spec, 32, 3, np.random.default_rng(seed))
        for learner in (on_cpu, on_cuda):
            learner.update(windows, windows.reward)
    version = weights_version(0, 5)
    found, expected = on_cuda.weights(version).arrays, on_cpu.weights(version).arrays
    for key, array in expected.items():
        np.testing.assert_allclose(found[key], array, atol=2e-3, err_msg=key)
    resumed = DqnLearner(settings_of(), spec, None, 1, "cuda")
    resumed.load_state_dict(on_cuda.state_dict())
    windows = make_windows(spec, 32, 3, np.random.default_rng(9))
    for learner in (on_cuda, resumed):
        learner.update(windows, windows.reward)
    for key, array in on_cuda.weights(version).arrays.items():
        np.testing.assert_allclose(resumed.weights(version).arrays[key], array, atol=1e-6, err_msg=key)
