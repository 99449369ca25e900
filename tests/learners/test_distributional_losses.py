from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from onibi.learners.distributional_losses import (
    categorical_projection,
    n_step_distribution,
    quantile_huber,
    quantile_midpoints,
)
from onibi.learners.networks.heads import ActionValueHead, ImplicitQuantileHead
from onibi.learners.returns import n_step_return

ATOMS = torch.tensor([0.0, 1.0, 3.0])


def distribution(seed, rows, values, scale=3.0):
    rng = np.random.default_rng(seed)
    drawn = rng.normal(size=(rows, values)) * scale
    return torch.tensor(drawn), torch.tensor(rng.dirichlet(np.ones(values), size=rows))


# --- the n-step target ---


def test_each_value_of_the_bootstrap_is_moved_as_the_scalar_return_moves_it():
    rewards, discounts = torch.tensor([[1.0, 4.0], [1.0, 4.0]]), torch.tensor([[0.5, 0.5], [0.5, 0.0]])
    moved = n_step_distribution(rewards, discounts, torch.tensor([[0.0, 8.0], [0.0, 8.0]]))
    assert moved.tolist() == [[3.0, 5.0], [3.0, 3.0]]  # 1 + ½·4 + ¼z; terminated: a point
    values, probabilities = distribution(0, 2, 5)
    mean = (n_step_distribution(rewards.double(), discounts.double(), values) * probabilities).sum(1)
    expected = n_step_return(rewards.double(), discounts.double(), (values * probabilities).sum(1))
    torch.testing.assert_close(mean, expected)


# --- the projection of C51 ---


def test_a_value_is_shared_between_its_neighbours_by_nearness():
    values = torch.tensor([[0.25, 2.5, 3.0, -7.0, 9.0]])
    shares = [categorical_projection(values[:, [at]], torch.ones(1, 1), ATOMS)[0].tolist() for at in range(5)]
    assert shares == [[0.75, 0.25, 0.0], [0.0, 0.25, 0.75], [0.0, 0.0, 1.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]]
    mixed = categorical_projection(values, torch.tensor([[0.5, 0.25, 0.125, 0.0625, 0.0625]]), ATOMS)
    assert mixed[0].tolist() == [0.375 + 0.0625, 0.125 + 0.0625, 0.1875 + 0.125 + 0.0625]


@pytest.mark.parametrize("spaced", ["evenly", "unevenly"])
def test_the_projection_is_the_papers_sum_of_triangles(spaced):
    rng, K = np.random.default_rng(3), 7
    atoms = np.linspace(-2, 4, K) if spaced == "evenly" else np.sort(rng.normal(size=K)) * 3
    values, probabilities = distribution(4, 20, 9)
    expected = np.zeros((20, K))
    for row, at, to in itertools.product(range(20), range(9), range(K)):
        value = np.clip(values[row, at].item(), atoms[0], atoms[-1])
        side = to - 1 if value < atoms[to] else to + 1  # the neighbour on the value's side
        near = 1.0 if value == atoms[to] else 1 - abs(value - atoms[to]) / abs(atoms[side] - atoms[to])
        expected[row, to] += max(0.0, near) * probabilities[row, at].item()
    found = categorical_projection(values, probabilities, torch.tensor(atoms))
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-12)


@settings(deadline=None)
@given(seed=st.integers(0, 2**32 - 1), K=st.integers(2, 60), scale=st.floats(0.01, 1000))
def test_the_projection_keeps_mass_and_inside_the_atoms_the_mean(seed, K, scale):
    rng = np.random.default_rng(seed)
    atoms = torch.tensor(np.cumsum(rng.random(K) + 0.01) - K / 4)
    values, probabilities = distribution(seed, 3, 5, scale)
    clamped = values.clamp(atoms[0], atoms[-1])
    projected = categorical_projection(values, probabilities, atoms)
    assert (projected >= 0).all()
    torch.testing.assert_close(projected.sum(1), torch.ones(3, dtype=torch.float64))
    torch.testing.assert_close(projected @ atoms, (clamped * probabilities).sum(1), atol=1e-9, rtol=1e-9)


def test_no_gradient_flows_into_the_target_of_either_family():
    values, probabilities = (tensor.requires_grad_() for tensor in distribution(0, 2, 3))
    assert not categorical_projection(values, probabilities, ATOMS.double()).requires_grad
    quantiles = torch.zeros(2, 4, dtype=torch.float64, requires_grad=True)
    quantile_huber(quantiles, torch.full_like(quantiles, 0.3), values, probabilities, 1.0).sum().backward()
    assert (quantiles.grad != 0).all()
    assert values.grad is None
    assert probabilities.grad is None


# --- quantiles ---


def test_midpoints_are_the_middles_of_equal_shares():
    assert quantile_midpoints(4).tolist() == [0.125, 0.375, 0.625, 0.875]
    with pytest.raises(ValueError, match="quantiles is 0"):
        quantile_midpoints(0)


