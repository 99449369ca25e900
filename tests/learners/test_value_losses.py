from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.stats import norm

from onibi.learners.gaussian_targets import hl_gauss_target
from onibi.learners.support import Support, SupportSettings, resolve_support
from onibi.learners.value_losses import ValueHead, cross_entropy, entropy, huber, mse

SUPPORT = Support(-10.0, 10.0, 51)


def target_of(value: float, sigma_bins: float) -> np.ndarray:
    """One target row in float64."""
    edges = torch.tensor(SUPPORT.edges)
    return hl_gauss_target(torch.tensor([value], dtype=torch.float64), edges, sigma_bins * SUPPORT.width)[0].numpy()


def reference(values: np.ndarray, edges: np.ndarray, sigma: float) -> np.ndarray:
    """The paper's formula in float64. Survival functions right of the value keep the far tail."""
    z = (edges - values[:, None]) / sigma
    below, above = np.diff(norm.cdf(z), axis=1), -np.diff(norm.sf(z), axis=1)
    mass = np.where(z[:, :-1] >= 0, above, below)
    return mass / (norm.cdf(z[:, -1:]) - norm.cdf(z[:, :1]))


@pytest.mark.parametrize("sigma_bins", [0.25, 0.75, 2.0])
def test_float32_targets_are_the_float64_formula_even_far_out(sigma_bins):
    sigma = sigma_bins * SUPPORT.width
    values = np.concatenate((np.linspace(-10, 10, 401), [9.999, -9.999, 0.0]))
    found = hl_gauss_target(
        torch.tensor(values, dtype=torch.float32), torch.tensor(SUPPORT.edges, dtype=torch.float32), sigma
    ).numpy()
    # The values as float32 holds them: a bin's mass is steep in the value.
    expected = reference(
        values.astype(np.float32).astype(np.float64), SUPPORT.edges.astype(np.float32).astype(float), sigma
    )
    np.testing.assert_allclose(found, expected, atol=3e-6)
    np.testing.assert_allclose(found.sum(axis=1), 1.0, atol=1e-6)
    # Far bins are small but right: differences of Φ in float32 would leave 0 below 6e-8.
    far = (expected > 1e-20) & (expected < 1e-8)
    assert far.sum() > 100
    np.testing.assert_allclose(found[far], expected[far], rtol=0.01)


@pytest.mark.parametrize(("sigma_bins", "error"), [(0.25, 9.3e-2), (0.5, 2.3e-3), (0.75, 4.8e-6)])
def test_the_interior_read_out_error_is_that_of_the_papers_figures(sigma_bins, error):
    values = np.linspace(-2, 2, 301)
    read = np.array([target_of(value, sigma_bins) @ SUPPORT.centres for value in values])
    assert np.abs(read - values).max() / SUPPORT.width == pytest.approx(error, rel=0.05)


@pytest.mark.parametrize(
    ("distance_bins", "bias_bins"), [(0, -0.69), (0.5, -0.37), (1, -0.155), (1.5, -0.047), (2, -0.0096), (3, -1.1e-4)]
)
def test_the_bias_near_an_edge_is_that_of_the_papers_figures(distance_bins, bias_bins):
    value = SUPPORT.high - distance_bins * SUPPORT.width
    bias = (target_of(value, 0.75) @ SUPPORT.centres - value) / SUPPORT.width
    assert bias == pytest.approx(bias_bins, rel=0.05)


def test_the_least_loss_at_three_quarters_of_a_bin_is_1_2003_nats():
    targets = torch.tensor(np.stack([target_of(value, 0.75) for value in np.linspace(-3, 3, 501)]))
    assert entropy(targets).mean().item() == pytest.approx(1.2003, abs=1e-4)


@pytest.mark.parametrize("value", [14.0, -1e6, math.inf])
def test_targets_outside_the_support_are_clamped_and_counted(value):
    head = ValueHead("hl_gauss", SUPPORT, 0.75 * SUPPORT.width, 1.0)
    terms = head.terms(torch.zeros(2, 51), torch.tensor([value, 3.0]))
    assert terms.clipped.tolist() == [True, False]
    assert torch.isfinite(terms.loss).all()
    edge = torch.tensor([math.copysign(10.0, value), 3.0])
    assert torch.equal(terms.loss, head.terms(torch.zeros(2, 51), edge).loss)


