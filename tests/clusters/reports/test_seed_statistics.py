"""Statistics of few runs: against sums done by hand, and against rliable's numbers (published_statistics.py)."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from onibi.clusters.reports.seed_statistics import (
    difference_of_means,
    estimate,
    interquartile_mean,
    mean,
    median,
    optimality_gap,
    pointwise_band,
    probability_of_improvement,
)

TWO_TASKS = {"a": np.array([0.0, 1.0, 2.0, 9.0]), "b": np.array([4.0, 4.0, 4.0, 100.0])}


def value_of(scores, statistic):
    return estimate(scores, statistic, np.random.default_rng(0)).value


@pytest.mark.parametrize(
    ("statistic", "expected"),
    [
        (interquartile_mean, (2 + 4 + 4 + 4) / 4),  # of 0 1 2 4 4 4 9 100 the outer two at either end are left out
        (mean, (3 + 28) / 2),
        (median, (3 + 28) / 2),
        (optimality_gap(4.0), 4 - (0 + 1 + 2 + 4 + 4 + 4 + 4 + 4) / 8),
    ],
    ids=["iqm", "mean", "median", "gap"],
)
def test_aggregates_are_those_worked_out_by_hand(statistic, expected):
    assert value_of(TWO_TASKS, statistic) == pytest.approx(expected)


def test_five_runs_lose_one_at_either_end():
    assert value_of({"a": np.array([1.0, 2.0, 3.0, 4.0, 1000.0])}, interquartile_mean) == 3.0


def test_mean_weighs_tasks_alike_however_many_runs_they_have():
    assert value_of({"a": np.array([1.0]), "b": np.array([0.0, 0.0, 0.0])}, mean) == 0.5


def test_improvement_counts_ties_by_half():
    found = probability_of_improvement(
        {"a": np.array([1.0, 2.0])}, {"a": np.array([1.0, 0.0])}, np.random.default_rng(0)
    )
    assert found.value == (0.5 + 1 + 1 + 1) / 4


def test_improvement_looks_at_common_tasks_alone():
    one, two = {"a": np.ones(3), "b": np.zeros(3)}, {"a": np.zeros(3), "c": np.ones(3)}
    assert probability_of_improvement(one, two, np.random.default_rng(0)).value == 1.0
    with pytest.raises(ValueError, match="no task is common"):
        probability_of_improvement({"b": np.ones(2)}, {"c": np.ones(2)}, np.random.default_rng(0))


def test_resampling_stays_within_each_task():
    # Tasks far apart without any spread of their own: drawn over both, the mean would move.
    found = estimate({"a": np.zeros(5), "b": np.full(5, 100.0)}, mean, np.random.default_rng(0))
    assert (found.low, found.value, found.high) == (50.0, 50.0, 50.0)


def test_the_interval_of_three_runs_reaches_all():
    found = estimate({"a": np.array([0.0, 0.5, 1.0])}, mean, np.random.default_rng(0))  # all draws alike: 1 in 27
    assert (found.low, found.value, found.high) == (0.0, 0.5, 1.0)


@pytest.mark.parametrize("runs", [1, 2])
def test_fewer_than_three_runs_tell_no_interval(runs):
    rng = np.random.default_rng(0)
    few, many = np.full(runs, 9.0), np.zeros(5)
    told = [
        estimate({"a": few, "b": few}, interquartile_mean, rng),
        probability_of_improvement({"a": few}, {"a": many}, rng),
        probability_of_improvement({"a": many}, {"a": few}, rng),
        difference_of_means(few, many, rng, paired=False),
        difference_of_means(many, few, rng, paired=False),
        difference_of_means(few, np.zeros(runs), rng, paired=True),
    ]
    assert [each.value for each in told] == [9.0, 1.0, 0.0, 9.0, -9.0, 9.0]
    assert not any(each.is_known for each in told)
    assert estimate({"a": few, "b": many}, mean, rng).is_known, "a task with runs enough has a spread"


def test_intervals_hold_the_true_mean_about_as_often_as_they_say():
    rng = np.random.default_rng(1)
    held = 0
    for _ in range(200):
        found = estimate({"a": rng.normal(size=20)}, mean, rng)
        held += found.low <= 0.0 <= found.high
    assert 0.87 <= held / 200 <= 0.98  # 95% less what a percentile bootstrap of 20 values is known to lack


def test_pairs_take_out_what_both_share():
    rng = np.random.default_rng(0)
    luck = rng.normal(scale=10.0, size=10)
    better, worse = luck + 1.0, luck + rng.normal(scale=0.1, size=10)
    paired = difference_of_means(better, worse, rng, paired=True)
    apart = difference_of_means(better, worse, rng, paired=False)
    assert paired.value == pytest.approx(apart.value)
    assert paired.low > 0 > apart.low


@pytest.mark.parametrize("bad", [{}, {"a": np.array([])}, {"a": np.array([1.0, np.nan])}, {"a": np.ones((2, 2))}])
def test_scores_that_are_missing_or_not_finite_are_refused(bad):
    with pytest.raises(ValueError, match="scores"):
        estimate(bad, mean, np.random.default_rng(0))


def test_pairs_of_different_length_are_refused():
    with pytest.raises(ValueError, match="no pairs"):
        difference_of_means(np.ones(3), np.ones(2), np.random.default_rng(0), paired=True)


def test_a_band_is_as_wide_as_the_runs_differ():
    curves = np.stack([np.linspace(0, 1, 7) + offset for offset in (-1.0, 0.0, 0.0, 0.0, 1.0)])
    curves[:, 0] = 5.0
    middle, low, high = pointwise_band(curves, np.random.default_rng(0))
    assert (low[0], middle[0], high[0]) == (5.0, 5.0, 5.0)
    np.testing.assert_allclose(middle[1:], np.linspace(0, 1, 7)[1:])
    assert (low[1:] < middle[1:]).all()
    assert (high[1:] > middle[1:]).all()


@pytest.fixture(scope="module")
def rliable():
    return json.loads(Path(__file__).with_name("published_statistics.json").read_text(encoding="utf-8"))


def scores_given(rliable, name):
    rows = np.array(rliable["given"][name])  # [runs, tasks]
    return {str(task): rows[:, task] for task in range(rows.shape[1])}


@pytest.mark.parametrize("group", ["x", "y", "few"])
def test_aggregates_are_rliables_numbers(rliable, group):
    scores = scores_given(rliable, group)
    statistics = {"iqm": interquartile_mean, "mean": mean, "median": median, "gap": optimality_gap(1.0)}
    for name, statistic in statistics.items():
        found = estimate(scores, statistic, np.random.default_rng(0))
        value, low, high = rliable["found"][f"{name} {group}"]
        assert found.value == pytest.approx(value, abs=1e-12), name
        width = high - low  # both draw their resamples: the ends agree to a few per cent of the width
        assert (found.low, found.high) == pytest.approx((low, high), abs=0.06 * width), name


def test_probability_of_improvement_is_rliables_number(rliable):
    x, y = (scores_given(rliable, name) for name in ("x", "y"))
    found = probability_of_improvement(x, y, np.random.default_rng(0))
    value, low, high = rliable["found"]["improvement x y"]
    assert found.value == pytest.approx(value, abs=1e-12)
    assert (found.low, found.high) == pytest.approx((low, high), abs=0.06 * (high - low))
