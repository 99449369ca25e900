"""A user's own annotator that is wrong is told once and clearly, by every command that meets it."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
from typer.testing import CliRunner

from onibi.clusters.cli.main import app

JUDGES = Path(__file__).parents[1] / "actors"
FAULTY = {"kind": "custom", "path": "faulty_judge:FaultyJudge", "arguments": {"fault": "string"}}
TOLD = "annotate yielded 'helpful' (str)"


@pytest.fixture(autouse=True)
def judges(monkeypatch):
    """The faulty judge's module, for this process and for those that it starts."""
    monkeypatch.syspath_prepend(str(JUDGES))
    monkeypatch.setenv("PYTHONPATH", str(JUDGES))


def test_a_serial_run_warns_once_without_a_traceback_and_goes_on(workshop, caplog):
    result = workshop.train(annotator=FAULTY)
    (record,) = [record for record in caplog.records if TOLD in record.getMessage()]
    assert record.levelno == logging.WARNING
    assert not any(record.exc_info for record in caplog.records if record.levelno >= logging.INFO)
    assert result.status == "finished"
    assert "annotators 1 of 1 could not judge at the end" in " ".join(result.summary().split())


@pytest.mark.slow  # a Ray of its own for one line; the serial run above tells the same in the fast ones
def test_a_ray_run_warns_even_where_it_is_over_before_it_looks_at_its_annotators(workshop, caplog, monkeypatch):
    monkeypatch.setattr("onibi.clusters.coordinator.ray_run.RayRun._interval", lambda *_: None)
    result = workshop.train(
        serial=False,
        annotator=FAULTY,
        actors__count=1,
        placement={"rollout_cpus": 0.2, "learner_cpus": 0.2},
        budget={"max_env_steps": 3_000, "max_seconds": None},
    )
    (record,) = [record for record in caplog.records if TOLD in record.getMessage()]
    assert (record.levelno, record.exc_info) == (logging.WARNING, None)
    assert result.status == "finished"


def test_annotate_tells_it_in_one_message_and_does_not_wait(workshop):
    workshop.train("stored")
    command = ["annotate", "stored", "--runs-folder", str(workshop.runs), "--annotator", "custom"]
    command += ["--set", "path=faulty_judge:FaultyJudge", "--set", "arguments.fault=string"]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 1, result.output
    assert result.output.count(TOLD) == 1
    assert "Traceback" not in result.output
    assert "0 of 4 judged in 0.0 s" in result.output
    command[-3:] = ["path=faulty_judge:NoMethod"]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 2, result.output
    assert "lacks ['annotate']" in result.output


def test_an_annotator_of_ones_own_is_measured_on_the_goal_that_it_has():
    command = ["annotate", "--benchmark", "--goal", "descend", "--limit", "20", "--annotator", "custom"]
    result = CliRunner().invoke(app, [*command, "--set", "path=faulty_judge:FaultyJudge"], env={"COLUMNS": "200"})
    assert result.exit_code == 0, result.output
    assert "it judges its own goal, not this one" in result.output
