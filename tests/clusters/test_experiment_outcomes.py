"""What rows of an experiment say: comparisons, thresholds, the time left, one row a run."""

from __future__ import annotations

import csv

import pytest

from onibi.clusters.experiments.declaration import Arm, CalledTrial, Comparison, Experiment
from onibi.clusters.experiments.outcome import arm_outcomes, comparison_outcomes, thresholds
from onibi.clusters.experiments.result_table import ResultTable
from onibi.clusters.experiments.schedule import Schedule, total_seconds


def toy_arm(name="a", **changes):
    trial = CalledTrial(function="toy:measure", arguments={"base": 1.0})
    return Arm(**{"name": name, "task": "t", "group": "g", "trial": trial, "guess_seconds": 10.0} | changes)


def filled(tmp_path, experiment, scores):
    """A schedule whose table holds ``scores``: (arm, seed) → score."""
    table = ResultTable(tmp_path / "rows.csv")
    schedule = Schedule(experiment, table, experiment.arms, None, short=False, retry=False)
    for job in list(schedule.open_jobs(())):
        if (job.arm.name, job.seed) in scores:
            score = scores[job.arm.name, job.seed]
            row = {"arm": job.arm.name, "seed": job.seed, "config_hash": job.config_hash, "status": "ok"}
            table.add(row | {"return": score, "score": score, "wall_seconds": 4.0})
    return schedule


def toy_pair(expected, **changes):
    one = CalledTrial(function="toy:measure", arguments={"base": 1.0})
    two = CalledTrial(function="toy:measure", arguments={"base": 2.0})
    return Experiment(
        name="e",
        summary="s",
        seeds=(1, 2, 3),
        arms=(toy_arm("a", trial=one, **changes), toy_arm("b", trial=two, **changes)),
        comparisons=(Comparison(arm="a", other="b", expected=expected, paired=True),),
    )


@pytest.mark.parametrize(
    ("gains", "found", "expected_of"),
    [
        ((1.0, 2.0, 1.5), "above", {"above": True, "not below": True, "tie": False}),
        ((-1.0, 1.0, 0.1), "tie", {"above": False, "not below": True, "tie": True}),
        ((-1.0, -2.0, -1.5), "below", {"above": False, "not below": False, "tie": False}),
    ],
)
@pytest.mark.parametrize("higher_is_better", [True, False])
def test_a_comparison_is_told_by_the_interval_of_the_differences(tmp_path, gains, found, expected_of, higher_is_better):
    sign = 1 if higher_is_better else -1
    scores = {("b", seed): 10.0 * seed for seed in (1, 2, 3)}
    scores |= {("a", seed): 10.0 * seed + sign * gain for seed, gain in zip((1, 2, 3), gains, strict=True)}
    for expected, answer in expected_of.items():
        schedule = filled(tmp_path, toy_pair(expected, higher_is_better=higher_is_better), scores)
        (outcome,) = comparison_outcomes(schedule, arm_outcomes(schedule))
        assert (outcome.found, outcome.as_expected) == (found, answer)
        assert outcome.wins == sum(gain > 0 for gain in gains)


def test_a_comparison_waits_for_all_runs(tmp_path):
    schedule = filled(tmp_path, toy_pair("above"), {("a", 1): 1.0, ("b", 1): 0.0})
    (outcome,) = comparison_outcomes(schedule, arm_outcomes(schedule))
    assert (outcome.found, outcome.as_expected) == ("runs are missing", None)


def test_thresholds_are_the_worst_less_two_standard_deviations(tmp_path):
    schedule = filled(tmp_path, toy_pair("tie"), {("a", 1): 10.0, ("a", 2): 12.0, ("a", 3): 14.0})
    (found,) = thresholds(arm_outcomes(schedule))
    assert (found.worst, found.deviation, found.threshold) == (10.0, 2.0, 6.0)
    lower = filled(tmp_path, toy_pair("tie", higher_is_better=False), {("a", 1): 10.0, ("a", 2): 12.0, ("a", 3): 14.0})
    assert thresholds(arm_outcomes(lower))[0].threshold == 18.0


def test_the_time_left_counts_measured_seconds_and_guesses(tmp_path):
    schedule = filled(tmp_path, toy_pair("tie"), {("a", 1): 1.0, ("a", 2): 1.0})
    estimates = {each.arm: each for each in schedule.estimates()}
    assert (estimates["a"].missing, estimates["a"].seconds, estimates["a"].measured) == (1, 4.0, 2)
    assert (estimates["b"].missing, estimates["b"].seconds, estimates["b"].measured) == (3, 10.0, 0)
    assert total_seconds(schedule.estimates(), jobs=2) == (4 + 30) / 2


def test_a_row_replaces_the_failed_one_of_its_key(tmp_path):
    table = ResultTable(tmp_path / "rows.csv")
    table.add({"config_hash": "ab", "seed": 1, "status": "failed"})
    table.add({"config_hash": "ab", "seed": 2, "status": "ok"})
    table.add({"config_hash": "ab", "seed": 1, "status": "ok", "score": 1 / 3})
    with (tmp_path / "rows.csv").open(newline="") as file:
        assert [(row["seed"], row["status"], row["score"]) for row in csv.DictReader(file)] == [
            ("2", "ok", ""),
            ("1", "ok", "0.333333"),
        ]
