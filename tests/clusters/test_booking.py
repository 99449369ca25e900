"""A run's row says what its arm declares: what is wrong is told early, and what changes costs no run."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from onibi.clusters.experiments.booking import OWN_COLUMNS, declared_columns, misnamed_figures, rebook
from onibi.clusters.experiments.declaration import (
    Arm,
    CalledTrial,
    Experiment,
    ShortForm,
    TrainedTrial,
    Tuning,
)
from onibi.clusters.experiments.outcome import arm_outcomes, errors_of
from onibi.clusters.experiments.registry import find_experiment
from onibi.clusters.experiments.result_table import ResultTable, read_rows
from onibi.clusters.experiments.schedule import Schedule
from onibi.platform.errors import ConfigError

SHOP = """
from pathlib import Path
from onibi.clusters.experiments.declaration import Arm, CalledTrial, Experiment, TrainedTrial

def measure(*, seed, figures):
    with Path("calls.log").open("a") as log:
        log.write("one\\n")
    return figures

def made(figure, figures):
    trial = CalledTrial(function="shop:measure", arguments={"figures": figures})
    return Experiment(name="shop", summary="s", seeds=(1,), arms=(
        Arm(name="a", task="t", group="g", trial=trial, guess_seconds=1.0, figure=figure),))

MISSPELT, MENDED = made("rewad", {"reward": 2.5}), made("reward", {"reward": 2.5})
TEXT, TAKEN = made("reward", {"reward": "much"}), made("reward", {"reward": 1.0, "seed": 7})
NOTHING, YES = made("reward", None), made("won", {"won": True})
"""
WRONG = """
from onibi.clusters.experiments.declaration import Arm, Experiment, TrainedTrial
EXPERIMENT = Experiment(name="wrong", summary="s", seeds=(1,), arms=(
    Arm(name="a", task="t", group="g", trial=TrainedTrial(preset="cartpole-dqn"), guess_seconds=1.0, figure="retrun"),))
