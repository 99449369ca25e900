from __future__ import annotations

import math

import pytest
import torch

from onibi.learners.policy_losses import clipped_surrogate, masked_mean, normalised, policy_gradient


def test_the_policy_gradient_is_the_advantage_times_that_of_the_log_probability():
    log_probs = torch.tensor([[-1.0, -2.0]], requires_grad=True)
    advantages = torch.tensor([[3.0, -0.5]], requires_grad=True)
    loss = policy_gradient(log_probs, advantages)
    assert loss.tolist() == [[3.0, -1.0]]
    loss.sum().backward()
    assert log_probs.grad.tolist() == [[-3.0, 0.5]]
    assert advantages.grad is None


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "slope"),
    [
        (1.0, 2.0, -2.0, -2.0),
        (1.1, 2.0, -2.2, -2.2),  # within: −r A, and d/d log r of it
        (1.5, 2.0, -2.4, 0.0),  # above, A > 0: −1.2 · 2, no more to be gained
        (0.5, 2.0, -1.0, -1.0),  # below, A > 0: the way back is paid
        (0.5, -2.0, 1.6, 0.0),  # below, A < 0: 0.8 · 2
        (1.5, -2.0, 3.0, 3.0),  # above, A < 0: the way back is paid
    ],
)
def test_the_clipped_surrogate_by_hand(ratio, advantage, loss, slope):
    log_ratio = torch.tensor([[math.log(ratio)]], requires_grad=True)
    found = clipped_surrogate(log_ratio, torch.tensor([[advantage]]), 0.2)
    assert found.item() == pytest.approx(loss, rel=1e-6)
    found.sum().backward()
    assert log_ratio.grad.item() == pytest.approx(slope, rel=1e-6)


def test_means_leave_unused_rows_out():
    used = torch.tensor([[1.0, 1.0, 0.0]])
    assert masked_mean(torch.tensor([[1.0, 3.0, 100.0]]), used).item() == 2.0
    assert masked_mean(torch.tensor([[1.0, 3.0, 100.0]]), torch.zeros(1, 3)).item() == 0.0


def test_normalised_advantages_have_mean_0_and_deviation_1_over_the_rows_used():
    found = normalised(torch.tensor([[1.0, 3.0, 100.0]]), torch.tensor([[1.0, 1.0, 0.0]]))
    assert found.tolist() == [[-1.0, 1.0, 0.0]]  # mean 2, deviation 1
    assert normalised(torch.full((2, 2), 7.0), torch.ones(2, 2)).tolist() == [[0.0, 0.0], [0.0, 0.0]]


def test_a_shape_that_would_broadcast_is_refused():
    with pytest.raises(ValueError, match="advantages"):
        policy_gradient(torch.zeros(2, 3), torch.zeros(3))
    with pytest.raises(ValueError, match="advantages"):
        clipped_surrogate(torch.zeros(2, 3), torch.zeros(2, 1), 0.2)
