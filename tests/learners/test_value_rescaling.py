from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from onibi.learners.value_rescaling import rescale_value, restore_value, symexp, symlog

PAIRS = {
    "h": (lambda x: rescale_value(x, 1e-3), lambda x: restore_value(x, 1e-3)),
    "h without its linear part": (lambda x: rescale_value(x, 0.0), lambda x: restore_value(x, 0.0)),
    "symlog": (symlog, symexp),
}
SIZES = torch.tensor([0.0, 1e-20, 1e-7, 1e-3, 0.5, 1.0, 3.0, 300.0, 1e6], dtype=torch.float64)
VALUES = torch.cat((-SIZES.flip(0), SIZES))


def test_values_are_those_worked_out_by_hand():
    assert rescale_value(torch.tensor([3.0, -8.0, 0.0]), 0.01).tolist() == pytest.approx([1.03, -2.08, 0.0])  # √4, √9
    assert restore_value(torch.tensor([1.03, -2.08, 0.0]), 0.01).tolist() == pytest.approx([3.0, -8.0, 0.0])
    assert symlog(torch.tensor([math.e - 1, 1 - math.e**2])).tolist() == pytest.approx([1.0, -2.0])


@pytest.mark.parametrize("epsilon", [1e-3, 0.01, 1.0])
def test_both_directions_are_the_papers_formulas_in_float64(epsilon):
    x = np.linspace(-50, 50, 1001)
    h = np.sign(x) * (np.sqrt(np.abs(x) + 1) - 1) + epsilon * x
    np.testing.assert_allclose(rescale_value(torch.tensor(x), epsilon).numpy(), h, atol=1e-12)
    q = (np.sqrt(1 + 4 * epsilon * (np.abs(x) + 1 + epsilon)) - 1) / (2 * epsilon)
    np.testing.assert_allclose(restore_value(torch.tensor(x), epsilon).numpy(), np.sign(x) * (q**2 - 1), atol=1e-8)


@pytest.mark.parametrize("name", sorted(PAIRS))
def test_there_and_back_keeps_float32s_precision_at_every_size(name):
    there, back = PAIRS[name]
    values = VALUES.float()
    torch.testing.assert_close(back(there(values)), values, rtol=3e-6, atol=0.0)


@pytest.mark.parametrize("name", sorted(PAIRS))
@settings(deadline=None)
@given(value=st.floats(-1e8, 1e8))
def test_both_directions_undo_each_other_and_are_odd(name, value):
    there, back = PAIRS[name]
    x = torch.tensor([value, -value], dtype=torch.float64)
    torch.testing.assert_close(back(there(x)), x, rtol=1e-10, atol=1e-300)
    assert there(x)[0] == -there(x)[1]


@pytest.mark.parametrize("name", sorted(PAIRS))
def test_slopes_are_right_everywhere_and_at_zero_where_heads_start(name):
    there, back = PAIRS[name]
    points = torch.tensor([-3.0, -0.5, 0.0, 1e-9, 2.0], dtype=torch.float64, requires_grad=True)
    for function in (there, back):
        (slope,) = torch.autograd.grad(function(points).sum(), points)
        step = 1e-6
        with torch.no_grad():
            expected = (function(points + step) - function(points - step)) / (2 * step)
        torch.testing.assert_close(slope, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("name", "read"), [("h", 1.295), ("symlog", 0.802)])
def test_the_inverse_of_a_mean_of_noisy_targets_is_below_their_mean(name, read):
    there, back = PAIRS[name]
    noise = torch.tensor(np.random.default_rng(0).normal(size=2_000_000) * 5.0)
    targets = torch.cat((2.0 + noise, 2.0 - noise))  # mean 2 exactly, standard deviation 5
    assert targets.mean().item() == pytest.approx(2.0, abs=1e-9)
    assert back(there(targets).mean()).item() == pytest.approx(read, abs=0.01)


@pytest.mark.parametrize("function", [rescale_value, restore_value])
def test_a_negative_epsilon_is_refused(function):
    with pytest.raises(ValueError, match=r"epsilon is -0\.1"):
        function(torch.zeros(1), -0.1)
