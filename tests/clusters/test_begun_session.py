"""A session that begins from a checkpoint writes that down, or does not begin where env steps would be lost by that."""

from __future__ import annotations

import os
import signal

import pytest

from onibi.clusters.begun_session import save_begun
from onibi.clusters.run_journal import RunJournal
from onibi.clusters.run_settings import RunSettings
from onibi.clusters.run_state import RunState, checkpoint_parts, state_of
from onibi.platform.checkpoint import load_checkpoint
from onibi.platform.config import read_settings
from onibi.platform.errors import CheckpointError
from onibi.platform.replay.feed_state import FeedState
from onibi.platform.replay.log.log_reader import ReplayLog
from onibi.platform.run_folder import create_run
from onibi.platform.spec import ROLE_STEP


def refuse(checkpoints, step):
    """The disk refuses checkpoints of a step: files lie where their folders would be. Returns: those files."""
    there = [checkpoints / f".{step:012d}-{serial:06d}.part" for serial in range(2, 9)]
    for path in there:
        path.touch()
    return there


@pytest.fixture
def journal(workshop):
    made = RunJournal(create_run(workshop.runs, "run"), read_settings(RunSettings, workshop.settings()), display=False)
    yield made
    made.abandon()


@pytest.fixture
def saved(journal):
    """The checkpoint of a run whose ring had taken all of its 100 env steps."""
    assert journal.save(100, checkpoint_parts(RunState(env_steps=100), {}, {}, FeedState(plain={}, arrays={})))
    return journal.last_checkpoint()


def test_a_session_is_in_the_checkpoint_that_it_resumed_from_before_it_does_anything(journal, saved):
    state = state_of(saved).resumed(0, ring_kept=False)
    save_begun(journal, saved, state)
    assert state_of(journal.last_checkpoint()) == state == RunState(env_steps=100, inserted_base=100, session=1)


def test_what_the_disk_refuses_ends_a_session_whose_ring_counts_anew_and_no_other(journal, saved, caplog):
    refuse(saved.path.parent, saved.step)
    save_begun(journal, saved, state_of(saved).resumed(130, ring_kept=True))
    assert "checkpoint not written" in caplog.text
    for inserted, kept in ((0, False), (0, True)):
        with pytest.raises(CheckpointError, match=r"session 1 begins, with a new replay ring.*Free some space"):
            save_begun(journal, saved, state_of(saved).resumed(inserted, ring_kept=kept))
    assert state_of(journal.last_checkpoint()) == RunState(env_steps=100)


@pytest.mark.slow
def test_no_env_step_is_forgotten_after_a_resume_on_a_full_disk_and_a_kill(workshop):
    process = workshop.start(serial=False)
    assert process.wait(200) == 0, workshop.log_of()
    checkpoints = workshop.runs / "run" / "checkpoints"
    last = lambda: state_of(load_checkpoint(checkpoints))  # noqa: E731
    before = last()
    in_the_way = refuse(checkpoints, before.env_steps)
    on = {"command": "resume", "overrides": ["budget.max_env_steps=10000000"]}
    process = workshop.start(**on)
    assert process.wait(200) == 1, workshop.log_of(command="resume")
    assert "Free some space, and `onibi resume` goes on" in workshop.log_of(command="resume")
    assert list(workshop.rings.iterdir()) == []
    for path in in_the_way:
        path.unlink()
    process = workshop.start(**on)
    workshop.wait_for(lambda: workshop.history()[-1]["actors/env_steps"] > before.env_steps + 100, 200, process)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    process = workshop.start(**on)
    workshop.wait_for(lambda: last().session == 2, 200, process)
    process.send_signal(signal.SIGINT)
    assert process.wait(200) == 0, workshop.log_of(command="resume")
    rows = ReplayLog(workshop.runs / "run" / "replay").dataset().to_table(columns=["role"])["role"].to_pylist()
    assert last().env_steps == rows.count(ROLE_STEP) > before.env_steps + 100
