"""A disk or store that refuses for a while: training goes on, the log goes on afterwards, nothing is in it twice."""

from __future__ import annotations

import threading

import numpy as np
import pytest

from onibi.platform.replay.log import log_writer
from onibi.platform.replay.log.log_files import FolderDisk
from onibi.platform.replay.log.log_reader import ReplayLog
from onibi.platform.replay.log.segment_writer import RetentionSettings
from tests.platform.replay.log.log_workbench import ACTORS, ENVS, SlowDisk, rows_of, wait_until

FULL = OSError(28, "No space left on device")


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch):
    monkeypatch.setattr(log_writer, "_FIRST_PAUSE_SECONDS", 0.01)
    monkeypatch.setattr(log_writer, "_LONGEST_PAUSE_SECONDS", 0.05)


def rows_made(bench):
    return sum(map(len, bench.model.rows))


def assert_rows_are_right(bench, figures):
    """Every row that the log has is the model's, once, and those that it has not are counted."""
    log = ReplayLog(bench.folder)
    assert log.verify() == []
    assert log.rows == figures.sealed_rows
    assert figures.rows == rows_made(bench) == figures.sealed_rows + figures.dropped_rows
    for lane, (generation, table) in rows_of(log).items():
        assert len(np.unique(generation)) == len(generation)
        rewards = [bench.model.rows[lane][number]["reward"] for number in generation]
        np.testing.assert_array_equal(table.column("reward").to_numpy(), np.array(rewards, np.float32))
    return log


def open_disk(bench, **settings):
    disk = SlowDisk(bench.folder)
    disk.open.set()
    bench.open(disk=disk, segment_bytes=1 << 10, **settings)
    return disk


@pytest.mark.parametrize("overflow", ["block", "drop"])
@pytest.mark.parametrize("meanwhile", [0, 5, 200])
def test_the_log_goes_on_where_the_place_takes_rows_again(bench, meanwhile, overflow, caplog):
    disk = open_disk(bench, overflow=overflow)
    bench.insert_many(20)
    wait_until(lambda: bench.log.figures().segments > 0)
    disk.error = FULL
    bench.insert_many(20)
    wait_until(lambda: bench.log.figures().failure)
    sealed = bench.log.figures().sealed_rows
    bench.insert_many(meanwhile)
    assert bench.log.figures().sealed_rows == sealed
    disk.error = None
    wait_until(lambda: not bench.log.figures().failure)
    bench.insert_many(40, gaps=0, registers=0)
    bench.close()
    figures = bench.log.figures()
    log = assert_rows_are_right(bench, figures)
    newest = {lane: last for segment in log.segments for lane, (_, last) in segment.lanes.items()}
    assert newest == {lane: len(rows) - 1 for lane, rows in enumerate(bench.model.rows)}, "what came last is there"
    if overflow == "block":
        assert (figures.dropped_rows > 0) == (meanwhile == 200), "what the ring still held is not lost"
    told = [(record.levelname, record.getMessage()) for record in caplog.records]
    assert [level for level, _ in told if level == "ERROR"] == ["ERROR"]
    assert [text for level, text in told if "takes rows again" in text and level == "WARNING"] != []


def test_actors_that_outrun_a_place_which_takes_rows_again_wait_for_it(bench):
    """Else the log would be behind for ever, and rows be lost to it without end."""
    disk = open_disk(bench)
    bench.insert_many(20)
    disk.error = FULL
    bench.insert_many(100)
    wait_until(lambda: bench.log.figures().failure)
    disk.error = None
    ended = threading.Event()

    def play():
        while not ended.is_set():
            bench.insert(0)

    playing = threading.Thread(target=play)
    playing.start()
    wait_until(lambda: not bench.log.figures().failure)
    made = rows_made(bench)
    wait_until(lambda: rows_made(bench) > made + 500)  # what was overwritten is counted with the next copy
    lost = bench.log.figures().dropped_rows
    made = rows_made(bench)
    wait_until(lambda: rows_made(bench) > made + 2_000)
    ended.set()
    playing.join()
    assert bench.log.figures().dropped_rows == lost
    bench.close()
    assert_rows_are_right(bench, bench.log.figures())


