"""`onibi experiment`: rows that last through kills, damage and changes, each case with the real command."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from functools import partial

import psutil
import pytest
import yaml

from onibi.clusters.cli import experiment as cli_experiment
from onibi.clusters.experiments.declaration import Arm, CalledTrial, Comparison, Experiment, Tuning
from onibi.clusters.experiments.registry import EXPERIMENTS, find_experiment
from onibi.clusters.experiments.result_table import read_rows, write_rows
from onibi.platform.errors import ConfigError

TOY = """
import os, time
from pathlib import Path
from onibi.clusters.experiments.declaration import Arm, CalledTrial, Comparison, Experiment, TrainedTrial, Tuning

def measure(*, seed, base, pause=0.0, how="well"):
    with Path("calls.log").open("a") as log:
        log.write(f"{base} {seed}\\n")
    time.sleep(pause)
    if how == "raises" and not Path("mended").exists():
        raise RuntimeError("no such luck,\\nand a second line")
    if how == "diverges" and not Path("mended").exists():
        base = float("nan")
    if how == "tidy":
        try:
            Path(f"held-{seed}").touch()
            time.sleep(100)
        finally:
            Path(f"held-{seed}").unlink()
    if how == "dies":
        os.kill(os.getpid(), 9)
    print("a library prints")
    return {"return": base + seed / 10, "other": 1.5}

def arm(name, base, **changes):
    given = {key: changes.pop(key) for key in ("pause", "how") if key in changes}
    trial = CalledTrial(function="toy:measure", arguments={"base": base, **given})
    return Arm(**{"name": name, "task": "toy", "group": name, "trial": trial, "guess_seconds": 9.0} | changes)

def made(*arms, **others):
    return Experiment(**{"name": "toy", "summary": "does it run?", "seeds": (1, 2, 3), "arms": arms} | others)

PLAIN = made(arm("low", 1.0), arm("high", 2.0, at_least=2.0), comparisons=(
    Comparison(arm="high", other="low", expected="above", paired=True),))
MANY = made(arm("low", 1.0), arm("high", 2.0), comparisons=(
    Comparison(arm="high", other="low", expected="above", test="permutation"),))
DIVERGING = made(arm("bad", 1.0, how="diverges"), seeds=(1,))
SLOW = made(arm("slow", 1.0, pause=1.0), seeds=tuple(range(1, 9)))
TIDY = made(arm("tidy", 1.0, how="tidy"), seeds=(1, 2))
TOO_HIGH = made(arm("low", 1.0, at_least=1.15))
FAILING = made(arm("bad", 1.0, how="raises"), arm("good", 2.0), arm("dead", 3.0, how="dies"), seeds=(1,))
ABSENT = made(arm("good", 1.0), arm("gone", 1.0, trial=TrainedTrial(preset="cartpole-nobody")))
TUNED = made(arm("tuned", 1.0, tuning=Tuning(name="base", values=(5.0, 7.0, 6.0), seeds=(50, 51))), seeds=(1, 2))
TRAINED = made(arm("corridor", 1.0, trial=TrainedTrial(preset="run.yaml", episodes=4)), seeds=(1,))
CLOCKED = made(arm("corridor", 1.0, trial=TrainedTrial(preset="run.yaml", episodes=4, overrides=(
    "budget.max_env_steps=100000000", "budget.max_seconds=0.5"))), seeds=(1,))
