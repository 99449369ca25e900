"""Runs under Ray: exact counters, and what happens when a process is killed."""

from __future__ import annotations

import os
import signal
from types import SimpleNamespace

import numpy as np
import psutil
import pytest

from onibi.clusters.run_state import state_of
from onibi.learners.learner_actor import LearnerActor
from onibi.platform.checkpoint import load_checkpoint
from onibi.platform.errors import ConfigError
from onibi.platform.policy import NO_WEIGHTS
from onibi.platform.replay.datasets.row_columns import row_columns
from onibi.platform.replay.log.log_reader import ReplayLog
from onibi.platform.replay.ring.reader import RingReader
from onibi.platform.spec import ROLE_FINAL, ROLE_STEP

FRAGMENT_ROWS = 2 * 8  # of the workshop's actors: environments x steps
ENDLESS = {"budget__max_env_steps": 10**7, "checkpoint__period_seconds": 1.5, "replay__capacity_rows": 400_000}
IN_FLIGHT = 2


def processes_of(process):
    """Every process below it, whatever became of the processes between: Ray's daemons and workers included."""
    return [child for child in psutil.Process(process.pid).children(recursive=True) if child.is_running()]


def workers(process, role: str):
    """Ray names a worker's process after its actor."""
    found = []
    for child in processes_of(process):
        try:
            title = " ".join(child.cmdline())
        except psutil.Error:
            continue
        if title.startswith(f"ray::{role}"):
            found.append(child)
    return found


def checkpoint_of(workshop, name="run"):
    return load_checkpoint(workshop.runs / name / "checkpoints")


def learnt(workshop) -> bool:
    """Whether there is a checkpoint with updates in it; the first one can come before the first row."""
    return bool(workshop.history()) and bool(workshop.checkpoints()) and state_of(checkpoint_of(workshop)).updates > 0


def ring_of(workshop):
    (ring,) = [path for path in workshop.rings.iterdir() if path.suffix == ".ring"]
    return ring


def committed_places(reader):
    """Where the readable rows of all lanes lie."""
    snapshot, slots = reader.snapshot(), reader.layout.slots
    lanes = enumerate(zip(snapshot.oldest, snapshot.cursor, strict=True))
    return np.concatenate([lane * slots + np.arange(oldest, cursor) % slots for lane, (oldest, cursor) in lanes])


def check_rows(ring):
    """No row doubled: in every lane, steps and episodes go on by one, and an episode id belongs to one episode."""
    reader = RingReader(ring)
    try:
        snapshot, slots = reader.snapshot(), reader.layout.slots
        seen, rows = set(), 0
        for lane in range(len(snapshot.cursor)):
            numbers = np.arange(snapshot.oldest[lane], snapshot.cursor[lane])
            places = lane * slots + numbers % slots
            columns = [reader.columns[name][places] for name in ("episode_id", "step", "role")]
            whole = numbers >= reader.oldest_now()[lane]  # a busy machine gives the ring time to go round
            episode, step, role = (column[whole] for column in columns)
            rows += int((role == ROLE_STEP).sum())
            begins = np.concatenate([[True], role[:-1] == ROLE_FINAL])
            ids = episode[begins].tolist()
            assert len(set(ids)) == len(ids)
            assert not seen & set(ids)
            seen |= set(ids)
            assert (step[begins][1:] == 0).all()
            goes_on = ~begins[1:]
            assert (episode[1:][goes_on] == episode[:-1][goes_on]).all()
            assert (step[1:][goes_on] == step[:-1][goes_on] + 1).all()
        return rows, snapshot.inserted_rows
    finally:
        reader.close()


def end(workshop, process, number=signal.SIGINT, seconds=60):
    """Ask the whole process group to end, as a terminal's Ctrl-C does; its exit code."""
    os.killpg(process.pid, number)
    return process.wait(seconds)


def finish(process, kept):
    """Whatever the test did: nothing that it started stays."""
    process.kill()
    process.wait()
    for child in kept:
        if child.is_running():
            child.kill()
    psutil.wait_procs(kept, timeout=10)


