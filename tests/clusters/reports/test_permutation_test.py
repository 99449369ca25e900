"""The exact permutation test against values worked by hand, against scipy, and against itself shift by shift."""

from __future__ import annotations

import math
from itertools import combinations

import numpy as np
import pytest
from scipy import stats

from onibi.clusters.reports.permutation_test import permutation_test


def scanned(x, y):
    """One-sided shares (as high, as low) over all ways to share the scores out."""
    every = np.concatenate([x, y])
    seen = x.mean() - y.mean()
    found = []
    for chosen in combinations(range(len(every)), len(x)):
        taken = np.isin(np.arange(len(every)), chosen)
        found.append(every[taken].mean() - every[~taken].mean())
    return np.mean(np.array(found) >= seen - 1e-12), np.mean(np.array(found) <= seen + 1e-12)


def test_two_against_two_worked_by_hand():
    # {3, 5} and {1, 2}: of the six ways only the one that was seen reaches 4 − 1.5 = 2.5: p = 2 · 1/6.
    found = permutation_test(np.array([3.0, 5.0]), np.array([1.0, 2.0]))
    assert (found.difference, found.p_value, found.ways) == (2.5, 1 / 3, 6)
    assert (found.low, found.high) == (-math.inf, math.inf)  # 1/6 is not under 2.5%: nothing can be rejected


def test_five_against_five_that_do_not_overlap():
    # 252 ways; 2 of them are as far out on either side: p = 2/252. 2.5% are 6.3 ways, so the sixth exchange counts.
    x, y = np.array([10.0, 11.0, 12.0, 13.0, 14.0]), np.array([0.0, 0.0, 0.0, 0.0, 0.0])
    found = permutation_test(x, y)
    assert found.p_value == pytest.approx(2 / 252)
    # Exchanges of one of x for a 0 are worth 10 … 14, five of each; of two 10.5 (ten), …: the sixth least is 10.5.
    assert (found.difference, found.low, found.high) == (12.0, 10.5, 13.5)


def test_an_end_that_rounding_alone_holds_off_0_is_0_as_the_p_value_counts_it():
    # In 48ths: 173 against 96. The sixth least exchange is worth 0, in floats 1e-16; 7 ways of 252 are as far out.
    x, y = np.array([29, 24, 40, 43, 37]) / 48, np.array([4, 32, 17, 29, 14]) / 48
    found = permutation_test(x, y)
    assert found.p_value == pytest.approx(2 * 7 / 252)
    assert found.low == 0.0 < found.difference < found.high
    turned = permutation_test(y, x)
    assert (turned.high, turned.low) == (0.0, -found.high)


def test_equal_groups_are_not_told_apart():
    found = permutation_test(np.ones(5), np.ones(5))
    assert (found.difference, found.p_value, found.low, found.high) == (0.0, 1.0, 0.0, 0.0)


@pytest.mark.parametrize("seed", range(12))
def test_the_p_value_is_scipys(seed):
    rng = np.random.default_rng(seed)
    x, y = rng.normal(0.4 * (seed % 3), 1.0, 3 + seed % 4), rng.normal(size=4 + seed % 3)
    if seed % 2:
        x, y = x.round(0), y.round(0)  # ties
    exact = stats.permutation_test(
        (x, y), lambda a, b: a.mean() - b.mean(), n_resamples=np.inf, alternative="two-sided"
    )
    found = permutation_test(x, y)
    assert found.p_value == pytest.approx(exact.pvalue)
    assert found.ways == len(exact.null_distribution)


@pytest.mark.parametrize("seed", range(6))
def test_the_interval_is_what_the_test_does_not_reject(seed):
    rng = np.random.default_rng(100 + seed)
    x, y = rng.normal(1.0, 1.0, 5), rng.normal(size=4 + seed % 3)
    found = permutation_test(x, y)
    step = 1e-6
    for shift, kept in ((found.low, True), (found.low - step, False), (found.high, True), (found.high + step, False)):
        high, low = scanned(x - shift, y)
        assert bool(min(high, low) > 0.025) is kept, shift
    assert found.low < found.difference < found.high


def test_the_interval_moves_with_the_scores_and_scales_with_them():
    rng = np.random.default_rng(7)
    x, y = rng.normal(size=6), rng.normal(size=6)
    plain, moved = permutation_test(x, y), permutation_test(3 * x + 2, 3 * y)
    assert moved.low == pytest.approx(3 * plain.low + 2)
    assert moved.high == pytest.approx(3 * plain.high + 2)


def test_ten_against_ten_is_looked_at_whole():
    found = permutation_test(np.arange(10.0) + 100, np.arange(10.0))
    assert (found.ways, found.p_value) == (184_756, 2 / 184_756)
    assert 90 < found.low < 100 < found.high < 110


def test_what_cannot_be_tested_is_refused_with_the_reason():
    with pytest.raises(ValueError, match="others are"):
        permutation_test(np.ones(3), np.array([]))
    with pytest.raises(ValueError, match="scores are"):
        permutation_test(np.array([1.0, math.nan]), np.ones(3))
    with pytest.raises(ValueError, match="2,704,156 ways"):
        permutation_test(np.arange(12.0), np.arange(12.0))