def test_cross_entropy_of_two_bins_is_as_by_hand():
    logits, probabilities = torch.tensor([[math.log(3.0), 0.0]]), torch.tensor([[0.5, 0.5]])
    # softmax = (¾, ¼): −½ log ¾ − ½ log ¼
    assert cross_entropy(logits, probabilities).item() == pytest.approx(-0.5 * math.log(0.75 * 0.25))


def test_the_gradient_of_hl_gauss_is_softmax_minus_target_and_stops_at_the_target():
    head = ValueHead("hl_gauss", SUPPORT, 0.75 * SUPPORT.width, 1.0)
    logits = torch.randn(4, 51, generator=torch.Generator().manual_seed(0), requires_grad=True)
    target = torch.tensor([-3.0, 0.0, 2.0, 9.0], requires_grad=True)
    head.terms(logits, target).loss.sum().backward()
    probabilities = hl_gauss_target(target, torch.tensor(SUPPORT.edges, dtype=torch.float32), 0.75 * SUPPORT.width)
    torch.testing.assert_close(logits.grad, torch.softmax(logits.detach(), 1) - probabilities)
    assert target.grad is None


def test_the_loss_equals_its_floor_where_the_prediction_is_the_target():
    head = ValueHead("hl_gauss", SUPPORT, 0.75 * SUPPORT.width, 1.0)
    target = torch.tensor([1.3, -4.0])
    edges = torch.tensor(SUPPORT.edges, dtype=torch.float32)
    logits = hl_gauss_target(target, edges, 0.75 * SUPPORT.width).clamp(min=1e-30).log()
    terms = head.terms(logits, target)
    torch.testing.assert_close(terms.loss, terms.floor)
    assert (terms.floor > 1.0).all()


def test_mse_and_huber_are_as_by_hand():
    prediction, target = torch.tensor([0.0, 0.0]), torch.tensor([0.5, 3.0])
    assert mse(prediction, target).tolist() == [0.125, 4.5]
    assert huber(prediction, target, 2.0).tolist() == [0.125, 4.0]  # ½·¼; 2(3 − 1)


@pytest.mark.parametrize("loss", [mse, lambda prediction, target: huber(prediction, target, 1.0)])
def test_a_scalar_loss_refuses_what_would_broadcast(loss):
    with pytest.raises(ValueError, match="prediction has shape"):
        loss(torch.zeros(4, 1), torch.zeros(4))
    with pytest.raises(ValueError, match="target has B = 1"):
        loss(torch.zeros(4), torch.zeros(1))


@pytest.mark.parametrize(
    ("support", "within_bins"),
    [(Support(-0.2, 1.8, 51), 0.5), (Support(-10, 10, 51), 0.01), (Support(-3, 60, 101), 0.5)],
)
def test_the_initial_bias_reads_as_the_value_zero(support, within_bins):
    head = ValueHead("hl_gauss", support, 0.75 * support.width, 1.0)
    assert abs(head.decode(head.initial_bias()).item()) < within_bins * support.width


@pytest.mark.parametrize("high", [1e2, 1e4, 1e6])
@pytest.mark.parametrize("loss", ["hl_gauss", "two_hot"])
def test_the_initial_bias_reads_as_the_value_zero_on_one_sided_symlog_bins_however_far_they_reach(high, loss):
    support = resolve_support(SupportSettings(spacing="symlog"), (0.0, high))
    head = ValueHead(loss, support, 0.75 * support.width, 1.0)
    at_zero = np.diff(support.centres)[np.abs(support.centres[:-1]).argmin()]
    assert abs(head.decode(head.initial_bias()).item()) < 0.55 * at_zero
    assert torch.isfinite(head.initial_bias()).all()


def test_the_mean_over_the_centres_is_the_value_read():
    head = ValueHead("hl_gauss", Support(0.0, 4.0, 4), 1.0, 1.0)  # centres ½, 1½, 2½, 3½
    logits = torch.tensor([[0.0, 0.0, -100.0, -100.0], [-100.0, -100.0, -100.0, 0.0]])
    assert head.decode(logits).tolist() == pytest.approx([1.0, 3.5])


def test_the_target_of_hl_gauss_carries_no_gradient():
    value = torch.tensor([0.5], requires_grad=True)
    assert not hl_gauss_target(value, torch.tensor(SUPPORT.edges, dtype=torch.float32), 0.3).requires_grad