def test_killed_roles_are_replaced_and_ctrl_c_leaves_nothing_behind(workshop):
    """One run: kill -9 of a rollout actor, kill -9 of the learner, then Ctrl-C to the process group."""
    process = workshop.start(serial=False, **ENDLESS)
    kept = []
    try:
        workshop.wait_for(lambda: learnt(workshop), 150, process)
        kept = processes_of(process)
        steps = lambda: workshop.history()[-1]["actors/env_steps"]  # noqa: E731

        victim = workers(process, "RolloutActor")[0]
        before = steps()
        victim.kill()
        workshop.wait_for(lambda: "died and was replaced" in workshop.log_of(), 60, process)
        workshop.wait_for(lambda: steps() > before + 1_000, 60, process)
        workshop.wait_for(lambda: len(workers(process, "RolloutActor")) == 2, 60, process)
        assert victim.pid not in {each.pid for each in workers(process, "RolloutActor")}

        (learner,) = workers(process, "LearnerActor")
        saved = state_of(checkpoint_of(workshop))
        learner.kill()
        workshop.wait_for(lambda: "learner died and was replaced" in workshop.log_of(), 60, process)
        newest = workshop.checkpoints()[-1].name
        workshop.wait_for(lambda: workshop.checkpoints()[-1].name > newest, 60, process)
        again = state_of(checkpoint_of(workshop))
        assert again.updates > saved.updates > 0
        assert again.drawn_rows == 16 * again.updates, "drawn rows are those of the updates that count"

        rows, inserted = check_rows(ring_of(workshop))
        assert 0 < rows <= inserted
        kept = processes_of(process)
        assert len(kept) >= 6
        assert end(workshop, process) == 0, workshop.log_of()
        _, alive = psutil.wait_procs(kept, timeout=15)
        assert [each.name() for each in alive] == []
    finally:
        finish(process, kept)
    assert "Traceback" not in workshop.log_of()
    assert "constructor arguments in the object store" not in workshop.log_of(), "Ray could not restart such a role"
    assert workshop.record()["status"] == "interrupted"
    assert list(workshop.rings.iterdir()) == []
    last = state_of(checkpoint_of(workshop))
    assert last.drawn_rows == 16 * last.updates
    assert workshop.record()["results"]["env_steps"] == last.env_steps
    for figure in ("repeated", "lost"):
        assert max(row.get(f"replay/{figure}_fragments", 0.0) for row in workshop.history()) == 0.0


def untrained(columns):
    """How many of some rows are steps whose action a policy without weights chose."""
    return int(((columns["policy_version"] == NO_WEIGHTS) & (columns["role"] == ROLE_STEP)).sum())


def untrained_rows(workshop):
    """As ``untrained``, of all rows in the log, and how many rows these are."""
    log = ReplayLog(workshop.runs / "run" / "replay")
    parts = [row_columns(log.spec, log.read(segment)) for segment in log.segments]
    return sum(map(untrained, parts)), sum(len(part["role"]) for part in parts)


@pytest.mark.slow  # test_resume.py and test_rings_of_killed_runs.py are its short form
def test_a_run_killed_as_a_whole_goes_on_with_its_counters_and_its_weights(workshop):
    process = workshop.start(serial=False, **ENDLESS)
    kept = []
    try:
        workshop.wait_for(lambda: learnt(workshop), 150, process)
        kept = processes_of(process)
        names = {each.pid: each.name() if "ray::" not in each.name() else each.cmdline()[0].strip() for each in kept}
        process.kill()
        process.wait()
        # Ray's two agents notice at their leisure that their raylet is gone; roles and daemons must not linger.
        working = [each for each in kept if not names[each.pid].endswith("Agent")]
        _, alive = psutil.wait_procs(working, timeout=30)
        assert [names[each.pid] for each in alive] == []
    finally:
        finish(process, kept)
    saved = state_of(checkpoint_of(workshop))
    rows, inserted = check_rows(ring_of(workshop))
    assert rows == inserted >= saved.env_steps > 0, "nothing was overwritten yet, so every step is there once"
    reader = RingReader(ring_of(workshop))
    places = committed_places(reader)
    random_steps = untrained({name: reader.columns[name][places] for name in ("policy_version", "role")})
    reader.close()
    assert 0 < random_steps < rows

    target = inserted + 1_000
    again = workshop.start(
        serial=False,
        command="resume",
        overrides=[f"budget.max_env_steps={target}", "checkpoint.period_seconds=1000"],
    )
    try:
        assert again.wait(200) == 0, workshop.log_of(command="resume")
    finally:
        finish(again, [])
    last = state_of(checkpoint_of(workshop))
    assert workshop.record()["status"] == "finished"
    assert target <= last.env_steps < target + FRAGMENT_ROWS, "the fragment that reaches the budget is the last one"
    assert last.updates > saved.updates
    assert last.drawn_rows == 16 * last.updates
    assert last.session == saved.session + 1
    assert untrained_rows(workshop)[0] == random_steps, "none was taken while the learner came up"
    assert list(workshop.rings.iterdir()) == []
    steps = [row["actors/env_steps"] for row in workshop.history()]
    assert steps == sorted(set(steps))