def test_the_quantile_loss_of_two_targets_is_as_by_hand():
    quantiles, fractions = torch.tensor([[1.0]]), torch.tensor([[0.25]])
    values, probabilities = torch.tensor([[4.0, 0.5]]), torch.tensor([[0.75, 0.25]])
    # u = 3 and −½. κ = 2: ¾·[¼·2(3 − 1)/2] + ¼·[¾·½·¼/2]
    assert quantile_huber(quantiles, fractions, values, probabilities, 2.0).item() == 0.375 + 0.01171875
    # κ = 0: ¾·¼·3 + ¼·¾·½
    assert quantile_huber(quantiles, fractions, values, probabilities, 0.0).item() == 0.5625 + 0.09375


@pytest.mark.parametrize("delta", [0.0, 0.5, 2.0])
def test_values_and_gradients_of_the_quantile_loss_are_those_of_a_loop_in_float64(delta):
    rng = np.random.default_rng(1)
    quantiles, fractions = rng.normal(size=(4, 3)), rng.random((4, 3))
    values, probabilities = distribution(2, 4, 6)
    loss, slope = np.zeros(4), np.zeros((4, 3))
    for row, i, j in itertools.product(range(4), range(3), range(6)):
        u, p = values[row, j].item() - quantiles[row, i], probabilities[row, j].item()
        tilt = 1 - fractions[row, i] if u < 0 else fractions[row, i]
        inside = abs(u) <= delta
        size = abs(u) if delta == 0 else (0.5 * u * u if inside else delta * (abs(u) - 0.5 * delta)) / delta
        loss[row] += p * tilt * size
        slope[row, i] -= p * tilt * (u / delta if inside else np.sign(u))
    free = torch.tensor(quantiles, requires_grad=True)
    found = quantile_huber(free, torch.tensor(fractions), values, probabilities, delta)
    np.testing.assert_allclose(found.detach().numpy(), loss, rtol=1e-12)
    found.sum().backward()
    np.testing.assert_allclose(free.grad.numpy(), slope, rtol=1e-10, atol=1e-12)


def test_the_least_quantile_loss_lies_at_the_quantiles_of_the_target():
    values, probabilities = torch.arange(8.0)[None], torch.full((1, 8), 0.125)
    fractions = quantile_midpoints(8)[None]
    quantiles = torch.zeros(1, 8, requires_grad=True)
    optimizer = torch.optim.SGD([quantiles], lr=0.5)
    for _ in range(400):
        optimizer.zero_grad()
        quantile_huber(quantiles, fractions, values, probabilities, 0.05).sum().backward()
        optimizer.step()
    torch.testing.assert_close(quantiles.detach(), values, atol=0.05, rtol=0)


def test_shapes_that_would_broadcast_are_refused_by_name():
    two, one = torch.zeros(2, 3), torch.zeros(1, 3)
    with pytest.raises(ValueError, match="probabilities has B = 1"):
        categorical_projection(two, one, ATOMS)
    with pytest.raises(ValueError, match="fractions has B = 1"):
        quantile_huber(two, one, two, two, 1.0)
    with pytest.raises(ValueError, match="values has B = 1, but quantiles has 2"):
        quantile_huber(two, two, one, one, 1.0)


# --- the implicit head ---


def implicit_head(dueling, fractions=16):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        head = ImplicitQuantileHead(6, 3, fractions, dueling=dueling)
        with torch.no_grad():
            for parameter in head.parameters():
                parameter.normal_()
    return head


@pytest.mark.parametrize("dueling", [True, False])
def test_each_quantile_is_the_papers_product_at_its_fraction(dueling):
    head, features = implicit_head(dueling), torch.randn(4, 6, generator=torch.Generator().manual_seed(1))
    fractions = torch.rand(4, 5, generator=torch.Generator().manual_seed(2))
    found = head(features, fractions)
    assert found.shape == (4, 3, 5)
    weight, bias = head.embedding.weight.detach().double().numpy(), head.embedding.bias.detach().double().numpy()
    assert isinstance(head.values, ActionValueHead)
    for row, at in itertools.product(range(4), range(5)):
        cosines = np.cos(np.pi * np.arange(64) * fractions[row, at].double().item())
        phi = np.maximum(weight @ cosines + bias, 0.0)
        product = torch.tensor(features[row].numpy() * phi, dtype=torch.float32)[None]
        torch.testing.assert_close(found[row, :, at], head.values(product)[0, :, 0], atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize("dueling", [True, False])
def test_acting_values_are_the_mean_of_the_quantiles_at_the_midpoints(dueling):
    head, features = implicit_head(dueling, fractions=7), torch.randn(5, 6, generator=torch.Generator().manual_seed(1))
    midpoints = quantile_midpoints(7).expand(5, -1)
    assert torch.equal(head(features), head(features, midpoints))
    torch.testing.assert_close(head.action_values(features, None), head(features).mean(-1), atol=1e-4, rtol=1e-4)
    assert head(features).std(dim=2).min() > 0.1  # or the mean would say little
