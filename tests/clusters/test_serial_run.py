"""Runs in one process: they repeat, end when they should, and go on where they ended."""

from __future__ import annotations

import os
import re
import signal
import sqlite3

import numpy as np
import pytest

from onibi.clusters.run_plan import RunPlan
from onibi.clusters.run_state import newest_caption, state_of
from onibi.clusters.serial_run import SerialRun
from onibi.learners.learner_loop import LearnerLoop
from onibi.platform.checkpoint import load_checkpoint
from onibi.platform.errors import EnvironmentFault, OnibiError
from onibi.platform.policy import NO_WEIGHTS
from onibi.platform.replay.log.log_reader import ReplayLog
from onibi.platform.replay.ring.layout import read_header
from onibi.platform.replay.ring.reader import RingReader
from onibi.platform.replay.shard import Shard
from onibi.platform.spec import ROLE_STEP

LASTING = (
    *("time/seconds", "actors/env_steps_per_second", "learner/updates_per_second", "evaluation/seconds"),
    # What the log's thread has sealed by then.
    *(f"replay/log_{figure}" for figure in ("sealed_rows", "segments", "bytes", "lag_seconds")),
)


def checkpoint_of(workshop, name="run", which="last"):
    return load_checkpoint(workshop.runs / name / "checkpoints", which)


def learner_of(workshop, name="run"):
    return checkpoint_of(workshop, name).tensors["learner"]


def equal_tensors(first, second) -> bool:
    return first.keys() == second.keys() and all(np.array_equal(first[name], second[name]) for name in first)


def test_a_run_repeats_bit_for_bit_under_its_seed_and_differs_under_another(workshop, monkeypatch):
    # One row of figures for the whole run: where the seconds of an interval fall is the machine's business.
    monkeypatch.setattr("onibi.clusters.serial_run._INTERVAL_SECONDS", 1e9)
    results = {name: workshop.train(name, seed=seed) for name, seed in (("a", 3), ("b", 3), ("c", 4))}
    first, second, other = (learner_of(workshop, name) for name in "abc")
    assert equal_tensors(first, second)
    assert not equal_tensors(first, other)
    figures = [
        {k: v for k, v in results[name].figures.items() if k not in LASTING and "latency" not in k} for name in "abc"
    ]
    assert figures[0] == figures[1]
    assert figures[0] != figures[2]
    assert results["a"].updates > 20
    for name in ("captions", "keys", "labels"):
        first, second = (checkpoint_of(workshop, run).tables[name] for run in "ab")
        columns = [column for column in first.column_names if column not in ("time", "time_seconds", "latency_seconds")]
        assert first.select(columns).equals(second.select(columns)), name


def test_a_run_ends_at_its_env_steps_with_exact_counters_and_leaves_no_ring(workshop):
    result = workshop.train(budget__max_env_steps=400)
    assert result.status == "finished"
    assert 400 <= result.env_steps < 400 + 2 * 2 * 8, "at most one fragment of each actor too many"
    state = state_of(checkpoint_of(workshop))
    assert (state.env_steps, state.updates) == (result.env_steps, result.updates)
    assert state.drawn_rows == 16 * result.updates
    assert result.figures["actors/env_steps"] == result.env_steps
    # 4 rows are drawn for each one inserted past the first hundred, give or take the tolerance 2 · max(4 · 16, 16).
    assert abs(4 * (result.env_steps - 100) - state.drawn_rows) <= 128 + 64
    assert list(workshop.rings.iterdir()) == []
    assert workshop.record()["status"] == "finished"
    assert len(result.evaluations) == 1
    assert len(result.evaluations[0]["returns"]) == 4
    report = {row.key: row for row in result.captions}
    assert report["You enter the kitchen."].label == "helpful"
    assert report["You enter the kitchen."].sightings > 0
    assert sum(result.paid) > 0


def test_a_run_ends_at_its_seconds(workshop):
    result = workshop.train(budget__max_env_steps=None, budget__max_seconds=0.5)
    assert result.status == "finished"
    assert result.seconds >= 0.5


