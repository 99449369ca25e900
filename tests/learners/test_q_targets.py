from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from onibi.learners.dqn import DqnLearner, DqnSettings
from onibi.learners.learner import Update
from onibi.learners.q_targets import bootstrap_distribution, bootstrap_value, masked_values, replay_priorities
from onibi.learners.support import Support, SupportSettings
from onibi.learners.value_losses import BINNED_LOSSES, ValueHead
from onibi.platform.replay.samplers.draws import PrioritySettings

VALUES = torch.tensor([[1.0, 5.0, 3.0], [2.0, 0.0, 4.0]])
CHOOSER = torch.tensor([[9.0, 0.0, 1.0], [0.0, 7.0, 6.0]])
LEAST = 1e-6


def head_of(name):
    if name in BINNED_LOSSES:
        return ValueHead(name, Support(-1.0, 1.0, 5), 0.3, 1.0)
    return ValueHead(name, None, 0.0, 1.0, 4)


# --- bootstraps and masks ---


def test_the_chooser_picks_and_the_values_pay():
    assert bootstrap_value(VALUES, CHOOSER, 0.0).tolist() == [1.0, 0.0]
    assert bootstrap_value(VALUES, VALUES, 0.0).tolist() == [5.0, 4.0]


def test_a_masked_action_is_never_bootstrapped_from():
    allowed = torch.tensor([[0, 1, 1], [1, 0, 0]], dtype=torch.uint8)
    assert bootstrap_value(VALUES, CHOOSER, 0.0, allowed).tolist() == [3.0, 2.0]
    softened = bootstrap_value(VALUES, CHOOSER, 1 / math.log(3), allowed)  # odds 3^Q: 1 : 3 between the last two
    assert softened.tolist() == pytest.approx([0.25 * 5 + 0.75 * 3, 2.0])


def test_a_row_that_allows_nothing_is_left_as_it_is():
    allowed = torch.tensor([[0, 0, 0], [0, 1, 1]])
    assert bootstrap_value(VALUES, CHOOSER, 0.0, allowed).tolist() == [1.0, 0.0]
    assert masked_values(CHOOSER, allowed).tolist() == [[9.0, 0.0, 1.0], [-math.inf, 7.0, 6.0]]


@pytest.mark.parametrize("name", ["c51", "quantile"])
@pytest.mark.parametrize("temperature", [0.0, 0.5])
def test_the_distributions_mean_is_the_bootstrap_value_under_a_mask(name, temperature):
    head, generator = head_of(name), torch.Generator().manual_seed(0)
    outputs = torch.randn(8, 3, head.outputs, generator=generator)
    chooser = torch.randn(8, 3, generator=generator)
    allowed = torch.randint(2, (8, 3), generator=generator)
    values, probabilities = bootstrap_distribution(head, outputs, chooser, temperature, allowed)
    expected = bootstrap_value(head.decode(outputs), chooser, temperature, allowed)
    torch.testing.assert_close((values * probabilities).sum(dim=1), expected)


def test_shapes_that_would_broadcast_are_refused():
    with pytest.raises(ValueError, match="chooser"):
        bootstrap_value(VALUES, CHOOSER[:, :2], 0.0)
    with pytest.raises(ValueError, match="allowed"):
        masked_values(VALUES, torch.ones(3))


# --- priorities ---


@pytest.mark.parametrize("name", ["mse", "huber"])
def test_the_priority_of_a_regression_is_the_size_of_its_error(name):
    head, prediction, target = head_of(name), torch.tensor([[1.0], [-2.0], [0.5]]), torch.tensor([4.0, 1.0, 0.5])
    terms = head.terms(prediction, target)
    found = replay_priorities(head, terms.loss, terms.floor, prediction, target)
    assert found.tolist() == pytest.approx([3.0 + LEAST, 3.0 + LEAST, LEAST])


def test_the_priority_of_quantiles_is_the_error_of_their_mean_and_not_their_loss():
    head = head_of("quantile")
    prediction = torch.tensor([[-1.0, -1.0, 1.0, 1.0], [0.0, 0.0, 0.0, 0.0]])
    values, probabilities = torch.tensor([[-1.0, 1.0], [2.0, 2.0]]), torch.full((2, 2), 0.5)
    terms = head.distribution_terms(prediction, None, values, probabilities)
    found = replay_priorities(head, terms.loss, terms.floor, prediction, (values * probabilities).sum(1))
    assert terms.loss[0] > 0.05  # a coin learnt to the end still costs
    assert found.tolist() == pytest.approx([LEAST, 2.0 + LEAST])


