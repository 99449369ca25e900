"""Value losses within a DQN learner: the targets that each is given, weights, state, and the policies that read it."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from onibi.learners.dqn import DqnLearner, DqnSettings, policy_factory
from onibi.learners.dqn_policy import VALUES, NumpyQForward
from onibi.learners.exploration import ExplorationSettings
from onibi.learners.networks.mlp import MlpSettings
from onibi.learners.support import SupportSettings
from onibi.learners.value_losses import BINNED_LOSSES
from onibi.platform.errors import CheckpointError
from onibi.platform.policy import weights_version

LOSSES = ("hl_gauss", "two_hot", "mse", "huber", "c51", "quantile", "iqn")
ADDED = ("two_hot", "c51", "quantile", "iqn")


def settings_of(loss, **others):
    support = SupportSettings(low=-1.0, high=2.0, bins=31) if loss in BINNED_LOSSES else SupportSettings()
    return DqnSettings(**{"value_loss": loss, "support": support} | others)


def learner_of(loss, spec, seed=0, **others):
    return DqnLearner(settings_of(loss, **others), spec, None, seed, "cpu")


def scatter(learner):
    """Move every parameter of network and target off its start, each its own way."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in [*learner._network.parameters(), *learner._target.parameters()]:
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.5)


def differing(first, second):
    return [name for name in first if not torch.equal(first[name], second[name])]


# --- targets ---


@pytest.mark.parametrize("loss", ["c51", "quantile"])
@pytest.mark.parametrize("double", [True, False])
def test_the_target_is_the_chosen_actions_distribution_moved_by_the_n_step_return(specs, make_windows, loss, double):
    spec, windows = specs["flat"], make_windows(specs["flat"], 24, 2, np.random.default_rng(0))
    windows.continues[:8, 1] = 0.0  # terminated in the second step
    learner = learner_of(loss, spec, n_steps=2, discount=0.5, double=double)
    scatter(learner)
    inputs = learner._inputs(windows, windows.reward)
    values, probabilities = (tensor.numpy() for tensor in learner._target_distribution(inputs))
    observation = {"observation": torch.from_numpy(windows.bootstrap_observation["observation"])}
    with torch.no_grad():
        outputs = learner._target(observation)
        own, other = learner._target.action_values(observation), learner._network.action_values(observation)
        best = (other if double else own).argmax(1)
        softmax = torch.softmax(outputs, -1)
    assert (own.argmax(1) != other.argmax(1)).sum() > 3  # or double would say nothing
    centres = np.linspace(-1.0, 2.0, 31)
    for row in range(24):
        atoms = centres if loss == "c51" else outputs[row, best[row]].numpy()
        factor = 0.0 if row < 8 else 0.25
        moved = windows.reward[row, 0] + 0.5 * windows.reward[row, 1] + factor * atoms
        np.testing.assert_allclose(values[row], moved, atol=1e-6)
        expected = softmax[row, best[row]].numpy() if loss == "c51" else np.full(32, 1 / 32)
        np.testing.assert_allclose(probabilities[row], expected, atol=1e-6)


@pytest.mark.parametrize("loss", ["c51", "quantile"])
@pytest.mark.parametrize("temperature", [0.0, 0.3])
@pytest.mark.parametrize("double", [True, False])
def test_the_targets_mean_is_the_scalar_target_of_the_same_network(specs, make_windows, loss, temperature, double):
    spec, windows = specs["flat"], make_windows(specs["flat"], 32, 3, np.random.default_rng(0))
    windows.continues[:4, 0], windows.used[:4, 1:] = 0.0, False
    windows.used[4:8, 2], windows.reward[4:8, 2] = False, 0.0
    learner = learner_of(loss, spec, double=double, exploration=ExplorationSettings(temperature=temperature))
    scatter(learner)
    values, probabilities = learner._target_distribution(learner._inputs(windows, windows.reward))
    torch.testing.assert_close(probabilities.sum(1), torch.ones(32))
    mean = (values * probabilities).sum(1)
    scalar = learner._target_values(learner._inputs(windows, windows.reward))
    torch.testing.assert_close(mean, scalar, atol=1e-4, rtol=1e-4)


def test_iqn_draws_new_fractions_for_prediction_and_target(specs, make_windows):
    learner = learner_of("iqn", specs["flat"], quantiles=8)
    drawn = learner._draws.draw(5)
    first, second = drawn["fractions"], drawn["target_fractions"]
    assert first.shape == (5, 8)
    assert not torch.equal(first, second)
    assert ((first >= 0) & (first <= 1)).all()
    scatter(learner)
    windows = make_windows(specs["flat"], 16, 3, np.random.default_rng(0))
    targets = [learner._target_distribution(learner._inputs(windows, windows.reward))[0] for _ in range(2)]
    assert not torch.equal(*targets)


# --- weights, metrics, state ---