def test_a_stopped_run_saves_itself_and_goes_on_with_the_same_counters(workshop, monkeypatch):
    """SIGINT during a run: interrupted. Resumed, env steps, updates and drawn rows go on, learner and optimizer too."""
    update, calls = LearnerLoop.update, []

    def interrupted(loop):
        update(loop)
        calls.append(1)
        if len(calls) == 30:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(LearnerLoop, "update", interrupted)
    handler = signal.getsignal(signal.SIGINT)
    result = workshop.train(budget__max_env_steps=5_000)
    assert signal.getsignal(signal.SIGINT) is handler
    assert result.status == workshop.record()["status"] == "interrupted"
    assert result.updates >= 30
    assert list(workshop.rings.iterdir()) == []
    before = checkpoint_of(workshop)
    assert (state_of(before).env_steps, state_of(before).updates) == (result.env_steps, result.updates)

    monkeypatch.setattr(LearnerLoop, "update", update)
    started = []
    run = SerialRun.run

    def looked_at(session):
        started.append(
            (
                {n: t.numpy().copy() for n, t in session._learner.state_dict().items()},
                session._counters(),
                session._state,
            )
        )
        starts = [rollout._observation["observation"] for rollout in session._rollouts]
        started.append((starts, [rollout._rng.random() for rollout in session._rollouts]))
        return run(session)

    monkeypatch.setattr(SerialRun, "run", looked_at)
    more = workshop.resume(overrides=[f"budget.max_env_steps={result.env_steps + 300}"])
    (tensors, counters, state), _ = started
    assert equal_tensors(tensors, before.tensors["learner"]), "learner and optimizer are the checkpoint's"
    assert (counters.env_steps, counters.updates) == (result.env_steps, result.updates)
    assert counters.drawn_rows == state_of(before).drawn_rows
    assert state.session == 1
    assert more.status == "finished"
    assert result.env_steps + 300 <= more.env_steps < result.env_steps + 300 + 32
    after = state_of(checkpoint_of(workshop))
    assert after.drawn_rows == 16 * after.updates == 16 * more.updates
    assert more.updates > result.updates
    steps = [row["actors/env_steps"] for row in workshop.history()]
    assert steps == sorted(steps)


def test_each_session_draws_its_own_random_numbers(workshop, monkeypatch):
    seeds = []
    make = RunPlan._rollout

    def noted(plan, policy, envs, identity, *rest, **how):
        seeds.append(identity.seed)
        return make(plan, policy, envs, identity, *rest, **how)

    monkeypatch.setattr(RunPlan, "_rollout", noted)
    workshop.train(budget__max_env_steps=150)
    workshop.resume(overrides=["budget.max_env_steps=300"])
    workshop.resume(overrides=["budget.max_env_steps=450"])
    assert len(seeds) == 3 * 3  # two actors and one evaluation each
    assert len(set(seeds)) == len(seeds)


KILLED = {"checkpoint__period_seconds": 0.3, "budget__max_env_steps": 10**6}


def kill_after(workshop, process, enough):
    """SIGKILL when ``enough`` is true."""
    try:
        workshop.wait_for(enough, 100, process)
    finally:
        process.kill()
        process.wait()


def test_a_killed_run_goes_on_from_its_checkpoint_with_the_rows_that_shared_memory_kept(workshop, caplog):
    process = workshop.start(**KILLED)
    kill_after(workshop, process, lambda: len(workshop.checkpoints()) >= 2)
    rings = [path for path in workshop.rings.iterdir() if path.suffix == ".ring"]
    assert len(rings) == 1, "a kill leaves the ring"
    state = state_of(checkpoint_of(workshop))
    reader = RingReader(rings[0])
    inserted = reader.snapshot().inserted_rows
    reader.close()
    assert inserted >= state.env_steps > 0

    caplog.set_level("INFO")
    result = workshop.resume(overrides=[f"budget.max_env_steps={inserted + 200}", "checkpoint.period_seconds=1000"])
    assert result.status == "finished"
    assert "the replay ring of the killed session is there still, with" in caplog.text
    assert inserted + 200 <= result.env_steps < inserted + 200 + 32, "rows younger than the checkpoint count"
    after = state_of(checkpoint_of(workshop))
    assert after.session == state.session + 1
    assert after.inserted_base == 0
    assert after.drawn_rows == 16 * after.updates
    assert after.updates > state.updates
    # No burst for the rows that came in after the checkpoint: 200 rows pay for about 50 updates, and the tolerance.
    assert after.updates - state.updates <= (4 * (200 + 32) + 2 * 128) / 16
    assert list(workshop.rings.iterdir()) == []
    steps = [row["actors/env_steps"] for row in workshop.history()]
    assert steps == sorted(set(steps)), "what was told past the checkpoint was cut"


