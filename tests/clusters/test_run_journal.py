"""The journal of a session: which checkpoints stay, and what a failing one does not end."""

from __future__ import annotations

import dataclasses
import itertools
import signal
import subprocess
import sys

import numpy as np
import pytest
import yaml

from onibi.actors.evaluation import PlayedEpisode
from onibi.clusters.run_journal import RunJournal
from onibi.clusters.run_settings import RunSettings
from onibi.platform.checkpoint import CheckpointParts, best_step, list_checkpoints
from onibi.platform.config import read_settings
from onibi.platform.errors import EnvironmentFault
from onibi.platform.run_folder import create_run, find_run


@pytest.fixture
def journal(workshop):
    mapping = workshop.settings()
    mapping["checkpoint"]["keep_last"] = 1
    folder = create_run(workshop.runs, "run")
    made = RunJournal(folder, read_settings(RunSettings, mapping), display=False)
    yield made
    made.abandon()


def steps_of(workshop):
    return [entry.step for entry in list_checkpoints(workshop.runs / "run" / "checkpoints")]


EPISODES = [PlayedEpisode(1.0, 9, 0.0, {}), PlayedEpisode(0.0, 9, 0.0, {})]


def test_a_checkpoint_that_is_being_evaluated_outlives_newer_ones_and_can_be_named_best(journal, workshop):
    """An evaluation beside the training may last longer than ``keep_last`` checkpoints."""
    assert journal.save(10, CheckpointParts())
    for step in (20, 30):
        assert journal.save(step, CheckpointParts(), keep=(10,))
    journal.evaluate(10, 1.0, EPISODES)
    assert best_step(workshop.runs / "run" / "checkpoints") == 10
    assert journal.save(40, CheckpointParts())
    assert steps_of(workshop) == [10, 40]


def test_an_evaluation_whose_checkpoint_is_gone_is_booked_and_ends_no_run(journal, workshop, caplog):
    journal.save(10, CheckpointParts())
    journal.save(20, CheckpointParts())
    assert steps_of(workshop) == [20]
    journal.evaluate(10, 1.0, EPISODES)
    assert [row["env_steps"] for row in journal.evaluations] == [10]
    assert "no checkpoint of step 10" in caplog.text


def test_lines_that_are_no_evaluations_are_left_out_and_told_of(journal, workshop, caplog):
    """A line that was edited or damaged ended the run at its next evaluation, with a traceback."""
    lines = '{"env_steps": 5.0, "returns": [1.0]}\n{"env_steps": [1], "judged": 1.0, "return_mean": 1.0}\n{}\n'
    (workshop.runs / "run" / "evaluations.jsonl").write_text(lines, encoding="utf-8")
    journal.save(10, CheckpointParts())
    journal.evaluate(10, 1.0, EPISODES)
    assert [row["env_steps"] for row in journal.evaluations] == [10]
    assert "3 lines without env_steps, judged, return_mean left out, 1 evaluations read" in caplog.text


def test_an_evaluation_tells_the_intrinsic_return_only_where_captions_are_paid(journal, workshop):
    journal.save(10, CheckpointParts())
    assert journal.evaluate(10, 1.0, EPISODES)["intrinsic_return_mean"] == 0.0
    mapping = workshop.settings(captioner={"kind": "none"}, rewards__intrinsic=None)
    unpaid = RunJournal(create_run(workshop.runs, "plain"), read_settings(RunSettings, mapping), display=False)
    unpaid.save(10, CheckpointParts())
    assert "intrinsic_return_mean" not in unpaid.evaluate(10, 1.0, EPISODES)
    unpaid.abandon()


def test_a_session_that_fails_while_it_ends_is_told_as_failed_with_its_own_error(workshop, monkeypatch):
    def broken(*_):
        raise ValueError("the curve cannot be drawn")

    monkeypatch.setattr(RunJournal, "_write_reports", broken)
    with pytest.raises(ValueError, match="the curve cannot be drawn") as failure:
        workshop.train(budget__max_env_steps=200)
    assert failure.value.__context__ is None, "giving the run up afterwards brings no error of its own"
    assert find_run(workshop.runs, "run").record().status == "failed"