@pytest.mark.parametrize("loss", LOSSES)
def test_rows_of_weight_zero_do_not_teach_and_a_doubled_weight_teaches_twice(specs, make_windows, loss):
    windows = make_windows(specs["flat"], 16, 3, np.random.default_rng(1))

    def gradient(weight, last_rewards):
        windows.weight[:], reward = weight, np.full((16, 3), 0.1, np.float32)
        reward[8:] = last_rewards
        learner = learner_of(loss, specs["flat"], gradient_norm=1e9)
        learner.update(windows, reward)
        return torch.cat([parameter.grad.flatten() for parameter in learner._network.parameters()])

    half = np.repeat([1.0, 0.0], 8)
    assert torch.equal(gradient(half, 0.05), gradient(half, 0.3))
    assert not torch.equal(gradient(np.ones(16), 0.05), gradient(np.ones(16), 0.3))
    once, twice = gradient(np.ones(16), 0.05), gradient(np.full(16, 2.0), 0.05)
    torch.testing.assert_close(twice, 2 * once, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("loss", ADDED)
def test_a_restored_learner_goes_on_bit_for_bit(specs, make_windows, loss):
    first, second = (learner_of(loss, specs["flat"], seed) for seed in (0, 1))
    batches = [make_windows(specs["flat"], 32, 3, np.random.default_rng(seed)) for seed in range(4)]
    for windows in batches[:2]:
        first.update(windows, windows.reward)
    second.load_state_dict(first.state_dict())
    for learner in (first, second):
        for windows in batches[2:]:
            learner.update(windows, windows.reward)
    assert differing(first.state_dict(), second.state_dict()) == []
    assert ("rng.fractions" in first.state_dict()) == (loss == "iqn")


def test_a_state_without_the_fractions_generator_is_refused_by_iqn(specs):
    state = learner_of("iqn", specs["flat"]).state_dict()
    del state["rng.fractions"]
    with pytest.raises(CheckpointError, match=r"rng\.fractions"):
        learner_of("iqn", specs["flat"]).load_state_dict(state)


@pytest.mark.parametrize("loss", ADDED)
def test_metrics_tell_the_mean_target_and_what_lay_outside(specs, make_windows, loss):
    learner = learner_of(loss, specs["flat"], metrics_period_updates=1)
    windows = make_windows(specs["flat"], 32, 3, np.random.default_rng(0))
    windows.continues[:, 0] = 0.0  # target = first reward
    reward = np.zeros((32, 3), np.float32)
    reward[:8, 0] = 5.0  # outside of [−1, 2]
    metrics = learner.update(windows, reward).metrics
    assert metrics["target_mean"] == pytest.approx(1.25, abs=1e-5)
    assert metrics["clipped_share"] == (0.25 if loss in BINNED_LOSSES else 0.0)
    assert metrics["td_abs"] == pytest.approx(1.25, abs=0.05)  # heads start at 0
    assert abs(metrics["q_mean"]) < 0.05
    assert 0 < metrics["loss_above_floor"] <= metrics["loss"]


@pytest.mark.parametrize("loss", ["c51", "quantile"])
def test_the_target_mean_that_is_told_weights_values_by_their_probabilities(specs, make_windows, loss):
    learner = learner_of(loss, specs["flat"], metrics_period_updates=1)
    scatter(learner)
    windows = make_windows(specs["flat"], 32, 3, np.random.default_rng(0))
    expected = learner._target_values(learner._inputs(windows, windows.reward)).mean().item()
    assert learner.update(windows, windows.reward).metrics["target_mean"] == pytest.approx(expected, abs=1e-4)


# --- policies ---


@pytest.mark.parametrize("loss", ADDED)
@pytest.mark.parametrize("dueling", [True, False])
@pytest.mark.parametrize("name", ["mixed", "grid"])
def test_policies_in_numpy_and_torch_read_the_learners_values(
    specs, make_windows, make_observation, loss, dueling, name
):
    spec = specs[name]
    network = {"network": MlpSettings(hidden=(17, 9))} if name == "mixed" else {}
    learner = learner_of(loss, spec, dueling=dueling, **network)
    scatter(learner)
    policy = policy_factory(learner.settings, spec)(None)
    assert isinstance(policy._forward, NumpyQForward) == (name == "mixed")
    policy.load(learner.weights(weights_version(0, 1)))
    observation = make_observation(spec, 50, np.random.default_rng(9))
    tensors = {key: torch.from_numpy(values) for key, values in observation.items()}
    with torch.no_grad():
        expected = learner._network.action_values(tensors).numpy()
        read = learner.value_head.decode(learner._network(tensors)).numpy()
    found = policy._forward(observation)[VALUES]
    np.testing.assert_allclose(expected, read, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
    assert expected.std(axis=1).mean() > 0.01  # or equality would say little
    actions = policy.act(observation, None, np.random.default_rng(0)).action
    assert (actions == expected.argmax(axis=1)).mean() > 0.95  # near ties may differ
