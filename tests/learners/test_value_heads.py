"""Two-hot and symlog targets, the heads of all losses, and pairs that do not fit. HL-Gauss: test_value_losses.py."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from onibi.learners.distributional_losses import quantile_huber
from onibi.learners.gaussian_targets import centred_hl_gauss_target, hl_gauss_target
from onibi.learners.support import LEAST_SYMLOG_SIGMA, Support, SupportSettings
from onibi.learners.value_losses import (
    ValueHead,
    build_value_head,
    check_scalar_loss,
    two_hot_target,
)
from onibi.learners.value_rescaling import symexp, symlog
from onibi.platform.errors import ConfigError

# --- two_hot ---


def test_two_hot_shares_a_value_between_its_neighbours():
    atoms = torch.tensor([-1.0, 0.0, 2.0])
    shares = two_hot_target(torch.tensor([0.5, -1.0, 2.0, 7.0]), atoms)
    assert shares.tolist() == [[0.0, 0.75, 0.25], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0], [0.0, 0.0, 1.0]]


@pytest.mark.parametrize("spacing", ["linear", "symlog"])
def test_two_hot_reads_back_the_target_to_a_millionth_of_the_range(spacing):
    support = Support(-10.0, 10.0, 51, spacing)
    values = torch.linspace(-10, 10, 4001)
    head = ValueHead("two_hot", support, 0.0, 1.0)
    read = two_hot_target(values, head.centres) @ head.centres
    torch.testing.assert_close(read, values, atol=1e-6 * 20, rtol=0)
    atoms, exact = torch.tensor(support.atoms), values.double().clamp(support.atoms[0], support.atoms[-1])
    torch.testing.assert_close(two_hot_target(exact, atoms) @ atoms, exact, atol=1e-12, rtol=0)


def test_the_value_learnt_by_two_hot_is_the_mean_of_noisy_targets():
    head, rng = ValueHead("two_hot", Support(-50.0, 50.0, 51, "symlog"), 0.0, 1.0), np.random.default_rng(0)
    noise = torch.tensor(5.0 * rng.normal(size=20_000), dtype=torch.float32)
    targets = torch.cat((2.0 + noise, 2.0 - noise))
    # The cross-entropy is least where softmax(logits) is the mean target: that is what is read.
    assert head.decode(two_hot_target(targets, head.centres).mean(0).log()).item() == pytest.approx(2.0, abs=1e-3)


@pytest.mark.parametrize("sigma", [{"sigma_value": 0.75}, {"sigma_bins": 15.0}])
def test_a_gaussian_too_wide_for_the_support_is_refused_as_all_values_would_be_read_near_its_middle(sigma):
    support = SupportSettings(low=0.0, high=1.2, **sigma)  # 0.75 of a bin was meant
    with pytest.raises(ConfigError, match=r"51 bins from 0 to 1.2 .* up to .* bins away .* Lower support.sigma_bins"):
        build_value_head("hl_gauss", support, None, None, None)


@pytest.mark.parametrize(("bins", "sigma_bins"), [(3, 0.75), (21, 1e-3), (21, 2.0), (51, 0.25), (51, 4.0), (101, 9.0)])
def test_gaussians_that_the_support_holds_are_not_refused(bins, sigma_bins):
    support = SupportSettings(low=-3.0, high=9.0, bins=bins, sigma_bins=sigma_bins)
    assert build_value_head("hl_gauss", support, None, None, None).sigma == pytest.approx(sigma_bins * 12 / bins)


# --- symlog bins ---


@pytest.mark.parametrize(("low", "high", "bins"), [(-10.0, 10.0, 51), (-1000.0, 1000.0, 101), (0.0, 1e4, 51)])
@pytest.mark.parametrize("sigma_bins", [LEAST_SYMLOG_SIGMA, 0.75])
def test_hl_gauss_over_symlog_bins_reads_back_the_target_in_value_units(low, high, bins, sigma_bins):
    support = Support(low, high, bins, "symlog")
    places = torch.linspace(float(support.edges[3]), float(support.edges[-4]), 2001, dtype=torch.float64)
    values, sigma = symexp(places), sigma_bins * support.width
    edges, centres = torch.tensor(support.edges), torch.tensor(support.centres)
    read = centred_hl_gauss_target(values, edges, centres, sigma) @ centres
    bin_widths = support.width * (1 + values.abs())
    assert ((read - values).abs() / bin_widths).max() < 1e-3
    uncentred = hl_gauss_target(places, edges, sigma) @ centres
    assert ((uncentred - values).abs() / bin_widths).max() > 0.01  # what the centring is for


@pytest.mark.parametrize(
    ("reach", "bins", "sigma_bins"),
    [(1e4, 11, None), (3333.0, 15, None), (1e3, 51, 3.0), (1e6, 21, None), (1e6, 11, LEAST_SYMLOG_SIGMA)],
)
def test_symlog_bins_too_wide_to_find_a_gaussian_over_are_refused(reach, bins, sigma_bins):
    support = SupportSettings(low=-reach, high=reach, bins=bins, spacing="symlog", sigma_bins=sigma_bins)
    with pytest.raises(ConfigError, match=rf"{bins} symlog bins .* would miss its target by .* Raise support.bins"):
        build_value_head("hl_gauss", support, None, None, None)
    build_value_head("two_hot", replace(support, sigma_bins=None), None, None, None)  # needs no Gaussian


@pytest.mark.parametrize(("low", "high"), [(-1.0, 1.0), (-1e4, 1e4), (-1e6, 1e6), (0.0, 1e8), (-1e5, 10.0)])
def test_a_head_over_symlog_bins_that_is_not_refused_decodes_to_its_targets(low, high):
    head = build_value_head("hl_gauss", SupportSettings(low=low, high=high, spacing="symlog"), None, None, None)
    places = torch.linspace(*(float(head.support.edges[at]) for at in (3, -4)), 1001)
    learnt = head._encode(symexp(places), head.centres).log()
    assert ((symlog(head.decode(learnt)) - places).abs() / head.support.width).max() < 0.01


def test_symlog_bins_read_the_mean_of_noisy_targets_where_symlog_targets_do_not():
    support = Support(-50.0, 50.0, 51, "symlog")
    head, rng = ValueHead("hl_gauss", support, 0.75 * support.width, 1.0), np.random.default_rng(0)
    noise = torch.tensor(5.0 * rng.normal(size=20_000), dtype=torch.float32)
    targets = torch.cat((2.0 + noise, 2.0 - noise))
    edges = torch.tensor(support.edges, dtype=torch.float32)
    learnt = centred_hl_gauss_target(targets, edges, head.centres, head.sigma).mean(0)
    assert head.decode(learnt.log()).item() == pytest.approx(2.0, abs=5e-3)
    assert symexp(symlog(targets).mean()).item() == pytest.approx(0.80, abs=0.05)


def test_symlog_hl_gauss_clips_by_the_values_of_its_ends_and_teaches_by_its_own_target():
    support = Support(-10.0, 100.0, 41, "symlog")
    head = ValueHead("hl_gauss", support, 0.75 * support.width, 1.0)
    logits = torch.zeros(5, 41, requires_grad=True)
    target = torch.tensor([-10.5, -9.5, 3.0, 99.0, 101.0])
    terms = head.terms(logits, target)
    assert terms.clipped.tolist() == [True, False, False, False, True]
    terms.loss.sum().backward()
    edges = torch.tensor(support.edges, dtype=torch.float32)
    expected = centred_hl_gauss_target(target, edges, head.centres, head.sigma)
    torch.testing.assert_close(logits.grad, torch.full((5, 41), 1 / 41) - expected)
    assert abs(head.decode(head.initial_bias()).item()) < support.width


# --- heads of the other losses ---


@pytest.mark.parametrize("name", ["two_hot", "c51"])
def test_a_head_on_atoms_starts_at_zero_and_reads_the_mean_over_its_atoms(name):
    head = ValueHead(name, Support(-1.0, 3.0, 5), 0.0, 1.0)
    assert head.centres.tolist() == [-1.0, 0.0, 1.0, 2.0, 3.0]
    assert abs(head.decode(head.initial_bias()).item()) < 0.01
    logits = torch.tensor([[0.0, 0.0, -100.0, -100.0, 0.0]])
    assert head.decode(logits).item() == pytest.approx(2 / 3)  # (−1 + 0 + 3)/3


def test_two_hot_clips_outside_of_its_atoms_and_its_loss_is_the_cross_entropy():
    head = ValueHead("two_hot", Support(-1.0, 3.0, 5), 0.0, 1.0)
    terms = head.terms(torch.zeros(3, 5), torch.tensor([-1.5, 0.25, 3.5]))
    assert terms.clipped.tolist() == [True, False, True]
    assert terms.loss.tolist() == pytest.approx([math.log(5)] * 3)
    assert terms.floor.tolist() == pytest.approx([0.0, -0.75 * math.log(0.75) - 0.25 * math.log(0.25), 0.0])


def test_quantiles_are_read_by_their_mean_and_start_at_zero():
    head = ValueHead("quantile", None, 0.0, 1.0, 4)
    assert head.decode(torch.tensor([[0.0, 1.0, 2.0, 5.0]])).tolist() == [2.0]
    assert head.initial_bias().tolist() == [0.0] * 4
    assert ValueHead("iqn", None, 0.0, 1.0, 4).initial_bias().tolist() == [0.0]


def test_c51_learns_towards_the_projection_and_counts_the_share_outside():
    head = ValueHead("c51", Support(0.0, 2.0, 3), 0.0, 1.0)
    values, probabilities = torch.tensor([[0.5, 1.0, 4.0]]), torch.tensor([[0.5, 0.25, 0.25]])
    logits = torch.zeros(1, 3, requires_grad=True)
    terms = head.distribution_terms(logits, None, values, probabilities)
    assert terms.clipped.tolist() == [0.25]
    assert terms.loss.item() == pytest.approx(math.log(3))
    assert terms.floor.item() == pytest.approx(1.5 * math.log(2))  # of (¼, ½, ¼)
    terms.loss.sum().backward()
    torch.testing.assert_close(logits.grad, torch.tensor([[1 / 3 - 0.25, 1 / 3 - 0.5, 1 / 3 - 0.25]]))


@pytest.mark.parametrize("name", ["c51", "quantile", "iqn"])
def test_a_mixture_holds_each_actions_distribution_with_the_share_of_the_action(name):
    support = Support(0.0, 2.0, 3) if name == "c51" else None
    head = ValueHead(name, support, 0.0, 1.0, 3)
    outputs = torch.randn(4, 2, 3, generator=torch.Generator().manual_seed(0))
    policy = torch.tensor([[1.0, 0.0], [0.25, 0.75], [0.5, 0.5], [0.0, 1.0]])
    values, probabilities = head.mixture(outputs, policy)
    torch.testing.assert_close(probabilities.sum(1), torch.ones(4))
    torch.testing.assert_close((values * probabilities).sum(1), (policy * head.decode(outputs)).sum(1))
    square = ((values**2) * probabilities).sum(1)
    own = torch.softmax(outputs, -1) @ head.centres**2 if name == "c51" else (outputs**2).mean(-1)
    torch.testing.assert_close(square, (policy * own).sum(1))


def test_quantiles_are_taught_at_their_midpoints_and_implicit_ones_at_the_fractions_asked_for():
    values, probabilities = torch.tensor([[0.0, 4.0]]), torch.tensor([[0.75, 0.25]])
    prediction, asked = torch.tensor([[1.0, 2.0]]), torch.tensor([[0.9, 0.1]])
    fixed = ValueHead("quantile", None, 0.0, 0.5, 2).distribution_terms(prediction, None, values, probabilities)
    midpoints = torch.tensor([[0.25, 0.75]])
    assert torch.equal(fixed.loss, quantile_huber(prediction, midpoints, values, probabilities, 0.5))
    drawn = ValueHead("iqn", None, 0.0, 0.5, 2).distribution_terms(prediction, asked, values, probabilities)
    assert torch.equal(drawn.loss, quantile_huber(prediction, asked, values, probabilities, 0.5))
    assert not torch.equal(drawn.loss, fixed.loss)


# --- wrong pairs ---


@pytest.mark.parametrize("name", ["hl_gauss", "two_hot", "c51"])
def test_a_binned_loss_without_a_support_is_refused(name):
    with pytest.raises(ValueError, match=f"{name} needs a support"):
        ValueHead(name, None, 1.0, 1.0)


def test_scalar_and_distribution_targets_are_not_taken_for_each_other():
    one, three = torch.zeros(1), torch.zeros(1, 3)
    with pytest.raises(ValueError, match="c51 takes a distribution"):
        ValueHead("c51", Support(0.0, 2.0, 3), 0.0, 1.0).terms(three, one)
    with pytest.raises(ValueError, match="hl_gauss takes a scalar"):
        ValueHead("hl_gauss", Support(0.0, 2.0, 3), 1.0, 1.0).distribution_terms(three, None, three, three)


@pytest.mark.parametrize("name", ["c51", "quantile", "iqn"])
def test_a_learner_of_scalars_refuses_a_loss_of_distributions_by_both_names(name):
    with pytest.raises(ValueError, match=rf"value_loss {name} .* impala .*take hl_gauss"):
        check_scalar_loss(name, "impala")


@pytest.mark.parametrize("name", ["hl_gauss", "two_hot", "mse", "huber"])
def test_a_learner_of_scalars_takes_every_loss_of_scalars(name):
    check_scalar_loss(name, "impala")
