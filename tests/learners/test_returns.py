from __future__ import annotations

import numpy as np
import pytest
import torch

from onibi.learners.returns import n_step_return, window_discounts


def test_three_rewards_and_a_bootstrap_add_up_as_by_hand():
    rewards, discounts = torch.tensor([[1.0, 2.0, 4.0]]), torch.tensor([[0.5, 0.5, 0.5]])
    assert n_step_return(rewards, discounts, torch.tensor([8.0])).item() == 4.0  # 1 + ½(2 + ½(4 + ½·8))


def test_reward_and_bootstrap_after_termination_do_not_count():
    rewards, discounts = torch.tensor([[1.0, 2.0, 100.0]]), torch.tensor([[0.5, 0.0, 0.5]])
    assert n_step_return(rewards, discounts, torch.tensor([1e3])).item() == 2.0  # 1 + ½·2


def test_a_truncated_window_bootstraps_from_where_it_ended():
    rewards = torch.tensor([[1.0, 0.0, 0.0]])
    discounts = window_discounts(torch.ones(1, 3), torch.tensor([[True, False, False]]), 0.5)
    assert n_step_return(rewards, discounts, torch.tensor([8.0])).item() == 5.0  # 1 + ½·8, not 1 + ⅛·8


def test_termination_in_the_last_used_step_of_a_short_window_takes_no_bootstrap():
    continues, used = torch.tensor([[1.0, 0.0, 1.0]]), torch.tensor([[1, 1, 0]], dtype=torch.uint8)
    discounts = window_discounts(continues, used, 0.5)
    assert discounts.tolist() == [[0.5, 0.0, 1.0]]
    assert n_step_return(torch.tensor([[1.0, 2.0, 0.0]]), discounts, torch.tensor([1e3])).item() == 2.0


@pytest.mark.parametrize("seed", range(10))
def test_windows_of_random_episodes_give_the_returns_of_a_walk_along_them(seed):
    rng = np.random.default_rng(seed)
    n, rows, discount = int(rng.integers(1, 7)), 500, 0.9
    steps = rng.integers(1, n, size=rows, endpoint=True)
    terminated = rng.random(rows) < 0.5
    rewards, bootstrap = rng.normal(size=(rows, n)), rng.normal(size=rows)
    used = np.arange(n) < steps[:, None]
    rewards[~used] = 0.0
    continues = np.ones((rows, n))
    continues[np.arange(rows)[terminated], steps[terminated] - 1] = 0.0

    expected = []
    for row in range(rows):
        total, factor = 0.0, 1.0
        for step in range(steps[row]):
            total += factor * rewards[row, step]
            factor *= discount
        expected.append(total + (0.0 if terminated[row] else factor * bootstrap[row]))

    discounts = window_discounts(torch.tensor(continues), torch.tensor(used), discount)
    found = n_step_return(torch.tensor(rewards), discounts, torch.tensor(bootstrap))
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("rewards", "discounts", "bootstrap", "named"),
    [
        ((2, 3), (2, 3), (2, 1), "bootstrap_value has shape"),  # would broadcast to [2, 2]
        ((2, 3), (2, 2), (2,), "discounts has n = 2"),
        ((2, 3), (1, 3), (2,), "discounts has B = 1"),
        ((2, 3), (2, 3), (1,), "bootstrap_value has B = 1"),
        ((3,), (3,), (3,), "rewards has shape"),
    ],
)
def test_shapes_that_would_broadcast_are_refused_by_name(rewards, discounts, bootstrap, named):
    with pytest.raises(ValueError, match=named):
        n_step_return(torch.zeros(rewards), torch.zeros(discounts), torch.zeros(bootstrap))


def test_gradients_flow_to_the_bootstrap_value_by_the_product_of_the_discounts():
    bootstrap = torch.tensor([1.0, 1.0], requires_grad=True)
    discounts = torch.tensor([[0.5, 0.5], [0.5, 0.0]])
    n_step_return(torch.zeros(2, 2), discounts, bootstrap).sum().backward()
    assert bootstrap.grad.tolist() == [0.25, 0.0]
