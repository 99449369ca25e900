"""Actors that are killed and others that come for their lanes, in processes of their own, while samplers draw."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from onibi.platform.replay.actor_leases import ActorLeases
from onibi.platform.replay.limiter import Limiter
from onibi.platform.replay.log.log_reader import ReplayLog
from onibi.platform.replay.shard import Shard

SCRIPT = Path(__file__).with_name("elastic_process.py")
ROUNDS, LANES = 6, 4


def test_samplers_draw_whole_windows_while_actors_are_killed_and_others_take_their_lanes(ring_path, tmp_path):
    command = [sys.executable, str(SCRIPT), *map(str, (tmp_path, ring_path, ROUNDS, 0.3))]
    finished = subprocess.run(command, capture_output=True, text=True, timeout=280)
    assert finished.returncode == 0, finished.stderr[-3_000:]
    reports = json.loads(finished.stdout)
    counts = reports.pop("shard")
    for kind, report in reports.items():
        assert report["bad"] == 0, kind
        assert report["drawn"] > 2_000, kind
        assert report["lanes"] == LANES, kind
    fifo = reports["fifo"]
    assert fifo["drawn"] + fifo["final"] + fifo["lost"] == fifo["position"]
    assert reports["prioritized"]["late"] + reports["sequences"]["late"] > 0, "priorities of rows that were released"
    assert counts["leases"] >= 2 + ROUNDS, "two at the start, and one for each that was killed"
    assert counts["waited"] > 0
    assert counts["lanes_readable_then"] >= 2 * counts["gone"] > 0, "what a killed actor left was still there"
    sealed = ReplayLog(tmp_path / "log")
    assert sealed.verify() == []
    rows = {lane: last + 1 for segment in sealed.segments for lane, (_, last) in segment.lanes.items()}
    heads = 1  # of each open lane, a final row at the end
    for lane, cursor in enumerate(counts["cursor"]):
        assert rows[lane] in (cursor, cursor + heads), "rows are in the log before they are released"
    assert sealed.rows == sum(rows.values()), "none is missing in between"


@pytest.fixture
def shard(rows, ring_path):
    shard = Shard.create(
        ring_path,
        rows.SPEC,
        max_actors=2,
        envs_per_actor=1,
        capacity_rows=100,
        window_rows=3,
        run_id="run",
        limiter=Limiter(ratio=1.0, minimum_rows=1, tolerance_rows=100),
        resolve=lambda captions: np.zeros(len(captions), np.uint32),
    )
    yield shard
    shard.close()


def groups(*leases):
    return [None if lease is None else lease.actor for lease in leases]


def test_an_actor_has_the_group_of_its_number_and_keeps_it_over_restarts(shard):
    leases = ActorLeases(shard, 10.0, now=0.0)
    assert groups(leases.register(1, 1, 0.0), leases.register(0, 1, 0.0)) == [1, 0]
    again = leases.register(1, 1, 500.0)
    assert (again.actor, again.incarnation) == (1, 2), "silent for long, but nobody has needed its lanes"


def test_one_more_actor_than_groups_waits_for_a_silent_one_and_takes_the_longest_silent(shard, caplog):
    leases = ActorLeases(shard, 10.0, now=0.0)
    leases.register(0, 1, 0.0)
    leases.register(1, 1, 0.0)
    assert leases.register(7, 1, 5.0) is None
    leases.heard(0, 9.0)
    assert leases.register(7, 1, 10.0) is None, "exactly the timeout is not beyond it"
    assert groups(leases.register(7, 1, 10.5)) == [1]
    assert "actor 7 takes the lanes of actor 1" in caplog.text
    assert leases.register(1, 1, 11.0) is None, "it has to wait in its turn"
    leases.heard(1, 30.0)
    assert groups(leases.register(1, 1, 30.5)) == [0]


def test_groups_of_an_earlier_session_go_to_the_actors_of_their_number_at_once_and_to_others_when_silent(shard):
    for group in range(2):
        shard.register(group, 1)
    leases = ActorLeases(shard, 10.0, now=100.0)
    assert groups(leases.register(5, 1, 105.0)) == [None], "the actor of that group may yet come"
    assert groups(leases.register(1, 1, 105.0)) == [1]
    assert groups(leases.register(5, 1, 110.5)) == [0]


def test_lanes_that_were_given_up_are_taken_before_those_of_silent_actors(shard):
    leases = ActorLeases(shard, 10.0, now=0.0)
    leases.register(0, 1, 0.0)
    assert groups(leases.register(8, 1, 60.0)) == [1], "free, though actor 0 is silent"