@pytest.mark.slow  # the test above ends like this, too
def test_a_run_ends_at_its_env_steps_with_exact_counters(workshop):
    process = workshop.start(serial=False, budget__max_env_steps=3_000, replay__capacity_rows=40_000)
    try:
        assert process.wait(200) == 0, workshop.log_of()
    finally:
        finish(process, [])
    last = state_of(checkpoint_of(workshop))
    assert workshop.record()["status"] == "finished"
    assert 3_000 <= last.env_steps < 3_000 + FRAGMENT_ROWS
    assert last.updates > 0
    assert last.drawn_rows == 16 * last.updates
    assert workshop.record()["results"]["env_steps"] == last.env_steps
    assert workshop.record()["results"]["updates"] == last.updates
    assert list(workshop.rings.iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize("inference", [None, {"cpus": 0.1}])
def test_the_actors_of_a_resumed_run_begin_with_the_checkpoints_weights(workshop, inference):
    workshop.train(serial=False, placement__inference=inference)
    before, rows = untrained_rows(workshop)
    assert 0 < before < rows
    assert workshop.resume(overrides=["budget.max_env_steps=1200"]).status == "finished"
    after, more = untrained_rows(workshop)
    assert more >= rows + 500
    assert after == before


@pytest.mark.slow  # what is told is in tests/actors/test_rollout.py
def test_an_environment_that_raises_under_ray_is_one_clear_message(workshop, tmp_path):
    (tmp_path / "ray_fault_envs.py").write_text(
        "from onibi.actors.environments.corridor import CaptionCorridor\n"
        "class Faulty(CaptionCorridor):\n"
        "    def __init__(self): super().__init__(3, 3); self.left = 0\n"
        "    def step(self, action): raise OSError('the roof fell in')\n",
        encoding="utf-8",
    )
    process = workshop.start(serial=False, environment={"id": "ray_fault_envs:Faulty"})
    try:
        assert process.wait(120) == 1, workshop.log_of()
    finally:
        finish(process, [])
    log = workshop.log_of()
    assert "ray_fault_envs:Faulty raised in actor" in log
    assert "OSError: the roof fell in" in log
    assert "Traceback" not in log
    assert list(workshop.rings.iterdir()) == []


@pytest.mark.slow  # test_shard_actor.py has its short form
def test_a_ring_that_cannot_be_made_under_ray_is_one_clear_message_and_no_run(workshop):
    process = workshop.start(serial=False, replay__folder=str(workshop.rings / "nowhere"))
    try:
        assert process.wait(120) == 1, workshop.log_of()
    finally:
        finish(process, [])
    log = workshop.log_of()
    assert "replay.folder" in log
    assert "Traceback" not in log and "ray::" not in log
    assert list(workshop.runs.iterdir()) == []


def test_what_a_learners_building_raises_is_told_by_its_first_slice_of_training(workshop):
    """Nobody waits for the answer of ``build`` itself."""

    def build(publish):
        raise ConfigError("no bins can be placed")

    hub = SimpleNamespace(note=SimpleNamespace(remote=lambda _notes: None))
    learner = LearnerActor.__ray_actor_class__(hub, 1)
    learner.build(build)
    with pytest.raises(ConfigError, match="no bins can be placed"):
        learner.train(0.1)


@pytest.mark.slow  # test_joined_inference.py and test_remote_policies.py are its short form
def test_forward_passes_of_all_actors_in_one_process_which_may_die(workshop):
    process = workshop.start(serial=False, **ENDLESS, placement__inference={"cpus": 0.2})
    kept = []
    try:
        workshop.wait_for(lambda: learnt(workshop), 150, process)
        kept = processes_of(process)
        (victim,) = workers(process, "InferenceActor")
        victim.kill()
        workshop.wait_for(lambda: "inference died and was replaced" in workshop.log_of(), 60, process)
        before = workshop.history()[-1]["actors/env_steps"]
        workshop.wait_for(lambda: workshop.history()[-1]["actors/env_steps"] > before + 1_000, 60, process)
        lags = [row["actors/policy_lag_max"] for row in workshop.history() if "actors/policy_lag_max" in row]
        assert lags, "actors act by published weights"
        kept = processes_of(process)
        assert end(workshop, process) == 0, workshop.log_of()
    finally:
        finish(process, kept)
    assert "Traceback" not in workshop.log_of()
    together = [row["inference/requests_per_pass"] for row in workshop.history() if "inference/passes" in row]
    assert max(together) >= 1