def test_a_ring_on_a_disk_is_made_again_where_the_machine_was_started_anew_after_the_kill(workshop, caplog):
    process = workshop.start(**KILLED)
    kill_after(workshop, process, lambda: len(workshop.checkpoints()) >= 2)
    (ring,) = [path for path in workshop.rings.iterdir() if path.suffix == ".ring"]
    header = read_header(ring)
    with ring.open("r+b") as file:
        before = bytes(byte ^ 0xFF for byte in header.boot)
        file.write(header.layout.preamble(header.owner_pid, header.created_unix_ns, before))
    state = state_of(checkpoint_of(workshop))
    steps = state.env_steps + 400
    result = workshop.resume(overrides=[f"budget.max_env_steps={steps}", "checkpoint.period_seconds=1000"])
    assert result.status == "finished"
    assert steps <= result.env_steps < steps + 32  # rows younger than the checkpoint do not count
    assert "since this ring was made; it is made again" in caplog.text
    assert state_of(checkpoint_of(workshop)).inserted_base == state.env_steps


def test_a_resumed_run_that_is_killed_before_its_first_checkpoint_loses_no_count(workshop):
    """Its ring begins anew: the env steps of the first session are in no ring any more, and must not be forgotten."""
    first = workshop.train(budget__max_env_steps=500)
    process = workshop.start(
        command="resume", overrides=["budget.max_env_steps=1000000", "checkpoint.period_seconds=1000"]
    )
    steps = lambda: [row["actors/env_steps"] for row in workshop.history()]  # noqa: E731
    kill_after(workshop, process, lambda: steps()[-1] >= first.env_steps + 700)
    seen = steps()[-1]
    assert seen > 2 * first.env_steps, "longer than the first session: the counts alone do not tell whose ring it is"
    result = workshop.resume(overrides=[f"budget.max_env_steps={seen:.0f}"])  # no more than there is: it ends at once
    assert result.status == "finished"
    assert result.env_steps >= seen


class Killed(BaseException):
    """Ends a session as kill -9 would, but for the memory."""


def kill_before_captions_are_saved(workshop, monkeypatch, **changes):
    """A checkpoint before the first caption, then rows with captions, then the end without a word; the ring stays.

    Returns: how many captions the checkpoint knows, and the highest caption in the ring.
    """
    collect = SerialRun._collect

    def early(session, rollout, meter):
        if session._state.env_steps == 0:
            session._save()
        collect(session, rollout, meter)
        if session._loop.updates > 20:
            raise Killed

    with monkeypatch.context() as patched:
        patched.setattr(SerialRun, "_collect", early)
        patched.setattr(SerialRun, "_close", lambda session: session._opened.close())
        with pytest.raises(Killed):
            workshop.train(environment__kwargs={"rooms": 5, "room_length": 2}, **changes)
    (ring,) = [path for path in workshop.rings.iterdir() if path.suffix == ".ring"]
    known, newest = len(checkpoint_of(workshop).tables["captions"]), newest_caption(ring)
    assert newest >= known + 2
    return known, newest


def test_captions_that_died_with_their_process_are_covered_and_pay_nothing(workshop, monkeypatch):
    known, newest = kill_before_captions_are_saved(workshop, monkeypatch, replay__log={"enabled": False})
    result = workshop.resume(overrides=["budget.max_env_steps=900"])
    texts = checkpoint_of(workshop).tables["captions"].column("text").to_pylist()
    assert sum("was lost with its process" in text for text in texts) == newest + 1 - known
    assert texts.index("You enter the kitchen.") > newest - known, "the same words get an id of their own"
    assert not any("was lost" in row.example for row in result.captions), "no key: nothing is asked or paid for them"
    assert {row.label for row in result.captions} == {"helpful"}


@pytest.mark.parametrize("ring_stays", [True, False])
def test_captions_younger_than_the_checkpoint_come_back_from_the_log_with_their_ids(workshop, monkeypatch, ring_stays):
    _, newest = kill_before_captions_are_saved(workshop, monkeypatch)
    if not ring_stays:
        for path in workshop.rings.iterdir():
            path.unlink()
    before = ReplayLog(workshop.runs / "run" / "replay").captions().to_pylist()
    assert max(caption["caption_id"] for caption in before) == newest
    workshop.resume(overrides=["budget.max_env_steps=900"])
    texts = checkpoint_of(workshop).tables["captions"].column("text").to_pylist()
    log = ReplayLog(workshop.runs / "run" / "replay")
    assert log.verify() == []
    assert {caption["caption_id"]: texts[caption["caption_id"]] for caption in before} == {
        caption["caption_id"]: caption["text"] for caption in before
    }
    assert [caption["text"] for caption in log.captions().to_pylist()] == texts[1:]
    assert not any("was lost" in text for text in texts)