@pytest.mark.parametrize("name", ["hl_gauss", "two_hot", "c51"])
def test_the_priority_of_a_classification_is_the_divergence_from_its_target(name):
    head, generator = head_of(name), torch.Generator().manual_seed(0)
    prediction, target = torch.randn(6, 5, generator=generator), torch.linspace(-0.8, 0.9, 6)
    if name == "c51":
        values, probabilities = target[:, None], torch.ones(6, 1)
        terms = head.distribution_terms(prediction, None, values, probabilities)
    else:
        terms = head.terms(prediction, target)
    found = replay_priorities(head, terms.loss, terms.floor, prediction, target).numpy()
    encoded = target_probabilities(name, target.double().numpy())
    logits = prediction.double().numpy()
    log_q = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    log_p = np.log(np.where(encoded > 0, encoded, 1.0))
    divergence = (encoded * (log_p - log_q)).sum(1)
    np.testing.assert_allclose(found, divergence + LEAST, rtol=1e-4, atol=1e-6)


def target_probabilities(name, targets):
    """[B, 5] written out: shares of the two atoms around y, or a Gaussian of σ 0.3 over the bins."""
    encoded = np.zeros((len(targets), 5))
    for row, y in enumerate(targets):
        if name == "hl_gauss":
            edges = [0.5 * (1 + math.erf((edge - y) / (0.3 * math.sqrt(2)))) for edge in np.linspace(-1, 1, 6)]
            encoded[row] = np.diff(edges) / (edges[-1] - edges[0])
        else:
            place = (y + 1) / 0.5
            below = min(int(place), 3)
            encoded[row, below], encoded[row, below + 1] = below + 1 - place, place - below
    return encoded


def test_a_prediction_that_is_its_target_has_the_least_priority_above_0():
    head, target = head_of("hl_gauss"), torch.tensor([-0.4, 0.2])
    prediction = head._encode(target, head.centres).log()
    terms = head.terms(prediction, target)
    found = replay_priorities(head, terms.loss, terms.floor, prediction, target)
    assert (found > 0).all()
    assert found.max() < 1e-5


# --- in a learner ---


def learner_of(loss, spec, **others):
    support = SupportSettings(low=-1.0, high=2.0, bins=21) if loss in BINNED_LOSSES else SupportSettings()
    return DqnLearner(DqnSettings(value_loss=loss, support=support, **others), spec, None, 0, "cpu")


@pytest.mark.parametrize("loss", ["hl_gauss", "two_hot", "mse", "huber", "c51", "quantile", "iqn"])
def test_each_update_tells_a_priority_for_each_row_drawn(specs, make_windows, loss):
    windows = make_windows(specs["flat"], 32, 3, np.random.default_rng(0))
    prioritized = learner_of(loss, specs["flat"], priorities=PrioritySettings())
    told = prioritized.update(windows, windows.reward).priorities
    assert (told.shape, told.dtype) == ((32,), np.float32)
    assert (told > 0).all()
    assert told.std() > 0
    uniform = learner_of(loss, specs["flat"])
    assert uniform.update(windows, windows.reward) == Update()


def test_priorities_are_the_td_errors_before_the_update(specs, make_windows):
    windows = make_windows(specs["flat"], 16, 3, np.random.default_rng(0))
    windows.continues[:, 0] = 0.0  # y = r₁
    learner = learner_of("mse", specs["flat"], priorities=PrioritySettings())
    with torch.no_grad():
        values = learner._network.action_values({"observation": torch.from_numpy(windows.observation["observation"])})
    expected = np.abs(windows.reward[:, 0] - values.numpy()[np.arange(16), windows.action])
    told = learner.update(windows, windows.reward).priorities
    np.testing.assert_allclose(told, expected + LEAST, rtol=1e-4, atol=1e-6)


def test_a_batch_that_is_not_finite_leaves_all_priorities_as_they_are(specs, make_windows):
    windows = make_windows(specs["flat"], 16, 3, np.random.default_rng(0))
    reward = windows.reward.copy()
    reward[3, 0] = math.nan
    assert learner_of("mse", specs["flat"], priorities=PrioritySettings()).update(windows, reward).priorities is None


def test_what_a_prioritized_learner_needs_are_prioritized_windows():
    priorities = PrioritySettings(exponent=0.5, importance_anneal_updates=100)
    draws = DqnLearner.needs(DqnSettings(priorities=priorities, batch_size=7)).draws
    assert (draws.n_steps, draws.batch_size, draws.priorities) == (3, 7, priorities)
    assert DqnLearner.needs(DqnSettings()).draws.priorities is None
