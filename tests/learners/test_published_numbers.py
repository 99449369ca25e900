"""Ours against numbers of RLax and hl-gauss-pytorch for the same inputs; published_numbers.py made the file."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from onibi.learners.distributional_losses import categorical_projection, quantile_huber
from onibi.learners.gaussian_targets import hl_gauss_target
from onibi.learners.off_policy_returns import retrace_returns, vtrace_returns
from onibi.learners.returns import generalized_advantages, lambda_returns
from onibi.learners.support import Support
from onibi.learners.value_losses import ValueHead, two_hot_target
from onibi.learners.value_rescaling import rescale_value, restore_value


def published_path(given_arrays):
    tensors = {name: torch.tensor(array) for name, array in given_arrays.items()}
    traces = torch.ones_like(tensors["rewards"])
    traces[-1] = 0.0
    path = {"rewards": tensors["rewards"], "discounts": tensors["discounts"], "traces": traces}
    return tensors, path | {"next_values": tensors["values"][1:]}


@pytest.mark.parametrize("decay", [0.0, 0.7, 1.0])
def test_all_four_returns_are_rlaxs_numbers(published, decay):
    given_arrays, expected = published
    tensors, path = published_path(given_arrays)
    bounds = {"rho_bound": 1.0, "trace_bound": 1.0}
    values, log_ratios = tensors["values"][:-1], tensors["log_ratios"]
    vtrace = vtrace_returns(**path, values=values, log_ratios=log_ratios, trace_decay=decay, **bounds)
    found = {
        "lambda_returns": lambda_returns(**path, trace_decay=decay),
        "generalized_advantages": generalized_advantages(**path, values=values, trace_decay=decay),
        "vtrace_values": vtrace.values,
        "retrace": retrace_returns(
            **path, taken_values=tensors["taken_values"], log_ratios=log_ratios, trace_decay=decay
        ),
    }
    if decay == 1.0:
        found["vtrace_advantages"] = vtrace.weighted_advantages
    for name, tensor in found.items():
        np.testing.assert_allclose(tensor.numpy(), expected[f"{name} {decay}"], rtol=2e-5, atol=2e-5, err_msg=name)


def test_value_rescaling_is_rlaxs_numbers(published):
    given_arrays, expected = published
    scalars = torch.tensor(given_arrays["scalars"])
    np.testing.assert_allclose(rescale_value(scalars * 50.0, 1e-3).numpy(), expected["rescale_value"], rtol=1e-5)
    # RLax's inverse is worked out in float32 as the paper writes it and keeps three digits near 0.
    np.testing.assert_allclose(restore_value(scalars, 1e-3).numpy(), expected["restore_value"], atol=2e-3)


@pytest.mark.parametrize("name", ["atoms", "uneven_atoms"])
def test_the_projection_is_rlaxs_numbers(published, name):
    given_arrays, expected = published
    source = (torch.tensor(given_arrays[key]) for key in ("source_atoms", "source_probabilities"))
    found = categorical_projection(*source, torch.tensor(given_arrays[name]))
    np.testing.assert_allclose(found.numpy(), expected[f"projection {name}"], atol=2e-6)


def test_two_hot_targets_are_rlaxs_numbers(published):
    given_arrays, expected = published
    scalars, atoms = torch.tensor(given_arrays["scalars"]), torch.tensor(given_arrays["atoms"])
    assert ((scalars < atoms[0]) | (scalars > atoms[-1])).any()
    np.testing.assert_allclose(two_hot_target(scalars, atoms).numpy(), expected["two_hot"], atol=2e-6)


@pytest.mark.parametrize("delta", [0.0, 1.0])
def test_quantile_losses_are_rlaxs_numbers(published, delta):
    given_arrays, expected = published
    quantiles, fractions, targets = (torch.tensor(given_arrays[key]) for key in ("quantiles", "fractions", "targets"))
    probabilities = torch.full_like(targets, 1 / targets.shape[1])
    found = quantile_huber(quantiles, fractions, targets, probabilities, delta)
    np.testing.assert_allclose(found.numpy(), expected[f"quantile {delta}"], rtol=1e-5)


def test_hl_gauss_is_hl_gauss_pytorchs_numbers(published):
    given_arrays, expected = published
    support = Support(-10.0, 10.0, 51)
    head = ValueHead("hl_gauss", support, 0.75 * support.width, 1.0)
    values, logits = (torch.tensor(given_arrays[key]) for key in ("hl_gauss_values", "hl_gauss_logits"))
    edges = torch.tensor(support.edges, dtype=torch.float32)
    target = hl_gauss_target(values, edges, head.sigma)
    np.testing.assert_allclose(target.numpy(), expected["hl_gauss_target"], atol=2e-6)
    np.testing.assert_allclose(head.terms(logits, values).loss.numpy(), expected["hl_gauss_loss"], rtol=1e-5)
    np.testing.assert_allclose(head.decode(logits).numpy(), expected["hl_gauss_read"], atol=1e-5)
