"""Experiments of one's own with faults: told with the declaration, or a row; no traceback, hang or false claim."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from rich.console import Console

from onibi.clusters.cli import experiment as cli_experiment
from onibi.clusters.experiments.declaration import Arm, CalledTrial, Experiment, ShortForm, TrainedTrial, Tuning
from onibi.clusters.experiments.outcome import arm_outcomes
from onibi.clusters.experiments.registry import find_experiment
from onibi.clusters.experiments.report import arms_table, outcome_table
from onibi.clusters.experiments.result_table import ResultTable, read_rows
from onibi.clusters.experiments.schedule import Schedule
from onibi.platform.errors import ConfigError

FAULTY = """
import os, signal, subprocess, time
from pathlib import Path
from onibi.clusters.experiments.declaration import Arm, CalledTrial, Experiment

def leaves_a_fork(*, seed):
    if not (child := os.fork()):
        time.sleep(600)
        os._exit(0)
    Path("child").write_text(str(child))
    os.kill(os.getpid(), signal.SIGKILL)

def leaves_a_program(*, seed):
    Path("child").write_text(str(subprocess.Popen(["sleep", "600"]).pid))
    os.kill(os.getpid(), signal.SIGKILL)

def complains(*, seed):
    raise RuntimeError("x" * 200_000)

def made(name):
    trial = CalledTrial(function=f"faulty:{name}")
    arm = Arm(name="a", task="t", group="g", trial=trial, guess_seconds=1.0)
    return Experiment(name="v1.5", summary="s", seeds=(1,), arms=(arm,))

FORK, PROGRAM, LONG = made("leaves_a_fork"), made("leaves_a_program"), made("complains")
"""


@pytest.fixture
def command(tmp_path):
    (tmp_path / "faulty.py").write_text(FAULTY, encoding="utf-8")

    def run(name):
        kept = {key: value for key, value in os.environ.items() if not key.startswith("ONIBI_")}
        return subprocess.run(
            [sys.executable, "-m", "onibi", "experiment", f"faulty:{name}"],
            cwd=tmp_path,
            text=True,
            capture_output=True,
            timeout=120,
            env={**kept, "COLUMNS": "200", "NO_COLOR": "1"},
        )

    return run


@pytest.mark.parametrize("name", ["FORK", "PROGRAM"])
def test_a_run_that_dies_is_a_row_and_what_it_started_ends_with_it(command, tmp_path, name):
    finished = command(name)
    child = int((tmp_path / "child").read_text())
    left = [psutil.Process(child)] if psutil.pid_exists(child) else []
    _, alive = psutil.wait_procs(left, timeout=10)
    for process in alive:
        process.kill()
    assert (finished.returncode, alive) == (1, []), finished.stderr
    (row,) = read_rows(tmp_path / "runs/experiments/v1.5.csv")  # the whole name, not v1.csv
    assert "was killed by SIGKILL" in row["error"]


def test_a_long_error_is_shortened_and_the_table_can_be_read_again(command, tmp_path):
    for _ in range(2):
        finished = command("LONG")
        assert (finished.returncode, "Traceback" in finished.stderr) == (1, False)
    (row,) = read_rows(tmp_path / "runs/experiments/v1.5.csv")
    assert row["error"].endswith("… (200,014 characters)")
    assert len(row["error"]) < 2_100


def arm(**changes):
    trial = CalledTrial(function="toy:measure")
    return Arm(**{"name": "a", "task": "t", "group": "g", "trial": trial, "guess_seconds": 1.0} | changes)


def made(*arms, **changes):
    return Experiment(**{"name": "e", "summary": "s", "seeds": (1,), "arms": arms} | changes)


@pytest.mark.parametrize(
    ("declare", "told"),
    [
        (lambda: made(arm(), seeds=()), "arm a has no seeds"),
        (lambda: made(arm(seeds=())), "arm a has no seeds"),
        (lambda: made(arm(), seeds=(1.0, 2.0)), "allowed: integers"),
        (lambda: made(arm(), reference_seeds=("1",)), "allowed: integers"),
        (made, "has no arms"),
        (lambda: made(arm(), name="my/own"), "experiment 'my/own': its name is that of a folder"),
        (lambda: made(arm(), name=".."), r"experiment '\.\.'"),
        (lambda: arm(name="a/b", trial=TrainedTrial(preset="p")), "arm 'a/b': its name is that of a folder"),
        (lambda: arm(score_range=(1, 1)), "both ends are one"),
        (lambda: Tuning(name="lr", values=(), seeds=(9,)), "none is empty"),
        (lambda: Tuning(name="lr", values=(1.0,), seeds=()), "none is empty"),
        (lambda: ShortForm(seeds=0), "has 0 seeds"),
        (lambda: CalledTrial(function="m:f", arguments={"path": Path("x")}), "m:f has arguments that are no plain"),
    ],
)
def test_a_declaration_that_could_only_fail_later_or_claim_nothing_is_refused(declare, told):
    with pytest.raises(ValueError, match=told):
        declare()


@pytest.mark.parametrize("name", ["dqn[lr=0.1]", "dqn[/b]"])
def test_names_are_shown_as_they_are(tmp_path, name):
    experiment = made(arm(name=name), name="e", summary="which [rate]?")
    schedule = Schedule(experiment, ResultTable(tmp_path / "rows.csv"), experiment.arms, None, short=False, retry=False)
    console = Console(width=200)
    for table in (arms_table(schedule), outcome_table(experiment, arm_outcomes(schedule))):
        with console.capture() as shown:
            console.print(table)
        assert name in shown.get()
        assert "which [rate]?" in shown.get()


def test_in_80_columns_claims_and_seeds_are_whole_and_long_tasks_folded(tmp_path):
    claimed = arm(name="minatar-space-invaders-dqn", task="chain against dynamic programming", at_least=475.0)
    experiment = made(claimed, seeds=(*range(41, 44), 60))
    schedule = Schedule(experiment, ResultTable(tmp_path / "rows.csv"), experiment.arms, None, short=False, retry=False)
    console = Console(width=80)
    with console.capture() as shown:
        console.print(arms_table(schedule))
    assert "≥ 475" in shown.get()
    assert "41-43,60" in shown.get()
    assert {"chain", "against", "dynamic", "programming"} <= set(shown.get().split())


@pytest.mark.parametrize(
    ("source", "told"),
    [
        ("import sys\nsys.exit(0)", r"SystemExit: 0 \(.*mine\.py:2\)"),
        ("import math\nmath.nothing", r"AttributeError: .*'nothing' \(.*mine\.py:2\)"),
        ("", r"mine:EXPERIMENT: not importable .*EXPERIMENT.*Check the path"),
    ],
)
def test_a_module_that_fails_when_it_is_imported_is_told_with_its_line(tmp_path, monkeypatch, source, told):
    (tmp_path / "mine.py").write_text(source, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "mine", raising=False)
    with pytest.raises(ConfigError, match=told):
        find_experiment("mine:EXPERIMENT")
    sys.modules.pop("mine", None)


@pytest.mark.parametrize("text", ["1-1000000000000", "9" * 5_000, "1-9999,20000-20010"])
def test_seeds_that_no_machine_can_hold_are_refused(text):
    with pytest.raises(ConfigError, match=r"more than 10,000 seeds|more than 18 digits"):
        cli_experiment._seeds(text)