def test_the_history_of_a_long_run_has_rows_farther_and_farther_apart_and_loses_no_figure(journal, workshop):
    for second in range(1, 3_601):
        journal.interval({"time/seconds": float(second), "actors/env_steps": 10.0 * second})
    hour = len(workshop.history())
    assert hour == 3_600
    for second in range(3_601, 36_001):
        rare = {"learner/rare": float(second)} if second % 997 == 0 else {}
        journal.interval({"time/seconds": float(second), "actors/env_steps": 10.0 * second, **rare})
    rows = workshop.history()[hour:]
    assert 3_600 * 1.5 < len(rows) < 3_600 * 2.5  # 3,600 · ln 10 = 8,289 at most, and intervals are whole seconds
    told = [row["learner/rare"] for row in rows if "learner/rare" in row]
    given = [float(second) for second in range(3_988, 36_001, 997)]
    assert told in (given, given[:-1]), "the last one may wait for its row still"
    gaps = [later["time/seconds"] - row["time/seconds"] for row, later in itertools.pairwise(rows)]
    assert max(gaps) <= 11.0


@pytest.mark.parametrize("end", ["close", "abandon"])
def test_what_waits_for_its_row_is_written_at_the_end(journal, workshop, end):
    for second in (36_000.0, 36_001.0):
        journal.interval({"time/seconds": second, "actors/env_steps": second, "learner/loss": second})
    assert [row["time/seconds"] for row in workshop.history()] == [36_000.0]
    if end == "close":
        journal.close("finished", 36_001, 1, 36_001.0, [], np.zeros(0))
    else:
        journal.abandon()
    assert [row["learner/loss"] for row in workshop.history()] == [36_000.0, 36_001.0]


def test_what_waits_for_its_row_is_forgotten_with_all_else_past_the_checkpoint_and_rows_follow_at_once(
    journal, workshop
):
    """Where a store died, in a run of hours, the figures of the lost part came as a row after all."""
    for steps, seconds in ((100, 36_000.0), (110, 36_001.0), (120, 36_002.0)):
        journal.interval({"actors/env_steps": steps, "time/seconds": seconds, "learner/loss": 1.0})
    journal.cut_after(105, 36_000.1)
    journal.interval({"actors/env_steps": 106, "time/seconds": 36_000.5})
    journal.abandon()
    assert [row["actors/env_steps"] for row in workshop.history()] == [100, 106]
    assert "learner/loss" not in workshop.history()[-1]


def test_rows_of_a_time_after_the_checkpoint_are_forgotten_though_no_env_step_was_made_in_it(journal, workshop):
    """A learner that is slow holds actors back; where a store died then, the run's time went backwards."""
    for seconds in (1.0, 2.0, 3.0):
        journal.interval({"actors/env_steps": 100, "time/seconds": seconds})
    journal.cut_after(100, 1.5)
    assert [row["time/seconds"] for row in workshop.history()] == [1.0]


