"""Runs under Ray that lose a role as they begin or end: one message, and a status that is true."""

from __future__ import annotations

import os
import signal

import pytest

pytestmark = pytest.mark.slow  # each is a whole run


def test_a_run_whose_learner_dies_at_the_end_of_its_budget_has_not_finished(workshop):
    process = workshop.start(serial=False, budget__max_env_steps=4_000)
    workshop.wait_for(lambda: workshop.history() and workshop.history()[-1]["actors/env_steps"] >= 3_500, 150, process)
    for pid in workshop.ray_pids(process, b"LearnerActor"):
        os.kill(pid, signal.SIGKILL)
    code = process.wait(200)  # another learner may or may not be up before the budget is used
    status, saved = workshop.record()["status"], [int(path.name.split("-")[0]) for path in workshop.checkpoints()]
    assert (code, status) in ((0, "finished"), (1, "failed")), workshop.log_of()
    assert (status == "finished") == (bool(saved) and saved[-1] >= 4_000), workshop.log_of()
    assert "Traceback" not in workshop.log_of()


def test_a_hub_that_dies_while_the_run_starts_is_one_message(workshop):
    process = workshop.start(serial=False)
    (pid,) = workshop.wait_for(lambda: workshop.ray_pids(process, b"HubActor"), 150, process)
    os.kill(pid, signal.SIGKILL)
    assert process.wait(150) == 1
    assert "onibi: the hub died" in workshop.log_of()
    assert "Traceback" not in workshop.log_of()


def test_sigterm_while_ray_starts_is_an_interruption(workshop):
    """Ray's own handler is at work then; it said that Ray could not be started, and that the machine was busy."""
    process = workshop.start(serial=False)
    workshop.wait_for(
        lambda: "starting Ray" in workshop.log_of() and workshop.pids(process, b"gcs_server"), 150, process
    )
    process.terminate()
    assert process.wait(150) == 130, workshop.log_of()
    assert "onibi: interrupted" in workshop.log_of()
    assert "could not be started" not in workshop.log_of() and "Traceback" not in workshop.log_of()
    assert workshop.record()["status"] == "interrupted"


@pytest.mark.parametrize("kind", ["appo", "impala"])
def test_actor_critics_learn_with_central_inference(workshop, kind):
    result = workshop.train(
        serial=False,
        placement__inference={"cpus": 0.1},
        replay__limiter={},
        learner={"kind": kind, "batch_lanes": 4, "rows": 8},
        budget__max_env_steps=600,
    )
    assert (result.status, result.env_steps >= 600, result.updates > 0) == ("finished", True, True)