"""


PARTS = {"one": ("SLOW", "--jobs", "4"), "two": ("PLAIN", "--jobs", "1")}


class Shop:
    """A folder with the experiments above, and the command."""

    def __init__(self, folder) -> None:
        self.folder, self.csv = folder, folder / "rows.csv"
        (folder / "toy.py").write_text(TOY, encoding="utf-8")

    def start(self, name, *arguments):
        command = [sys.executable, "-m", "onibi", "experiment", f"toy:{name}", "--output", str(self.csv), *arguments]
        kept = {key: value for key, value in os.environ.items() if not key.startswith("ONIBI_")}
        return subprocess.Popen(
            command,
            cwd=self.folder,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**kept, "COLUMNS": "200", "NO_COLOR": "1"},
        )

    def run(self, name, *arguments):
        process = self.start(name, *arguments)
        stdout, stderr = process.communicate(timeout=240)
        return process.returncode, stdout, stderr

    def calls(self):
        log = self.folder / "calls.log"
        return log.read_text(encoding="utf-8").split("\n")[:-1] if log.exists() else []

    def wait_for_rows(self, count, process):
        deadline = time.monotonic() + 200
        while len(read_rows(self.csv)) < count:
            assert time.monotonic() < deadline
            assert process.poll() is None, process.communicate()
            time.sleep(0.05)


@pytest.fixture
def shop(tmp_path):
    return Shop(tmp_path)


def test_every_run_becomes_a_row_and_none_is_run_twice(shop):
    code, stdout, stderr = shop.run("PLAIN")
    assert code == 0, stderr
    assert sorted(shop.calls()) == ["1.0 1", "1.0 2", "1.0 3", "2.0 1", "2.0 2", "2.0 3"]
    assert "6 runs are missing" in stderr
    assert "a guess" in stderr
    assert "holds" in stdout
    assert "as expected" in stdout
    rows = read_rows(shop.csv)
    assert {(row["arm"], row["seed"], row["score"]) for row in rows} >= {("low", "1", "1.1"), ("high", "3", "2.3")}
    assert {row["other"] for row in rows} == {"1.5"}
    code, again, stderr = shop.run("PLAIN")
    assert (code, again) == (0, stdout)
    assert len(shop.calls()) == 6
    assert "missing" not in stderr


def test_one_seed_passes_no_claimed_comparison(shop):
    code, stdout, _ = shop.run("PLAIN", "--seeds", "1")
    assert "too few runs" in stdout
    assert "NOT shown: it takes more --seeds" in stdout
    assert code == 1


@pytest.mark.slow
def test_more_seeds_run_those_that_are_new_and_are_estimated_from_those_that_are_there(shop):
    shop.run("PLAIN", "--only", "low", "--seeds", "1-2")
    code, stdout, stderr = shop.run("PLAIN", "--only", "l*", "--seeds", "1-3,7")
    assert code == 0
    assert "2 runs are missing" in stderr
    assert "2 measured" in stderr
    assert "4/4" in stdout
    assert shop.calls().count("1.0 1") == 1


def test_a_claim_that_does_not_hold_ends_with_code_1_and_names_the_seed(shop):
    code, stdout, _ = shop.run("TOO_HIGH")
    assert code == 1
    assert "DOES NOT HOLD: seed 1" in stdout


def test_kill_9_in_the_middle_costs_the_runs_in_flight_alone(shop):
    process = shop.start("SLOW")
    shop.wait_for_rows(2, process)
    workers = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    process.communicate()  # closes the pipes
    _, left = psutil.wait_procs(workers, timeout=10)
    assert left == []  # they end with their runner: nobody would read their answers
    kept = {row["seed"]: row["date"] for row in read_rows(shop.csv)}
    begun = len(shop.calls())
    code, _, stderr = shop.run("SLOW")
    assert code == 0, stderr
    assert f"{8 - len(kept)} runs are missing" in stderr
    assert len(shop.calls()) == begun + 8 - len(kept)
    assert {row["seed"] for row in read_rows(shop.csv)} == {str(seed) for seed in range(1, 9)}


def test_ctrl_c_ends_every_process_and_keeps_the_rows(shop):
    process = shop.start("SLOW")
    shop.wait_for_rows(1, process)
    workers = psutil.Process(process.pid).children(recursive=True)
    assert len(workers) == 2
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=30)
    assert process.returncode == 130, stderr
    assert "Traceback" not in stderr
    assert psutil.wait_procs(workers, timeout=1)[1] == []
    assert 1 <= len(read_rows(shop.csv)) < 8


def test_ctrl_c_lets_a_called_run_take_what_it_holds_with_it(shop):
    process = shop.start("TIDY")
    deadline = time.monotonic() + 60
    while len(list(shop.folder.glob("held-*"))) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=30)
    assert process.returncode == 130
    assert list(shop.folder.glob("held-*")) == []


def test_a_table_that_cannot_be_written_is_told_before_the_first_run(shop):
    (shop.folder / "file").touch()
    for output in ("file/rows.csv", "/proc/rows.csv"):  # neither can root
        code, _, stderr = shop.run("PLAIN", "--output", output)
        assert (code, shop.calls()) == (2, [])
        assert "Traceback" not in stderr
        assert f"onibi: {output}: not " in stderr


def test_a_figure_that_cannot_be_written_is_told_before_the_first_run(shop):
    code, _, stderr = shop.run("PLAIN", "--figure", "nowhere/f.png")
    assert (code, shop.calls()) == (2, [])
    assert "onibi: nowhere/f.png: not writable (No such file or directory). Make its folder" in stderr


def test_seeds_and_the_short_form_exclude_each_other(shop):
    code, _, stderr = shop.run("PLAIN", "--short", "--seeds", "1-3")
    assert (code, shop.calls()) == (2, [])
    assert "--short runs the first of the declared seeds" in stderr


def test_a_run_that_fails_or_dies_is_a_row_with_its_error_and_the_others_go_on(shop):
    code, stdout, _ = shop.run("FAILING")
    assert code == 1
    rows = {row["arm"]: row for row in read_rows(shop.csv)}
    assert (rows["good"]["status"], rows["good"]["error"]) == ("ok", "")
    assert (rows["bad"]["status"], rows["bad"]["score"]) == ("failed", "")
    assert rows["bad"]["error"] == "RuntimeError: no such luck, | and a second line"
    assert "was killed by SIGKILL" in rows["dead"]["error"]
    assert "failed: bad, seed 1: RuntimeError: no such luck" in stdout
    before = len(shop.calls())
    shop.run("FAILING")
    assert len(shop.calls()) == before  # a failed row counts as there …
    (shop.folder / "mended").touch()
    code, stdout, _ = shop.run("FAILING", "--retry", "--only", "bad", "--only", "good")
    assert (code, len(shop.calls())) == (0, before + 1)  # … until it is asked for again
    assert {row["arm"]: row["status"] for row in read_rows(shop.csv)}["bad"] == "ok"


def test_a_score_that_is_no_number_is_a_failed_run_that_can_be_run_again(shop):
    code, stdout, _ = shop.run("DIVERGING")
    assert code == 1
    assert "failed: bad, seed 1: return is nan" in stdout
    assert [(row["status"], row["error"]) for row in read_rows(shop.csv)] == [("failed", "return is nan")]
    (shop.folder / "mended").touch()
    assert shop.run("DIVERGING", "--retry")[0] == 0
    assert [(row["status"], row["score"]) for row in read_rows(shop.csv)] == [("ok", "1.1")]


def test_an_older_row_that_is_booked_as_well_with_no_number_is_run_again_too(shop):
    (shop.folder / "mended").touch()
    shop.run("DIVERGING")
    rows = [{**row, "score": "nan", "return": "nan"} for row in read_rows(shop.csv)]
    write_rows(shop.csv, rows)
    assert shop.run("DIVERGING")[0] == 1
    assert shop.run("DIVERGING", "--retry")[0] == 0


def test_more_seeds_than_an_exact_test_can_look_at_are_refused_before_anything_runs(shop):
    code, stdout, stderr = shop.run("MANY", "--seeds", "1-12")
    assert (code, stdout, shop.calls()) == (2, "", [])
    assert "high against low: 12 scores against 12" in stderr
    assert shop.run("MANY", "--seeds", "1-12", "--only", "low")[0] == 0, "one arm alone is compared with nothing"


def test_two_experiments_that_write_one_table_keep_the_rows_of_both(shop, tmp_path):
    both = [shop.start(*what, "--runs-folder", str(tmp_path / name)) for name, what in PARTS.items()]
    for process in both:
        _, stderr = process.communicate(timeout=240)
        assert process.returncode == 0, stderr
    assert sorted((row["arm"], row["seed"]) for row in read_rows(shop.csv)) == sorted(
        [("slow", str(seed)) for seed in range(1, 9)]
        + [(arm, str(seed)) for arm in ("low", "high") for seed in (1, 2, 3)]
    )


def test_a_torn_last_line_costs_its_own_run_alone(shop):
    shop.run("PLAIN", "--only", "low", "--jobs", "1")
    content = shop.csv.read_bytes()
    shop.csv.write_bytes(content[:-7])
    assert [row["seed"] for row in read_rows(shop.csv)] == ["1", "2"]
    code, _, stderr = shop.run("PLAIN", "--only", "low")
    assert code == 0
    assert "the last line is torn" in stderr
    assert shop.calls()[3:] == ["1.0 3"]


def test_an_arm_without_its_preset_is_named_and_not_dropped(shop):
    code, stdout, stderr = shop.run("ABSENT")
    assert code == 1
    for text in (stdout, stderr):
        assert "gone" in text
        assert "not there" in text
    assert {row["arm"] for row in read_rows(shop.csv)} == {"good"}


def test_tuning_chooses_on_its_own_seeds_and_the_arm_runs_with_what_it_chose(shop):
    code, _, stderr = shop.run("TUNED", "--jobs", "1")
    assert code == 0, stderr
    rows = read_rows(shop.csv)
    final = [(row["tuned"], row["seed"]) for row in rows if row["stage"] == "final"]
    assert final == [("base=7.0", "1"), ("base=7.0", "2")]
    assert sorted({row["seed"] for row in rows if row["stage"] == "tuning"}) == ["50", "51"]
    assert len(rows) == 3 * 2 + 2
    assert shop.run("TUNED", "--seeds", "50")[0] == 2  # judged on what it was tuned on


def test_a_trained_arm_is_a_serial_run_with_fresh_episodes_of_its_best_checkpoint(shop, workshop):
    settings = workshop.settings(evaluation={"period_env_steps": 200, "episodes": 4, "envs": 2})
    (shop.folder / "run.yaml").write_text(yaml.safe_dump(settings), encoding="utf-8")
    code, _, stderr = shop.run("TRAINED")
    assert code == 0, stderr
    (row,) = read_rows(shop.csv)
    assert row["status"] == "ok", row["error"]
    assert (row["episodes"], row["seed"]) == ("4", "1")
    assert int(row["env_steps"]) >= 600
    assert len(row["curve"].split()) >= 3
    assert row["checkpoint"] in {point.split(":")[0] for point in row["curve"].split()}
    assert list(workshop.rings.iterdir()) == []


def test_a_trained_run_that_the_clock_ended_is_a_failed_row(shop, workshop):
    (shop.folder / "run.yaml").write_text(yaml.safe_dump(workshop.settings()), encoding="utf-8")
    code, stdout, _ = shop.run("CLOCKED")
    assert code == 1
    assert "the run ended by the clock after" in stdout
    assert [row["status"] for row in read_rows(shop.csv)] == ["failed"]


@pytest.mark.parametrize(
    ("ask", "told"),
    [
        (
            lambda: cli_experiment._arms(find_experiment("learners"), ["acrobot-dpn"], short=False),
            "Did you mean 'acrobot-dqn'?",
        ),
        *((partial(cli_experiment._seeds, text), "allowed: numbers and spans") for text in ("3-1", "x", "4-", "²")),
    ],
)
def test_a_wrong_option_is_told_with_what_is_allowed(ask, told):
    with pytest.raises(ConfigError) as error:
        ask()
    assert told in str(error.value)


def test_seeds_are_numbers_and_spans_each_once():
    assert cli_experiment._seeds("1-3,7,2") == (1, 2, 3, 7)


def test_the_list_names_every_experiment_and_the_arms_of_one(shop):
    everything = subprocess.run(
        [sys.executable, "-m", "onibi", "experiment", "--list"], cwd=shop.folder, text=True, capture_output=True
    )
    assert [line.split()[0] for line in everything.stdout.splitlines()] == list(EXPERIMENTS)
    code, stdout, _ = shop.run("ABSENT", "--list")
    assert code == 0
    assert "gone" in stdout
    assert shop.calls() == []


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_each_experiment_is_declared_without_faults(name):
    experiment = find_experiment(name)
    assert experiment.name == name
    assert len(experiment.seeds) >= 3
    assert len(experiment.reference_seeds) == 10


@pytest.mark.parametrize("name", ["lerners", "toy:NOTHING", "json:dumps"])
def test_what_is_no_experiment_is_refused(name):
    with pytest.raises(ConfigError, match=r"Did you mean 'learners'|not importable|allowed: an Experiment"):
        find_experiment(name)


def toy_arm(name="a", **changes):
    trial = CalledTrial(function="toy:measure", arguments={"base": 1.0})
    return Arm(**{"name": name, "task": "t", "group": "g", "trial": trial, "guess_seconds": 10.0} | changes)


@pytest.mark.parametrize(
    ("arms", "comparisons"),
    [
        ((toy_arm(), toy_arm()), ()),
        ((toy_arm(),), (Comparison(arm="a", other="b", expected="tie"),)),
        ((toy_arm(tuning=Tuning(name="base", values=(1.0,), seeds=(2, 9))),), ()),
    ],
    ids=["named twice", "compared with nobody", "tuned on what it is judged on"],
)
def test_a_declaration_that_contradicts_itself_is_refused(arms, comparisons):
    with pytest.raises(ValueError, match="experiment e"):
        Experiment(name="e", summary="s", seeds=(1, 2), arms=arms, comparisons=comparisons)


def test_a_shortened_experiment_claims_nothing_and_its_rows_do_not_count_later(shop):
    code, stdout, _ = shop.run("TOO_HIGH", "--short")
    assert code == 0
    assert "ran" in stdout
    assert "DOES NOT HOLD" not in stdout
    assert shop.calls() == ["1.0 1"]
    assert [row["stage"] for row in read_rows(shop.csv)] == ["short"]
    shop.run("TOO_HIGH", "--seeds", "1")
    assert [row["stage"] for row in read_rows(shop.csv)] == ["short", "final"]
