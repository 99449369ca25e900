"""Replay shard and hub may die: a run under Ray goes on by itself from its last checkpoint, with its ring."""

from __future__ import annotations

import json
import logging
import os
import signal
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace

import pytest

from onibi.clusters.coordinator import store_losses
from onibi.clusters.coordinator.store_losses import run_through_losses
from onibi.clusters.run_state import RunState, state_of
from onibi.platform.checkpoint import Checkpoint, load_checkpoint
from onibi.platform.errors import CheckpointError, StoreLostError, TrainingError
from onibi.platform.replay.log.log_reader import ReplayLog
from onibi.platform.spec import ROLE_STEP

LOST = StoreLostError("the hub died. What was learnt is in the last checkpoint.")
ENDLESS = {"budget__max_env_steps": 10**7, "replay__capacity_rows": 400_000, "replay__log__seal_seconds": 1.0}


class Sessions:
    """Stands in for RayRun: each session saves a checkpoint, or not, and ends as it is told."""

    def __init__(self, *ends, saves=()):
        self.ends, self.saves, self.begun, self.cuts = list(ends), set(saves), [], []
        self.newest, self.evaluations, self.due = None, [], []

    def __call__(self, plan, run_id, journal, should_stop, checkpoint):
        self.begun.append(None if checkpoint is None else checkpoint.step)
        self.due.append(None if checkpoint is None else state_of(checkpoint).next_evaluation)
        return self

    def run(self):
        number = len(self.begun)
        if number in self.saves:
            self.newest = 100 * number
        end = self.ends[number - 1]
        if isinstance(end, Exception):
            raise end
        return end

    def last_checkpoint(self):
        if self.newest is None:
            raise CheckpointError("there is none")
        return saved_at(self.newest)

    def cut_after(self, env_steps, _seconds):
        self.cuts.append(env_steps)

    def note(self, _text):
        pass


def saved_at(step, next_evaluation=0):
    state = RunState(env_steps=step, next_evaluation=next_evaluation)
    return Checkpoint(step=step, path=Path(), created_at="", tensors={}, tables={}, state={"run": asdict(state)})


def run_all(monkeypatch, sessions, checkpoint=None, should_stop=lambda: False, period=None):
    monkeypatch.setattr(store_losses, "RayRun", sessions)
    plan = SimpleNamespace(settings=SimpleNamespace(evaluation=SimpleNamespace(period_env_steps=period)))
    return run_through_losses(plan, "run", sessions, should_stop, checkpoint)


def test_a_session_follows_from_the_newest_checkpoint_and_what_came_after_it_is_forgotten(monkeypatch, caplog):
    sessions = Sessions(LOST, LOST, "finished", saves={1, 2})
    with caplog.at_level(logging.WARNING):
        assert run_all(monkeypatch, sessions) == "finished"
    assert sessions.begun == [None, 100, 200]
    assert sessions.cuts == [100, 200]
    assert "the hub died; all roles begin anew from the checkpoint of 100 env steps" in caplog.text


def test_without_a_checkpoint_and_at_the_end_that_was_asked_for_a_loss_ends_the_run(monkeypatch):
    for sessions, should_stop in ((Sessions(LOST), lambda: False), (Sessions(LOST, saves={1}), lambda: True)):
        with pytest.raises(StoreLostError, match="the hub died"):
            run_all(monkeypatch, sessions, should_stop=should_stop)
        assert len(sessions.begun) == 1


def test_the_sixth_loss_without_a_new_checkpoint_ends_the_run(monkeypatch):
    sessions = Sessions(*[LOST] * 20, saves={1, 3})
    with pytest.raises(StoreLostError):
        run_all(monkeypatch, sessions)
    assert len(sessions.begun) == 3 + 5
    resumed = Sessions(*[LOST] * 20)
    resumed.newest = 50
    with pytest.raises(StoreLostError):
        run_all(monkeypatch, resumed, checkpoint=saved_at(50))
    assert len(resumed.begun) == 6


def test_an_evaluation_that_a_loss_broke_off_is_due_again_and_one_that_was_booked_is_not(monkeypatch):
    monkeypatch.setattr(Sessions, "last_checkpoint", lambda self: saved_at(self.newest, next_evaluation=200))
    for booked, due in (([], 0), ([{"env_steps": 40.0}], 0), ([{"env_steps": 100.0}], 200)):
        sessions = Sessions(LOST, "finished", saves={1})
        sessions.evaluations = booked
        run_all(monkeypatch, sessions, period=100)
        assert sessions.due == [None, due]


def test_other_failures_are_not_tried_again(monkeypatch):
    sessions = Sessions(TrainingError("no move"), saves={1})
    with pytest.raises(TrainingError, match="no move"):
        run_all(monkeypatch, sessions)
    assert len(sessions.begun) == 1


def kill(workshop, process, role):
    (pid,) = workshop.ray_pids(process, role)
    os.kill(pid, signal.SIGKILL)


def last_checkpoint(workshop):
    return state_of(load_checkpoint(workshop.runs / "run" / "checkpoints"))


@pytest.mark.slow
def test_a_run_goes_on_after_its_shard_and_its_hub_were_killed(workshop):
    process = workshop.start(serial=False, **ENDLESS, checkpoint__period_seconds=1.5)
    workshop.wait_for(lambda: workshop.checkpoints() and last_checkpoint(workshop).updates > 0, 150, process)
    for number, role in enumerate((b"ShardActor", b"HubActor", b"HubActor", b"ShardActor"), start=1):
        kill(workshop, process, role)
        workshop.wait_for(lambda: last_checkpoint(workshop).session == number, 60, process)  # noqa: B023 (at once)
        before = last_checkpoint(workshop)
        workshop.wait_for(lambda: last_checkpoint(workshop).updates > before.updates, 60, process)  # noqa: B023
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 0, workshop.log_of()
    told = workshop.log_of()
    assert told.count("the replay shard died") == told.count("the hub died") == 2
    assert told.count("all roles begin anew from the checkpoint of") == 4
    assert "Traceback" not in told and "Unhandled" not in told
    assert list(workshop.rings.iterdir()) == []

    state = last_checkpoint(workshop)
    assert (workshop.record()["status"], state.session) == ("interrupted", 4)
    assert state.drawn_rows == 16 * state.updates
    steps = [row["actors/env_steps"] for row in workshop.history()]
    assert steps == sorted(set(steps))
    log = ReplayLog(workshop.runs / "run" / "replay")
    assert log.verify() == []
    rows = log.dataset().to_table(columns=["role", "episode_id", "step"]).to_pylist()
    assert len({tuple(row.values()) for row in rows}) == len(rows), "no row is there twice"
    steps = sum(row["role"] == ROLE_STEP for row in rows)
    assert steps == state.env_steps, "and none was lost: the ring kept what the log had not"


@pytest.mark.slow
def test_a_store_that_dies_before_the_first_checkpoint_ends_the_run(workshop):
    process = workshop.start(serial=False, **ENDLESS)
    workshop.wait_for(lambda: workshop.history(), 150, process)
    kill(workshop, process, b"ShardActor")
    assert process.wait(60) == 1, workshop.log_of()
    assert "the replay shard died" in workshop.log_of() and "Traceback" not in workshop.log_of()
    assert json.loads((workshop.runs / "run" / "run.json").read_text())["status"] == "failed"
