"""What rows of an experiment say: comparisons, thresholds, the time left, one row a run."""

from __future__ import annotations

import csv
import dataclasses
import io
import multiprocessing

import pytest
from rich.console import Console

from onibi.clusters.experiments.declaration import (
    Arm,
    CalledTrial,
    Comparison,
    Experiment,
    ShortForm,
    TrainedTrial,
    Tuning,
)
from onibi.clusters.experiments.figure import differences_png
from onibi.clusters.experiments.outcome import (
    arm_outcomes,
    check_comparisons,
    comparison_outcomes,
    errors_of,
    thresholds,
)
from onibi.clusters.experiments.report import arrival_table, comparison_table
from onibi.clusters.experiments.result_table import ResultTable, read_rows, write_rows
from onibi.clusters.experiments.schedule import Schedule, total_seconds
from onibi.platform.errors import ConfigError


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


@pytest.mark.parametrize("paired", [True, False])
@pytest.mark.parametrize("expected", ["above", "not below", "tie"])
def test_two_seeds_show_nothing_whatever_was_expected(tmp_path, expected, paired):
    claim = Comparison(arm="a", other="b", expected=expected, paired=paired)
    pair = dataclasses.replace(toy_pair(expected), seeds=(1, 2), comparisons=(claim,))
    schedule = filled(tmp_path, pair, {(arm, seed): {"a": 9.0, "b": 0.0}[arm] for arm in "ab" for seed in (1, 2)})
    outcomes = comparison_outcomes(schedule, arm_outcomes(schedule))
    assert [(each.found, each.as_expected) for each in outcomes] == [("too few runs", None)]
    console = Console(width=160, record=True, file=io.StringIO())
    console.print(comparison_table(outcomes))
    assert "NOT shown: it takes more --seeds" in console.export_text()


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


@pytest.mark.parametrize("cut", range(26, 400, 13))
def test_a_table_cut_below_its_first_line_reads_as_its_whole_rows(tmp_path, cut):
    path = tmp_path / "rows.csv"
    rows = [{"config_hash": "ab", "seed": str(seed), "error": 'say "no", then'} for seed in range(20)]
    write_rows(path, rows)
    content = path.read_bytes()
    path.write_bytes(content[:cut])
    expected = max(0, content[:cut].count(b"\n") - 1)
    assert read_rows(path) == rows[:expected]


def test_lines_with_too_few_or_too_many_fields_are_left_out(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text("config_hash,seed,score\nab,1,5\nab,2\nab,3,5,6\n,4,5\nab,5,7\n", encoding="utf-8")
    assert [row["seed"] for row in read_rows(path)] == ["1", "5"]


def test_rows_that_another_process_wrote_stay_when_one_of_ours_is_added(tmp_path):
    path = tmp_path / "rows.csv"
    one, two = ResultTable(path), ResultTable(path)
    one.add({"config_hash": "ab", "seed": 1, "status": "ok"})
    two.add({"config_hash": "ab", "seed": 2, "status": "ok"})
    one.add({"config_hash": "ab", "seed": 3, "status": "ok"})
    assert [row["seed"] for row in read_rows(path)] == ["1", "2", "3"]
    assert [path.name for path in tmp_path.iterdir()] == ["rows.csv"], "no lock file is left"


def _write_many(path, first):
    table = ResultTable(path)
    for seed in range(first, first + 40):
        table.add({"config_hash": "ab", "seed": seed, "status": "ok"})


def test_four_processes_that_write_at_the_same_time_lose_no_row(tmp_path):
    path = tmp_path / "rows.csv"
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=_write_many, args=(path, 40 * number)) for number in range(4)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(100)
    assert [writer.exitcode for writer in writers] == [0, 0, 0, 0]
    assert {row["seed"] for row in read_rows(path)} == {str(seed) for seed in range(160)}


def permuted_pair(**changes):
    pair = toy_pair("above")
    tested = Comparison(arm="a", other="b", expected="above", test="permutation")
    return dataclasses.replace(pair, **{"seeds": (1, 2, 3, 4, 5), "comparisons": (tested,)} | changes)


def test_a_permutation_comparison_tells_p_and_where_each_run_lies(tmp_path):
    scores = {("b", seed): float(seed) for seed in range(1, 6)} | {("a", seed): seed + 10.0 for seed in range(1, 6)}
    schedule = filled(tmp_path, permuted_pair(), scores)
    (outcome,) = comparison_outcomes(schedule, arm_outcomes(schedule))
    assert outcome.p_value == pytest.approx(2 / 252)
    assert outcome.singles == (8.0, 9.0, 10.0, 11.0, 12.0)
    assert (outcome.found, outcome.as_expected) == ("above", True)
    assert 7 < outcome.difference.low < outcome.difference.value == 10.0 < outcome.difference.high < 13


