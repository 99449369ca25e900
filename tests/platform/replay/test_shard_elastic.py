"""A shard whose actors come and go: rows of gone ones leave the ring and stay in the log; who is held back is told."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest

from onibi.platform.errors import LeaseError
from onibi.platform.fragment import Fragment
from onibi.platform.replay.actor_leases import ActorLeases
from onibi.platform.replay.limiter import DrawnWord, Limiter
from onibi.platform.replay.log.log_files import FolderDisk, LocalFiles
from onibi.platform.replay.log.log_reader import ReplayLog
from onibi.platform.replay.log.log_settings import LogSettings
from onibi.platform.replay.log.log_writer import LogWriter
from onibi.platform.replay.ring.file import drawn_path
from onibi.platform.replay.ring.reader import RingReader
from onibi.platform.replay.shard import Shard

ACTORS, ENVS, STEPS = 2, 2, 4
LIMITER = Limiter(
    ratio=2.0, minimum_rows=16, tolerance_rows=40, largest_fragment_rows=ENVS * STEPS, largest_batch_rows=10
)


@pytest.fixture
def shard(rows, ring_path):
    shard = Shard.create(
        ring_path,
        rows.SPEC,
        max_actors=ACTORS,
        envs_per_actor=ENVS,
        capacity_rows=400,
        window_rows=3,
        run_id="run",
        limiter=LIMITER,
        resolve=lambda captions: np.zeros(len(captions), np.uint32),
    )
    yield shard
    shard.close()


def insert(rows, shard, lease, sequence):
    """STEPS rows per lane of an endless episode."""
    first = sequence * STEPS
    made = [
        [rows.blank_row(lane * 1_000 + first + step, lane, first + step) for step in range(STEPS)]
        for lane in range(lease.lanes)
    ]
    heads = [rows.blank_row(lane * 1_000 + first + STEPS, lane, first + STEPS) for lane in range(lease.lanes)]
    columns = rows.fragment_columns(made, heads)
    columns["caption_hash"] = np.zeros(columns.pop("caption_id").shape, np.uint64)
    fragment = Fragment(
        actor=lease.actor,
        incarnation=lease.incarnation,
        sequence=sequence,
        rows_per_lane=np.full(lease.lanes, STEPS, np.int32),
        columns=columns,
        env_steps=lease.lanes * STEPS,
    )
    return shard.insert(fragment)


def readable(shard):
    snapshot = RingReader(shard.path).snapshot()
    return (snapshot.cursor - snapshot.oldest).tolist()


def test_rows_of_a_retired_actor_leave_the_ring_and_another_takes_its_lanes(rows, shard):
    leases = [shard.register(actor, ENVS) for actor in range(ACTORS)]
    for lease in leases:
        for sequence in range(3):
            insert(rows, shard, lease, sequence)
    assert readable(shard) == [3 * STEPS] * 4
    shard.retire(1)
    assert readable(shard) == [3 * STEPS, 3 * STEPS, 0, 0]
    with pytest.raises(LeaseError, match="was retired"):
        insert(rows, shard, leases[1], 3)
    shard.retire(1)  # nothing more to do
    again = shard.register(1, ENVS)
    insert(rows, shard, again, 0)
    assert readable(shard) == [3 * STEPS, 3 * STEPS, STEPS, STEPS]
    insert(rows, shard, leases[0], 3)  # the other one noticed nothing
    assert shard.counters().inserted_rows == 8 * ENVS * STEPS


def test_lanes_that_a_smaller_successor_has_no_environment_for_are_released(rows, shard):
    insert(rows, shard, shard.register(0, ENVS), 0)
    lease = shard.register(0, 1)
    assert readable(shard) == [STEPS + 1, 0, 0, 0]  # the old head is a row now
    insert(rows, shard, lease, 0)
    assert readable(shard) == [2 * STEPS + 1, 0, 0, 0]


def test_released_rows_are_in_the_log_before_they_leave_the_ring(rows, ring_path, shard, tmp_path):
    folder = tmp_path / "log"
    folder.mkdir()
    log = LogWriter(LogSettings(), LocalFiles(str(folder), FolderDisk(folder)), ring_path, run_id="run", captions={})
    shard.attach_log(log)
    first = shard.register(0, ENVS)
    for sequence in range(3):
        insert(rows, shard, first, sequence)
    shard.register(0, 1)
    second = shard.register(1, ENVS)
    for sequence in range(3):
        insert(rows, shard, second, sequence)
    shard.retire(1)
    insert(rows, shard, shard.register(1, ENVS), 0)
    shard.close()
    table = ReplayLog(folder).dataset().to_table(columns=["lane", "generation"])
    found = sorted(zip(table["lane"].to_pylist(), table["generation"].to_pylist(), strict=True))
    # Each lane's rows, its head as a final row when its actor left; behind the new actor's rows the open heads.
    ahead = [3 * STEPS + 1, 3 * STEPS + 1, 4 * STEPS + 2, 4 * STEPS + 2]
    assert found == [(lane, row) for lane in range(4) for row in range(ahead[lane])]
    assert log.figures().dropped_rows == 0


def test_side_that_the_limiter_holds_back_is_told_with_the_reason(rows, ring_path, shard):
    lease = shard.register(0, ENVS)
    insert(rows, shard, lease, 0)
    found = shard.pacing()
    assert (found.stalled, found.reason) == ("learner", "8 rows are readable, drawing needs 16")
    sequence = 1
    while shard.may_insert(ENVS * STEPS):
        insert(rows, shard, lease, sequence)
        sequence += 1
    found = shard.pacing()
    assert found.stalled == "actors"
    assert "the learner would owe" in found.reason
    DrawnWord(drawn_path(ring_path), writable=True).value += 20
    assert shard.pacing().stalled == "none"
    assert shard.may_insert(ENVS * STEPS)


def test_ages_of_rows_are_told_by_lane_from_the_writers_own_mapping(rows, shard):
    leases = [shard.register(actor, ENVS) for actor in range(ACTORS)]
    insert(rows, shard, leases[1], 0)
    for second in range(5):
        insert(rows, shard, leases[0], second)
        ages = shard.row_ages(float(second), newest_update=second)
    assert ages.rows.tolist() == [20, 20, 4, 4]
    assert ages.seconds[:, 3].tolist() == [4.0] * 4  # all began in the first second
    assert ages.seconds[:, 0].tolist() == [0.0, 0.0, 4.0, 4.0]  # and two go on
    assert ages.metrics()["replay/row_age_median_seconds_worst_lane"] == 4.0
    insert(rows, shard, leases[0], 5)  # the writer goes on with its mapping


class StandingDisk(FolderDisk):
    """Writes nothing before it may."""

    def __init__(self, path) -> None:
        super().__init__(path)
        self.reached, self.may_write = threading.Event(), threading.Event()

    def write(self, name, content):
        self.reached.set()
        self.may_write.wait(60)
        super().write(name, content)


def test_an_actor_that_comes_while_the_disk_stands_still_is_asked_to_come_again_and_holds_up_nobody(
    rows, ring_path, shard, tmp_path
):
    folder = tmp_path / "log"
    folder.mkdir()
    disk = StandingDisk(folder)
    files = LocalFiles(str(folder), disk)
    settings = LogSettings(seal_seconds=0.05)  # the copier stands still with the disk
    shard.attach_log(LogWriter(settings, files, ring_path, run_id="run", captions={}))
    leases = ActorLeases(shard, 10.0, now=0.0)
    lease = leases.register(0, ENVS, 0.0)
    insert(rows, shard, lease, 0)
    assert disk.reached.wait(10)
    for sequence in range(1, 20):  # 80 of 100 slots: none has to wait for room
        insert(rows, shard, lease, sequence)
    assert leases.register(0, ENVS, 1.0) is None, "its own lanes, after a crash"
    assert leases.register(1, ENVS, 1.0).actor == 1, "lanes without rows wait for nothing"
    assert leases.register(7, ENVS, 10.5) is None, "those of an actor that is silent; that one has asked, too"
    leases.heard(1, 11.5)
    assert leases.register(0, ENVS, 11.5) is None
    insert(rows, shard, lease, 20)  # nothing was taken from it
    disk.may_write.set()
    deadline = time.monotonic() + 30
    while (again := leases.register(0, ENVS, 12.0)) is None:
        assert leases.register(7, ENVS, 12.0) is None, "who asks for its own lanes is not silent"
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert (again.actor, again.incarnation) == (0, 2)
    shard.close()
    assert ReplayLog(folder).dataset().count_rows() >= 21 * ENVS * STEPS


def test_with_drop_too_a_released_row_is_copied_first_while_the_disk_keeps_up(rows, ring_path, shard, tmp_path):
    folder = tmp_path / "log"
    folder.mkdir()
    settings = LogSettings(overflow="drop")
    log = LogWriter(settings, LocalFiles(str(folder), FolderDisk(folder)), ring_path, run_id="run", captions={})
    shard.attach_log(log)
    for _ in range(5):
        insert(rows, shard, shard.register(0, ENVS), 0)
        shard.retire(0)
    shard.close()
    figures = log.figures()
    assert (figures.dropped_rows, figures.sealed_rows) == (0, 5 * ENVS * (STEPS + 1))  # and the heads, made final


@pytest.mark.parametrize("full", [True, False])
def test_with_drop_nobody_waits_for_a_disk_that_stands_still(rows, ring_path, shard, tmp_path, full):
    folder = tmp_path / "log"
    folder.mkdir()
    disk = StandingDisk(folder)
    # Full: the first 1,024 bytes of rows are sealed at once. Not full: what is there is sealed after a while.
    settings = LogSettings(overflow="drop", **({"segment_bytes": 1024} if full else {"seal_seconds": 0.05}))
    files = LocalFiles(str(folder), disk)
    log = LogWriter(settings, files, ring_path, run_id="run", captions={})
    shard.attach_log(log)
    lease = shard.register(0, ENVS)
    for sequence in range(3):
        insert(rows, shard, lease, sequence)
    assert disk.reached.wait(10)
    insert(rows, shard, lease, 3)
    shard.retire(0)
    assert readable(shard) == [0] * 4
    disk.may_write.set()
    shard.close()
    figures = log.figures()
    assert figures.dropped_rows > 0
    assert figures.sealed_rows + figures.dropped_rows == figures.rows == ENVS * (4 * STEPS + 1)