"""


@pytest.fixture
def experiment(tmp_path):
    (tmp_path / "shop.py").write_text(SHOP, encoding="utf-8")
    (tmp_path / "wrong_figure.py").write_text(WRONG, encoding="utf-8")

    def run(name, *arguments):
        kept = {key: value for key, value in os.environ.items() if not key.startswith("ONIBI_")}
        return subprocess.run(
            [sys.executable, "-m", "onibi", "experiment", name, "--output", "rows.csv", *arguments],
            cwd=tmp_path,
            text=True,
            capture_output=True,
            timeout=120,
            env={**kept, "COLUMNS": "200", "NO_COLOR": "1"},
        )

    return run


def test_a_figure_that_no_trained_run_gives_is_told_before_anything_runs(experiment, tmp_path):
    finished = experiment("wrong_figure:EXPERIMENT")
    assert finished.returncode == 2
    assert "arm a: no trained run gives a figure 'retrun'. Allowed: return, success" in finished.stderr
    assert "Traceback" not in finished.stderr
    assert not (tmp_path / "rows.csv").exists()


@pytest.mark.parametrize(
    ("figure", "span", "told"),
    [
        ("success_area", None, "it takes the trial's success_span"),
        ("return_95", (0, 9), "no trained run gives a figure 'return_95'"),
        ("curve", (0, 9), "no trained run gives a figure 'curve'"),
    ],
)
def test_a_score_that_is_text_or_takes_a_span_is_refused(figure, span, told):
    trial = TrainedTrial(preset="cartpole-dqn", success_span=span)
    with pytest.raises(ValueError, match=told):
        Arm(name="a", task="t", group="g", trial=trial, guess_seconds=1.0, figure=figure)


def test_a_score_of_the_span_and_one_of_a_called_function_are_taken():
    for trial in (TrainedTrial(preset="p", success_span=(0, 9)), CalledTrial(function="m:f")):
        Arm(name="a", task="t", group="g", trial=trial, guess_seconds=1.0, figure="success_area")


@pytest.mark.parametrize(
    ("changes", "told"),
    [({"success_span": (9, 9)}, "success_span 9 to 9"), ({"episodes": 0}, "has 0 episodes")],
)
def test_a_trial_whose_run_could_not_be_judged_is_refused(changes, told):
    with pytest.raises(ValueError, match=told):
        TrainedTrial(preset="cartpole-dqn", **changes)


def toy_arm(**changes):
    trial = CalledTrial(function="toy:measure")
    return Arm(**{"name": "a", "task": "t", "group": "g", "trial": trial, "guess_seconds": 1.0} | changes)


def test_a_short_form_that_ends_before_the_span_begins_is_refused_with_the_experiment():
    trial = TrainedTrial(preset="p", success_span=(5_000, 9_000))
    short = ShortForm(settings={"budget.max_env_steps": 4_000})
    with pytest.raises(ValueError, match="success_span 5000 to 4000"):
        Experiment(name="e", summary="s", seeds=(1,), arms=(toy_arm(trial=trial),), short=short)


def test_a_seed_that_is_declared_twice_is_refused_as_its_rows_would_be_one():
    with pytest.raises(ValueError, match="a seed twice"):
        Experiment(name="e", summary="s", seeds=(1, 2, 1), arms=(toy_arm(),))


@pytest.mark.parametrize(
    ("figure", "figures", "told"),
    [
        ("rewad", {"reward": 2.0}, "the run gave no figure 'rewad', but reward"),
        ("reward", {"reward": "much"}, "the figure 'reward' is 'much'; allowed: a number"),
        ("reward", {"reward": float("inf")}, "reward is inf"),
        ("reward", {"reward": "2.5"}, ""),
    ],
)
def test_what_is_no_score_is_an_error_of_its_run(figure, figures, told):
    columns = declared_columns(toy_arm(figure=figure), figures, "")
    assert (columns["status"], columns["error"]) == ("failed" if told else "ok", told)


def test_a_claim_with_two_ends_is_told_with_both():
    assert [toy_arm(**ends).claim for ends in ({"at_least": 0.2, "at_most": 0.8}, {"at_most": 0.8}, {})] == [
        "0.2 to 0.8",
        "≤ 0.8",
        "",
    ]


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("TEXT", "the figure 'reward' is 'much'; allowed: a number"),
        ("TAKEN", "figures are called as columns of the table are: seed"),
        ("NOTHING", "shop:measure: returned NoneType; allowed: figures"),
    ],
)
def test_a_function_that_returns_no_figures_is_a_failed_row_and_ends(experiment, tmp_path, name, told):
    finished = experiment(f"shop:{name}")
    assert finished.returncode == 1
    assert told in finished.stdout
    (row,) = read_rows(tmp_path / "rows.csv")
    assert (row["seed"], row["status"]) == ("1", "failed")


def test_yes_and_no_are_scores(experiment, tmp_path):
    assert experiment("shop:YES").returncode == 0
    assert read_rows(tmp_path / "rows.csv")[0]["score"] == "1"


def test_a_figure_that_is_declared_anew_is_read_from_the_rows_that_are_there(experiment, tmp_path):
    first = experiment("shop:MISSPELT")
    assert "failed: a, seed 1: the run gave no figure 'rewad', but reward" in first.stdout
    mended = experiment("shop:MENDED")
    assert mended.returncode == 0, mended.stdout
    assert "rows brought up to what their arms declare now: 1" in mended.stderr
    assert [(row["status"], row["error"], row["score"]) for row in read_rows(tmp_path / "rows.csv")] == [
        ("ok", "", "2.5")
    ]
    assert (tmp_path / "calls.log").read_text().count("one") == 1
    assert "rows brought up" not in experiment("shop:MENDED").stderr


def stored(tmp_path, *arms, **columns):
    """A schedule of the arms, whose first run is there."""
    experiment = Experiment(name="e", summary="s", seeds=(1,), arms=arms)
    table = ResultTable(tmp_path / "rows.csv")
    schedule = Schedule(experiment, table, arms, None, short=False, retry=False)
    job = next(iter(schedule.open_jobs(())))
    row = {"seed": 1, "config_hash": job.config_hash, "wall_seconds": 1.0}
    table.add(row | declared_columns(arms[0], columns, "") | columns)
    return schedule


def test_a_row_of_two_arms_that_judge_the_same_runs_stays_the_first_ones(tmp_path):
    one, two = toy_arm(name="one", figure="x"), toy_arm(name="two", figure="y")
    schedule = stored(tmp_path, one, two, x=1.0, y=2.0)
    assert rebook(schedule) == 0
    assert [outcome.scores for outcome in arm_outcomes(schedule)] == [{1: 1.0}, {1: 2.0}]


def test_digits_that_the_table_does_not_keep_change_no_row(tmp_path):
    schedule = stored(tmp_path, toy_arm(score_range=(20.0, 500.0)), **{"return": 20.00012})  # kept as 20.0001
    assert rebook(schedule) == 0


def test_a_normalized_score_that_is_damaged_is_written_anew(tmp_path):
    schedule = stored(tmp_path, toy_arm(score_range=(0.0, 4.0)), normalized="0.2S", **{"return": 1.0})
    assert rebook(schedule) == 1
    assert read_rows(schedule.table.path)[0]["normalized"] == "0.25"


def test_a_run_that_failed_by_itself_keeps_its_error(tmp_path):
    schedule = stored(tmp_path, toy_arm())
    (row,) = schedule.table.rows
    schedule.table.update(row, {"error": "RuntimeError: no luck"})
    assert rebook(schedule) == 0
    assert errors_of(schedule, arm_outcomes(schedule)) == ["a, seed 1: RuntimeError: no luck"]


def test_figures_may_have_any_name_but_those_of_the_tables_columns():
    assert misnamed_figures({"return": 1.0, "wall_seconds": 2.0}) == ""
    assert all(column in misnamed_figures({column: 1.0}) for column in OWN_COLUMNS)


def test_a_tuning_of_which_every_run_failed_chooses_nothing_and_nothing_more_is_run(tmp_path):
    trial = CalledTrial(function="toy:measure", arguments={"rate": 0.0})
    arm = toy_arm(trial=trial, tuning=Tuning(name="rate", values=(1.0, 2.0), seeds=(9,)))
    experiment = Experiment(name="e", summary="s", seeds=(1, 2), arms=(arm,))
    table = ResultTable(tmp_path / "rows.csv")
    schedule = Schedule(experiment, table, (arm,), None, short=False, retry=False)
    for job in list(schedule.open_jobs(())):
        row = {"arm": "a", "seed": job.seed, "config_hash": job.config_hash, "status": "failed", "error": "no luck"}
        table.add(row)
    assert schedule.tuned(arm) is None
    assert list(schedule.open_jobs(())) == []
    assert schedule.estimates() == []
    assert [outcome.is_claim_met for outcome in arm_outcomes(schedule)] == [False]


def test_a_module_of_an_experiment_that_cannot_be_imported_is_told_with_its_line(tmp_path, monkeypatch):
    (tmp_path / "breaks_at_once.py").write_text("x = 1\nraise RuntimeError('no luck')\n", encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ConfigError, match=r"RuntimeError: no luck .*breaks_at_once\.py:2"):
        find_experiment("breaks_at_once:EXPERIMENT")
