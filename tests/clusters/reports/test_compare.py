"""Intervals hold the true value as often as they claim, and nothing is claimed from too little."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from onibi.clusters.reports.compare import Interval, bootstrap_interval, intervals_apart, share_interval


def test_the_bootstrap_agrees_with_scipys_on_the_same_values():
    values = np.random.default_rng(1).gamma(2.0, size=60)
    ours = bootstrap_interval(values, np.random.default_rng(2))
    theirs = stats.bootstrap((values,), np.mean, n_resamples=20_000, method="percentile", rng=3).confidence_interval
    width = theirs.high - theirs.low
    assert ours.mean == values.mean() and ours.count == 60
    assert abs(ours.low - theirs.low) < 0.04 * width and abs(ours.high - theirs.high) < 0.04 * width


def test_the_interval_of_50_episodes_holds_the_true_mean_in_nine_of_ten_experiments_or_more():
    rng = np.random.default_rng(4)
    hits = 0
    for _ in range(60):
        interval = bootstrap_interval(rng.normal(10.0, 3.0, size=50), rng)
        hits += interval.low <= 10.0 <= interval.high
    assert 52 <= hits <= 60  # 95% of 60 is 57; below 52 has a chance of 0.3%


def test_equal_values_give_an_interval_of_no_width():
    assert bootstrap_interval([2.0] * 5, np.random.default_rng(0)) == Interval(2.0, 2.0, 2.0, 5)


def test_the_same_generator_gives_the_same_interval():
    first, second = (bootstrap_interval([1.0, 2.0, 5.0], np.random.default_rng(7)) for _ in range(2))
    assert first == second and first.low < first.mean < first.high


@pytest.mark.parametrize(
    ("values", "fault"),
    [([], "n ≥ 1"), ([[1.0, 2.0]], "shape"), ([1.0, np.nan], "1 of 2 values are not finite")],
)
def test_unusable_values_are_refused(values, fault):
    with pytest.raises(ValueError, match=fault):
        bootstrap_interval(values, np.random.default_rng(0))


@pytest.mark.parametrize("values", [[5.0], [5.0, 5.0]])
def test_one_value_or_two_lie_above_nothing_however_low_that_is(values):
    found = bootstrap_interval(values, np.random.default_rng(0))
    assert (found.mean, found.count, found.is_known) == (5.0, len(values), False)
    assert not intervals_apart(Interval(-9.0, -9.0, -9.0, 50), found)
    assert not intervals_apart(found, Interval(9.0, 9.0, 9.0, 50))
    assert bootstrap_interval([5.0, 5.0, 5.0], np.random.default_rng(0)).is_known


@pytest.mark.parametrize(("successes", "episodes"), [(0, 10), (10, 10), (83, 100), (1, 3)])
def test_the_interval_of_a_share_is_scipys_wilson_interval(successes, episodes):
    ours = share_interval(successes, episodes)
    theirs = stats.binomtest(successes, episodes).proportion_ci(method="wilson")
    assert ours.mean == successes / episodes
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=1e-12)


@pytest.mark.parametrize(("successes", "episodes"), [(-1, 10), (11, 10), (0, 0)])
def test_an_impossible_share_is_refused(successes, episodes):
    with pytest.raises(ValueError, match="allowed are"):
        share_interval(successes, episodes)


def test_intervals_are_apart_only_where_the_upper_lies_wholly_above():
    low, touching, high = Interval(1, 0, 2, 9), Interval(3, 2, 4, 9), Interval(4, 2.1, 5, 9)
    assert intervals_apart(low, high)
    assert not intervals_apart(low, touching)
    assert not intervals_apart(high, low)