def test_episodes_of_the_time_without_a_log_are_in_it_afterwards(bench):
    disk = open_disk(bench)
    bench.insert_many(20, gaps=0, registers=0)
    disk.error = FULL
    bench.insert_many(10, gaps=0, registers=0)
    wait_until(lambda: bench.log.figures().failure)
    bench.insert_many(10, gaps=0, registers=0)
    disk.error = None
    bench.close()
    episodes = ReplayLog(bench.folder).episodes().column("episode_id").to_pylist()
    assert len(episodes) == 40, "one for each fragment"


class TwoFacedDisk(FolderDisk):
    """Puts files whose names begin so in place and then says that it could not; and takes nothing back either."""

    lies_about = "nothing"
    _renamed = ""

    def rename(self, name, new):
        super().rename(name, new)
        self._renamed = new

    def sync_folder(self):
        super().sync_folder()
        if self._renamed.startswith(self.lies_about):
            raise OSError(5, "Input/output error")

    def remove(self, name):
        if self._renamed.startswith(self.lies_about):
            raise OSError(5, "Input/output error")
        super().remove(name)


@pytest.mark.parametrize("about", ["rows", "manifest"])
def test_rows_of_a_group_that_was_taken_after_all_are_not_sealed_twice(bench, about):
    """A store may take a file and lose the answer on its way."""
    disk = TwoFacedDisk(bench.folder)
    bench.open(disk=disk, segment_bytes=1 << 10)
    bench.insert_many(20)
    disk.lies_about = about
    bench.insert_many(20)
    wait_until(lambda: bench.log.figures().failure)
    bench.insert_many(10)
    disk.lies_about = "nothing"
    wait_until(lambda: not bench.log.figures().failure)
    bench.insert_many(20)
    bench.close()
    torn = assert_rows_are_right(bench, bench.log.figures()).torn
    assert all(name.startswith(("rows", "captions", "episodes")) for name in torn)
    assert bool(torn) == (about == "rows"), "what it did not take back is removed at the next start"


class KeepingDisk(FolderDisk):
    """Writes, but removes nothing."""

    keeps = True

    def remove(self, name):
        if self.keeps:
            raise PermissionError(1, "Operation not permitted")
        super().remove(name)


def test_groups_that_cannot_be_removed_are_told_once_and_removed_later(bench, caplog):
    disk = KeepingDisk(bench.folder)
    bench.open(disk=disk, segment_bytes=1 << 10, retention=RetentionSettings(rows=50))
    for _ in range(20):
        bench.insert_many(20, gaps=0, registers=0)
        wait_until(lambda: bench.log.figures().sealed_rows > 0)
    wait_until(lambda: bench.log.figures().failure)
    disk.keeps = False
    wait_until(lambda: not bench.log.figures().failure)
    bench.close()
    assert sum(record.levelname == "ERROR" for record in caplog.records) == 1
    assert ReplayLog(bench.folder).rows <= 50 + 100, "the newest group stays whole"


def test_a_place_that_refuses_to_the_end_ends_the_log_where_it_was(bench):
    disk = open_disk(bench)
    bench.insert_many(20)
    wait_until(lambda: bench.log.figures().segments > 0)
    disk.error = FULL
    bench.insert_many(100)
    wait_until(lambda: bench.log.figures().failure)
    bench.close()
    figures = bench.log.figures()
    assert "the log is off" in figures.failure
    assert ReplayLog(bench.folder).rows == figures.sealed_rows > 0
    assert 0 <= rows_made(bench) - (figures.sealed_rows + figures.dropped_rows) <= ACTORS * ENVS, "open heads at most"