def test_three_runs_against_three_are_too_few_whatever_they_score(tmp_path):
    scores = {("b", seed): 0.0 for seed in (1, 2, 3)} | {("a", seed): 100.0 + seed for seed in (1, 2, 3)}
    schedule = filled(tmp_path, permuted_pair(seeds=(1, 2, 3)), scores)
    (outcome,) = comparison_outcomes(schedule, arm_outcomes(schedule))
    assert (outcome.found, outcome.as_expected, outcome.p_value) == ("too few runs", None, pytest.approx(0.1))
    assert differences_png([outcome], tmp_path / "few.png", "few")


def test_more_runs_than_can_be_looked_at_are_an_error_that_says_how_many(tmp_path):
    schedule = filled(tmp_path, permuted_pair(seeds=tuple(range(1, 13))), {})
    with pytest.raises(ConfigError, match=r"a against b: .* 11 against 11\. Ask for fewer --seeds"):
        check_comparisons(schedule)
    check_comparisons(filled(tmp_path, permuted_pair(seeds=tuple(range(1, 12))), {}))


def test_pairs_have_no_permutation_test_of_two_groups():
    with pytest.raises(ValueError, match="exclude each other"):
        Comparison(arm="a", other="b", expected="tie", paired=True, test="permutation")


def test_the_short_form_has_its_own_arms_seeds_and_settings():
    trained = TrainedTrial(preset="cartpole-dqn", success_span=(100, 50_000))
    form = ShortForm(settings={"budget.max_env_steps": 4_000}, arms=("b",), seeds=2, episodes=7)
    experiment = dataclasses.replace(
        toy_pair("tie"), short=form, seeds=(5, 6, 7), arms=(toy_arm("a"), toy_arm("b", trial=trained))
    )
    assert [arm.name for arm in experiment.arms_of(short=True)] == ["b"]
    assert [arm.name for arm in experiment.arms_of(short=False)] == ["a", "b"]
    shortened = experiment.trial_of(experiment.arms[1], short=True)
    assert (shortened.episodes, shortened.success_span) == (7, (100, 4_000))
    assert shortened.overrides[-1] == "budget.max_env_steps=4000"
    called = CalledTrial(function="toy:measure", arguments={"base": 1.0}, preset="cartpole-dqn", overrides=("seed=2",))
    assert called.shortened(form).overrides == ("seed=2", "budget.max_env_steps=4000")
    assert toy_arm().trial.shortened(form) == toy_arm().trial, "a call without a preset has no settings"
    with pytest.raises(ValueError, match="'nobody'"):
        dataclasses.replace(experiment, short=ShortForm(arms=("nobody",)))


def test_a_failed_run_of_a_tuning_that_is_no_longer_declared_fails_nothing(tmp_path):
    def tuned(*values):
        arm = toy_arm("a", tuning=Tuning(name="base", values=values, seeds=(50,)))
        return Experiment(name="e", summary="s", seeds=(1,), arms=(arm,))

    def failing(schedule):
        for job in list(schedule.open_jobs(())):
            value = f"base={job.trial.arguments['base']}"
            row = {"arm": "a", "seed": job.seed, "config_hash": job.config_hash, "stage": job.stage, "tuned": value}
            schedule.table.add(row | {"status": "failed", "error": "no such luck"})

    before = filled(tmp_path, tuned(1.0), {})
    failing(before)
    assert errors_of(before, arm_outcomes(before)) == ["a, seed 50, base=1.0: no such luck"]
    now = filled(tmp_path, tuned(2.0), {})
    assert errors_of(now, arm_outcomes(now)) == []
    failing(now)
    assert errors_of(now, arm_outcomes(now)) == ["a, seed 50, base=2.0: no such luck"]


def test_runs_that_never_arrive_are_shown_as_over_the_budget(tmp_path):
    trial = TrainedTrial(preset="cartpole-dqn", success_span=(0, 50_000))
    experiment = dataclasses.replace(toy_pair("tie"), arms=(toy_arm("a", trial=trial), toy_arm("b")))
    schedule = filled(tmp_path, experiment, {})
    job = next(iter(schedule.open_jobs(())))
    for seed, steps in ((1, 30_000.0), (2, None), (3, 12_500.0)):
        row = {"arm": "a", "seed": seed, "config_hash": job.config_hash, "status": "ok", "steps_to_80": steps}
        schedule.table.add(row | {"return": 1.0, "score": 1.0, "wall_seconds": 4.0})
    outcomes = arm_outcomes(schedule)
    assert outcomes[0].arrivals == {1: 30_000.0, 2: None, 3: 12_500.0}
    console = Console(width=120, record=True, file=io.StringIO())
    console.print(arrival_table(outcomes))
    shown = console.export_text()
    assert "12.5k, 30.0k, > 50.0k" in shown
    assert "2/3" in shown
