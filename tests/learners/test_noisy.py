from __future__ import annotations

import itertools
import math
import pickle

import numpy as np
import pytest
import torch

from onibi.learners.dqn import DqnLearner, DqnSettings, policy_factory
from onibi.learners.dqn_policy import NOISE, VALUES
from onibi.learners.exploration import ExplorationSettings
from onibi.learners.networks.mlp import MlpSettings
from onibi.learners.networks.noisy import NoisyLinear, NoisySettings
from onibi.learners.support import SupportSettings
from onibi.learners.value_losses import BINNED_LOSSES
from onibi.platform.policy import LaneRange, weights_version

NO_LADDER = ExplorationSettings(base=0.0)
LOSSES = ("mse", "hl_gauss", "c51", "quantile", "iqn")


def settings_of(loss="mse", **others):
    support = SupportSettings(low=-1.0, high=2.0, bins=21) if loss in BINNED_LOSSES else SupportSettings()
    given = {"noisy": NoisySettings(), "exploration": NO_LADDER, "network": MlpSettings(hidden=(16,))} | others
    return DqnSettings(value_loss=loss, support=support, **given)


def learner_of(spec, seed=0, **others):
    return DqnLearner(settings_of(**others), spec, None, seed, "cpu")


def scattered(learner):
    """Every parameter off its start, each its own way."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in learner._network.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.4)
    return learner


# --- the layer ---


def test_a_layer_of_two_inputs_by_hand():
    layer = NoisyLinear(2, 1, 0.5)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[1.0, 2.0]]))
        layer.bias.copy_(torch.tensor([0.5]))
        layer.weight_deviation.copy_(torch.tensor([[0.1, 0.2]]))
        layer.bias_deviation.copy_(torch.tensor([0.3]))
    noise = torch.tensor([[4.0, -9.0, 0.25]])  # f(ε): 2 and −3 into, ½ out
    # w = 1 + 0.1·½·2, 2 − 0.2·½·3 = 1.1, 1.7;  b = 0.5 + 0.3·½ = 0.65;  1.1·1 + 1.7·10 + 0.65
    assert layer(torch.tensor([[1.0, 10.0]]), noise).item() == pytest.approx(18.75, abs=1e-5)
    assert layer(torch.tensor([[1.0, 10.0]])).item() == 21.5  # by the means


@pytest.mark.parametrize("rows_of_noise", [1, 6])
def test_the_layer_is_the_one_with_noisy_weights_written_out(rows_of_noise):
    rng = np.random.default_rng(3)
    layer = NoisyLinear(5, 4, 0.7)
    features, noise = rng.normal(size=(6, 5)), rng.normal(size=(rows_of_noise, 9))
    mean, bias, deviation, bias_deviation = (parameter.detach().double().numpy() for parameter in layer.parameters())
    bias_deviation, deviation = bias_deviation + 0.1, deviation * rng.normal(size=deviation.shape)
    with torch.no_grad():
        layer.weight_deviation.copy_(torch.from_numpy(deviation))
        layer.bias_deviation.copy_(torch.from_numpy(bias_deviation))
    found = layer(torch.from_numpy(features).float(), torch.from_numpy(noise).float())
    for row in range(6):
        shaped = [math.copysign(math.sqrt(abs(e)), e) for e in noise[row % rows_of_noise]]
        weight = mean + deviation * np.outer(shaped[5:], shaped[:5])
        expected = weight @ features[row] + bias + bias_deviation * np.array(shaped[5:])
        np.testing.assert_allclose(found[row].detach().numpy(), expected, rtol=1e-4, atol=1e-5)


def test_the_noise_has_mean_0_and_the_variance_of_the_factorised_gaussian():
    layer, features = NoisyLinear(8, 3, 0.5), torch.linspace(-1.0, 2.0, 8)
    draws = 200_000
    noise = torch.randn(draws, layer.noise_size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        values, mean = layer(features.expand(draws, -1), noise), layer(features[None])
    # E f² = E|ε| = √(2/π) =: m;  Var y = m (m Σ σ²x² + σ²)  with σ = ½/√8
    m, variance = math.sqrt(2 / math.pi), 0.25 / 8
    expected = m * (m * variance * float((features**2).sum()) + variance)
    assert values.var(dim=0).numpy() == pytest.approx(np.full(3, expected), rel=0.03)
    assert (values.mean(dim=0) - mean[0]).abs().max() < 5 * math.sqrt(expected / draws)


def test_deviations_start_at_sigma_over_the_root_of_the_width_and_are_learnt():
    layer = NoisyLinear(16, 3, 0.5)
    assert torch.equal(layer.weight_deviation, torch.full((3, 16), 0.125))  # ½/√16
    assert torch.equal(layer.bias_deviation, torch.full((3,), 0.125))
    assert layer.mean_sigma().item() == pytest.approx(0.5)
    assert layer.weight.abs().max() <= 0.25  # uniform in ± 1/√16
    layer(torch.ones(2, 16), torch.randn(2, 19)).sum().backward()
    assert all(parameter.grad is not None for parameter in layer.parameters())


@pytest.mark.parametrize("shape", [(3, 19), (2, 18), (19,)])
def test_noise_of_another_shape_is_refused(shape):
    with pytest.raises(ValueError, match="noise"):
        NoisyLinear(16, 3, 0.5)(torch.ones(2, 16), torch.zeros(shape))


# --- the network, in torch and in NumPy ---


@pytest.mark.parametrize(("loss", "dueling"), list(itertools.product(LOSSES, [True, False])))
def test_numpy_values_under_noise_are_torch_values_under_it(specs, make_observation, loss, dueling):
    learner = scattered(learner_of(specs["flat"], loss=loss, dueling=dueling))
    policy = policy_factory(learner.settings, specs["flat"])(LaneRange(0, 12, 12))
    policy.load(learner.weights(weights_version(0, 1)))
    observation = make_observation(specs["flat"], 12, np.random.default_rng(4))
    size = learner._network.noise_size
    assert policy._forward.noise_size == size > 0
    noise = np.random.default_rng(5).standard_normal((12, size), np.float32)
    tensors = {name: torch.from_numpy(values) for name, values in observation.items()}
    with torch.no_grad():
        expected = learner._network.action_values(tensors, torch.from_numpy(noise)).numpy()
        means = learner._network.action_values(tensors).numpy()
    np.testing.assert_allclose(policy._forward({**observation, NOISE: noise})[VALUES], expected, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(policy._forward(observation)[VALUES], means, rtol=1e-3, atol=1e-4)
    assert np.abs(expected - means).mean() > 0.01


def test_quantiles_of_a_row_share_its_noise(specs, make_observation):
    network = scattered(learner_of(specs["flat"], loss="iqn", quantiles=4))._network
    observation = make_observation(specs["flat"], 3, np.random.default_rng(0))
    tensors = {name: torch.from_numpy(values) for name, values in observation.items()}
    noise = torch.randn(3, network.noise_size)
    fractions = torch.full((3, 4), 0.3)
    with torch.no_grad():
        together = network(tensors, fractions, noise)
        alone = [
            network({"observation": tensors["observation"][row, None]}, fractions[:1], noise[row, None])
            for row in range(3)
        ]
    torch.testing.assert_close(together, torch.cat(alone))
    assert torch.equal(together[:, :, 0], together[:, :, 3])


# --- acting ---


@pytest.mark.parametrize("name", ["flat", "grid"])
def test_explorers_draw_noise_anew_for_each_lane_and_step_and_evaluations_act_by_the_means(
    specs, make_observation, name
):
    spec = specs[name]
    settings = DqnSettings(value_loss="mse", noisy=NoisySettings(sigma=3.0), exploration=NO_LADDER)
    learner = DqnLearner(settings, spec, None, 0, "cpu")
    factory = pickle.loads(pickle.dumps(policy_factory(settings, spec)))
    explorer, greedy = factory(LaneRange(0, 64, 64)), factory(None)
    for policy in (explorer, greedy):
        policy.load(learner.weights(weights_version(0, 1)))
    one = make_observation(spec, 1, np.random.default_rng(0))
    observation = {key: np.repeat(values, 64, axis=0) for key, values in one.items()}  # the same in every lane
    rng = np.random.default_rng(1)
    first, second = (explorer.act(observation, None, rng).action for _ in range(2))
    assert len(set(first.tolist())) > 1
    assert (first != second).any()
    tensors = {key: torch.from_numpy(values) for key, values in observation.items()}
    with torch.no_grad():
        best = learner._network.action_values(tensors).argmax(dim=1)
    assert greedy.act(observation, None, rng).action.tolist() == best.tolist()


def test_without_noise_the_policy_draws_no_more_random_numbers_than_before(specs, make_observation):
    settings = settings_of(noisy=None)
    policy = policy_factory(settings, specs["flat"])(LaneRange(0, 6, 6))
    policy.load(DqnLearner(settings, specs["flat"], None, 0, "cpu").weights(weights_version(0, 1)))
    rng, other = np.random.default_rng(0), np.random.default_rng(0)
    policy.act(make_observation(specs["flat"], 6, np.random.default_rng(1)), None, rng)
    other.random(6), other.integers(3, size=6)
    assert rng.bit_generator.state == other.bit_generator.state


# --- learning ---


def test_each_update_draws_noise_for_prediction_target_and_choice(specs):
    learner = learner_of(specs["flat"])
    first, second = (learner._draws.draw(5) for _ in range(2))
    assert set(first) == {"noise", "target_noise", "chooser_noise"}
    assert all(numbers.shape == (1, learner._network.noise_size) for numbers in first.values())
    assert len({tuple(numbers.flatten().tolist()) for numbers in (*first.values(), *second.values())}) == 6


@pytest.mark.parametrize("loss", ["mse", "c51"])
def test_prediction_target_and_choice_are_each_made_under_noise_of_their_own(specs, make_windows, loss):
    learner = scattered(learner_of(specs["flat"], loss=loss, n_steps=1, discount=0.5))
    learner._target.load_state_dict(learner._network.state_dict())  # so that noise alone tells them apart
    windows = make_windows(specs["flat"], 24, 1, np.random.default_rng(0))
    inputs = learner._inputs(windows, windows.reward)
    batch, rows = inputs["batch"], torch.arange(24)
    with torch.no_grad():
        _, learnt = learner._losses(inputs)
        values = learner._network.action_values(inputs["bootstrap"], batch["target_noise"])
        best = learner._network.action_values(inputs["bootstrap"], batch["chooser_noise"]).argmax(dim=1)
        taken = learner._network(inputs["observation"], None, batch["noise"])[rows, batch["action"]]
    assert (best != values.argmax(dim=1)).any()
    torch.testing.assert_close(learnt.target, batch["reward"][:, 0] + 0.5 * values[rows, best], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(learnt.prediction, taken)


@pytest.mark.parametrize("loss", LOSSES)
def test_a_noisy_learner_resumes_bit_for_bit(specs, make_windows, loss):
    learners = [learner_of(specs["flat"], seed=seed, loss=loss) for seed in (0, 1)]
    batches = [make_windows(specs["flat"], 16, 3, np.random.default_rng(seed)) for seed in range(4)]
    for windows in batches[:2]:
        learners[0].update(windows, windows.reward)
    learners[1].load_state_dict(learners[0].state_dict())
    for learner, windows in itertools.product(learners, batches[2:]):
        learner.update(windows, windows.reward)
    states = [learner.state_dict() for learner in learners]
    assert [name for name in states[0] if not torch.equal(states[0][name], states[1][name])] == []
    assert "rng.noise" in states[0]


def test_what_noise_is_left_is_a_metric_and_noise_that_costs_is_unlearnt(specs, make_windows):
    learner = learner_of(specs["flat"], metrics_period_updates=1, learning_rate=3e-3)
    windows = make_windows(specs["flat"], 64, 3, np.random.default_rng(0))
    windows.continues[:, 0], reward = 0.0, np.ones((64, 3), np.float32)  # every value is 1: noise only does harm
    sigmas = [learner.update(windows, reward).metrics["noise_sigma"] for _ in range(400)]
    assert sigmas[0] == pytest.approx(0.5, abs=0.01)
    assert sigmas[-1] < 0.3
