"""The sum tree against scans of its leaves."""

from __future__ import annotations

import math

import numpy as np
import pytest

from onibi.platform.replay.samplers.sum_tree import SumTree


def scan(values, target):
    """The leaf in whose share the target lies, by adding up from the first one."""
    for leaf, value in enumerate(values):
        if target < value:
            return leaf
        target -= value
    raise AssertionError("the target is not below the total")


def filled(values):
    tree = SumTree(len(values))
    tree.set(np.arange(len(values)), np.asarray(values, np.float64))
    return tree


@pytest.mark.parametrize("leaves", [1, 2, 3, 7, 8, 100, 1_023, 1_025, 5_000])
def test_draws_the_leaves_that_a_scan_draws(leaves):
    values = np.random.default_rng(leaves).integers(0, 9, leaves)  # integers: no rounding to hide behind
    values[0] += 1
    tree = filled(values)
    targets = np.arange(2 * values.sum()) / 2  # every leaf, each by its whole share, from its very edge on
    if leaves > 1_000:
        targets = targets[:: leaves // 100]
    assert tree.find(targets).tolist() == [scan(values, target) for target in targets]
    assert tree.total == values.sum()


@pytest.mark.parametrize("leaves", [1, 6, 1_500, 40_000])
@pytest.mark.parametrize("batch", [1, 3, 256, 5_000])
def test_root_is_the_sum_of_the_leaves_after_many_updates(leaves, batch):
    rng = np.random.default_rng(leaves * batch)
    tree, values = SumTree(leaves), np.zeros(leaves)
    for _ in range(max(4, 200_000 // (batch * 40))):
        leaf = rng.integers(0, leaves, batch)
        value = rng.random(batch) ** 8 * 10.0 ** rng.integers(-6, 7, batch)
        tree.set(leaf, value)
        for index, number in zip(leaf.tolist(), value.tolist(), strict=True):
            values[index] = number  # of a leaf named twice the last value holds
    assert np.array_equal(tree.values, values)
    assert abs(tree.total - math.fsum(values)) <= 1e-13 * math.fsum(values)


def test_a_million_updates_leave_no_more_error_than_one_sum():
    rng = np.random.default_rng(0)
    tree = SumTree(1 << 14)
    for _ in range(2_000):
        tree.set(rng.integers(0, 1 << 14, 512), rng.exponential(size=512) * 10.0 ** rng.integers(-9, 10, 512))
    tree.set(np.arange(1 << 14), rng.random(1 << 14) * 1e-9)  # what was 1e18 times larger has left nothing behind
    assert tree.total == pytest.approx(math.fsum(tree.values), rel=1e-12)


def test_targets_at_the_edges_find_a_leaf():
    tree = filled([0.1] * 3_000)
    found = tree.find(np.array([0.0, np.nextafter(tree.total, 0), tree.total]))
    assert found.tolist() == [0, 2_999, 2_999]


@pytest.mark.parametrize("value", [-1.0, np.nan, np.inf])
def test_values_that_are_not_finite_or_negative_are_refused_and_change_nothing(value):
    tree = filled([1.0, 2.0, 3.0])
    with pytest.raises(ValueError, match="negative or not finite"):
        tree.set(np.array([0, 1]), np.array([5.0, value]))
    assert tree.values.tolist() == [1.0, 2.0, 3.0]
    with pytest.raises(ValueError, match="the tree has 0 to 2"):
        tree.set(np.array([3]), np.array([1.0]))
    with pytest.raises(ValueError, match="at least 1"):
        SumTree(0)