def test_a_damaged_last_checkpoint_falls_back_to_the_one_before(workshop, caplog):
    workshop.train(budget__max_env_steps=300)
    workshop.resume(overrides=["budget.max_env_steps=500"])
    first, last = workshop.checkpoints()[0], workshop.checkpoints()[-1]
    steps = [int(path.name.split("-")[0]) for path in (first, last)]
    assert steps[0] < steps[1]
    tensors = next(last.glob("tensors*"))
    content = bytearray(tensors.read_bytes())
    content[-1] ^= 1
    tensors.write_bytes(content)
    result = workshop.resume(overrides=["budget.max_env_steps=350"])
    assert any(last.name in record.getMessage() for record in caplog.records if record.levelname == "WARNING")
    assert result.status == "finished"
    assert max(350, steps[0]) <= result.env_steps < steps[1]


def test_all_checkpoints_damaged_is_one_clear_error(workshop):
    workshop.train(budget__max_env_steps=150)
    for path in workshop.checkpoints():
        next(path.glob("tensors*")).write_bytes(b"")
    with pytest.raises(OnibiError, match="checkpoint"):
        workshop.resume()
    assert list(workshop.rings.iterdir()) == []


def test_an_environment_that_raises_ends_the_run_with_its_name_and_without_a_ring(workshop, tmp_path, monkeypatch):
    (tmp_path / "fault_envs.py").write_text(
        "from onibi.actors.environments.corridor import CaptionCorridor\n"
        "class Faulty(CaptionCorridor):\n"
        "    def __init__(self, steps): super().__init__(3, 3); self.left = steps\n"
        "    def reset(self, **given):\n"
        "        if not self.left: raise OSError('the cave collapsed')\n"
        "        return super().reset(**given)\n"
        "    def step(self, action):\n"
        "        self.left -= 1\n"
        "        if self.left < 0: raise OSError('the roof fell in')\n"
        "        return super().step(action)\n",
        encoding="utf-8",
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    for steps, said in ((0, "the cave collapsed (FILE:5)"), (20, "the roof fell in (FILE:9)")):
        said = re.escape("OSError: " + said.replace("FILE", str(tmp_path / "fault_envs.py")))
        with pytest.raises(EnvironmentFault, match=f"fault_envs:Faulty raised in actor 0: {said}"):
            workshop.train(environment={"id": "fault_envs:Faulty", "kwargs": {"steps": steps}})
        assert list(workshop.rings.iterdir()) == []
        assert list(workshop.runs.iterdir()) == [], "a run that never took shape leaves no folder"


def test_episodes_of_all_sessions_have_ids_of_their_own_and_rows_bear_the_weights_that_were_published(
    workshop, monkeypatch
):
    insert, sessions, versions = Shard.insert, [], []

    def noted(shard, fragment):
        rows = np.arange(fragment.columns["role"].shape[1]) < fragment.rows_per_lane[:, None]
        sessions[-1].update(fragment.columns["episode_id"][rows].tolist())
        acted = rows & (fragment.columns["role"] == ROLE_STEP)
        versions[-1] += fragment.columns["policy_version"][acted].tolist()
        return insert(shard, fragment)

    monkeypatch.setattr(Shard, "insert", noted)
    for session in range(3):
        sessions.append(set())
        versions.append([])
        if session:
            workshop.resume(overrides=[f"budget.max_env_steps={300 * (session + 1)}"])
        else:
            workshop.train(budget__max_env_steps=300)
    assert all(sessions)
    assert len(set().union(*sessions)) == sum(map(len, sessions))
    assert versions[0][0] == NO_WEIGHTS
    published = {version - NO_WEIGHTS - 1 for version in versions[0]} - {-1}
    assert len(published) > 2
    assert {version % 10 for version in published} == {0}, "one version every publish_period_updates"
    assert min(versions[1]) > max(versions[0]), "a later session's weights are newer, and there from the first step"


def test_a_tracked_run_arrives_in_the_embedded_store(workshop, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    workshop.train(budget__max_env_steps=300, tracking={"enabled": True})
    record = workshop.record()
    with sqlite3.connect(workshop.runs / "mlflow.db") as store:
        status = store.execute("select status from runs where run_uuid = ?", (record["tracking_run_id"],)).fetchone()
        metrics = dict(
            store.execute(
                "select key, max(value) from metrics where run_uuid = ? group by key", (record["tracking_run_id"],)
            ).fetchall()
        )
    store.close()
    assert status == ("FINISHED",)
    assert metrics["actors/env_steps"] == record["results"]["env_steps"]
    assert metrics["learner/updates"] == record["results"]["updates"]
    assert "evaluation/return_mean" in metrics