def test_a_run_whose_output_nobody_reads_any_more_goes_on(workshop):
    """As behind `| head`, or a pager that was left: the run failed, without a checkpoint."""
    config = workshop.runs.parent / "run.yaml"
    config.write_text(yaml.safe_dump(workshop.settings(budget__max_env_steps=None, budget__max_seconds=3.5)))
    command = [sys.executable, "-m", "onibi", "train", str(config), "--name", "run", "--serial"]
    process = subprocess.Popen(
        [*command, "--runs-folder", str(workshop.runs)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    assert process.stdout is not None
    while b" steps " not in process.stdout.readline():
        assert process.poll() is None
    process.stdout.close()
    process.wait(120)
    assert workshop.record()["status"] == "finished"
    assert workshop.history()[-1]["time/seconds"] >= 3.5


def test_a_terminal_that_is_closed_ends_the_run_with_a_checkpoint(workshop):
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)  # these tests may run under nohup
    try:
        process = workshop.start(budget__max_env_steps=10**7, checkpoint__period_seconds=1_000.0)
    finally:
        signal.signal(signal.SIGHUP, before)
    workshop.wait_for(workshop.history, 120, process)
    process.send_signal(signal.SIGHUP)
    assert process.wait(120) == 0, workshop.log_of()
    assert "SIGHUP: saving a checkpoint and ending" in workshop.log_of()
    assert workshop.record()["status"] == "interrupted"
    assert len(workshop.checkpoints()) == 1


def test_a_run_whose_last_checkpoint_the_disk_refuses_has_not_finished(workshop, monkeypatch, caplog):
    """What it learnt is lost, and `onibi resume` learns it again; called finished, it would refuse that."""
    interval = RunJournal.interval

    def refuses(journal, *arguments):
        (workshop.runs / "run" / "checkpoints").rmdir()
        (workshop.runs / "run" / "checkpoints").touch()
        monkeypatch.setattr(RunJournal, "interval", interval)
        interval(journal, *arguments)

    monkeypatch.setattr(RunJournal, "interval", refuses)
    assert workshop.train(budget__max_env_steps=200).status == "interrupted"
    assert workshop.record()["status"] == "interrupted"
    assert "checkpoint not written" in caplog.text


FAULTY = """
import itertools
from onibi.actors.environments.corridor import CaptionCorridor
count = itertools.count()

class Faulty(CaptionCorridor):
    def step(self, action):
        if next(count) == LIMIT:
            raise OSError("the roof fell in")
        return super().step(action)
"""


@pytest.mark.parametrize(("limit", "is_saved"), [(300, True), (3, False)])
def test_what_a_serial_run_learnt_before_its_environment_raised_is_saved(
    workshop, tmp_path, monkeypatch, limit, is_saved
):
    (tmp_path / f"faulty_{limit}.py").write_text(FAULTY.replace("LIMIT", str(limit)), encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(EnvironmentFault, match="the roof fell in"):
        workshop.train(environment={"id": f"faulty_{limit}:Faulty", "max_episode_steps": 30})
    assert (workshop.runs / "run").exists() == is_saved
    if is_saved:
        assert workshop.record()["status"] == "failed"
        result = workshop.resume()
        assert result.status == "finished"
        assert list(workshop.rings.iterdir()) == []


def test_what_train_returns_is_shown_in_a_line(workshop):
    """In a notebook it is the last value of its cell, and 100 figures, all evaluations and captions would follow."""
    result = workshop.train(budget__max_env_steps=300)
    assert len(result.figures) > 50 and result.captions
    told = repr(result)
    assert told.startswith("RunResult(folder=") and f"status='finished', env_steps={result.env_steps}, " in told
    assert len(told) < 200 + len(str(result.folder))


def test_that_the_log_fails_and_takes_rows_again_is_told_once_each_time(journal, caplog):
    for fault in ("", "disk full", "disk full", "", "", "disk gone"):
        journal.tell_log_fault(fault)
    told = [(record.levelname, record.getMessage()[:34]) for record in caplog.records]
    again = ("WARNING", "the replay log takes rows again; r")
    assert told == [("ERROR", "disk full"), again, ("ERROR", "disk gone")]


def test_the_summary_can_be_copied_line_by_line_and_names_a_better_checkpoint_than_the_last(workshop, monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    result = workshop.train(budget__max_env_steps=300)
    last = result.evaluations[-1]
    better = {**last, "env_steps": 100.0, "judged": last["judged"] + 1, "return_mean": 0.75}
    lines = dataclasses.replace(result, evaluations=[better, last]).summary().splitlines()
    assert f"folder     {result.folder}" in lines
    assert f"curve      {result.folder / 'artifacts' / 'learning_curve.png'}" in lines
    assert [line for line in lines if line.startswith("best ")] == [
        "best       return 0.75 at 100 env steps: that checkpoint is kept, and evaluated by default"
    ]
    assert not any(line.startswith("best ") for line in result.summary().splitlines())
    tied = dataclasses.replace(result, evaluations=[{**better, "judged": last["judged"]}, last])
    assert not any(line.startswith("best ") for line in tied.summary().splitlines()), "of equals the later one"
