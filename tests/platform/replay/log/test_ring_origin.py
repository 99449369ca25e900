"""Numbers of rows are given once, also where the newest manifests of a log are damaged and restored later."""

from __future__ import annotations

import numpy as np
import pytest

from onibi.platform.replay.log.log_files import open_files
from onibi.platform.replay.log.log_reader import ReplayLog
from onibi.platform.replay.log.log_settings import LogSettings
from onibi.platform.replay.log.log_writer import LogWriter
from onibi.platform.replay.log.segment_writer import UNKNOWN_ROWS
from onibi.platform.replay.ring.writer import RingWriter
from onibi.platform.spec import ArraySpec, ReplaySpec

SPEC = ReplaySpec(observation=(ArraySpec(name="observation", dtype="float32"),), actions=2, keys_per_caption=1)
ROWS = 10


class Sessions:
    """Sessions of a run with one lane, each of which logs ``ROWS`` rows and a head."""

    def __init__(self, ring, folder):
        self.ring, self.folder, self.writer = ring, folder, None

    def play(self, *, ring_is_left=False, lanes=1):
        if not ring_is_left:
            self.ring.unlink(missing_ok=True)
            self.writer = RingWriter.create(
                self.ring, SPEC, groups=1, lanes_per_group=lanes, slots=400, window_rows=3, run_id="test"
            )
            self.logged = 0
        log = LogWriter(LogSettings(), open_files(self.folder, create=True), self.ring, run_id="test", captions={})
        incarnation = self.writer.register(0)
        columns = {c.name: np.zeros((lanes, ROWS + 1, *c.shape), c.dtype) for c in SPEC.columns}
        columns["reward"][:] = np.arange(self.logged, self.logged + ROWS + 1)
        counts = np.full(lanes, ROWS, np.int32)
        self.writer.insert(0, incarnation=incarnation, sequence=0, rows_per_lane=counts, columns=columns)
        self.logged += ROWS
        log.note(0, self.writer.record("cursor")[0, :lanes], [])
        log.close()
        return log.opened

    def manifests(self):
        return sorted(self.folder.glob("manifest-*"))


@pytest.fixture
def sessions(ring_path, tmp_path):
    sessions = Sessions(ring_path, tmp_path / "log")
    yield sessions
    sessions.writer.close()


def damage(path):
    whole = path.read_bytes()
    path.write_bytes(whole[:-5])
    return lambda: path.write_bytes(whole)


def spans(folder):
    log = ReplayLog(folder)
    assert log.verify() == []
    return [dict(segment.lanes) for segment in log.segments]


def test_rows_go_on_behind_those_of_a_group_whose_manifest_is_damaged(sessions):
    sessions.play()
    sessions.play()
    restore = damage(sessions.manifests()[-1])
    opened = sessions.play()
    assert (opened.next_generation, opened.unknown_rows, len(opened.unreadable)) == ((23,), 0, 1)
    restore()
    # 10 rows and a head a session, a number free between rings: 0 … 10, 12 … 22, 24 … 34.
    assert spans(sessions.folder) == [{0: (0, 10)}, {0: (12, 22)}, {0: (24, 34)}]


@pytest.mark.parametrize("every", [False, True])
def test_numbers_stay_free_for_groups_of_which_nothing_can_be_read(sessions, every):
    sessions.play()
    sessions.play(lanes=2)  # the first manifest does not know the second lane
    restores = [damage(path) for path in sessions.manifests()[0 if every else 1 :]]
    hidden = sorted(sessions.folder.glob("rows-*"))[0 if every else 1 :]
    rows = [path.read_bytes() for path in hidden]
    for path in hidden:
        path.write_bytes(b"nothing")
    opened = sessions.play(lanes=2)
    assert opened.unknown_rows == UNKNOWN_ROWS * len(hidden)
    for path, content in zip(hidden, rows, strict=True):
        path.write_bytes(content)
    for restore in restores:
        restore()
    assert spans(sessions.folder)[2] == (
        {0: (2 * UNKNOWN_ROWS, 2 * UNKNOWN_ROWS + 10), 1: (2 * UNKNOWN_ROWS, 2 * UNKNOWN_ROWS + 10)}
        if every
        else {0: (UNKNOWN_ROWS + 12, UNKNOWN_ROWS + 22), 1: (UNKNOWN_ROWS, UNKNOWN_ROWS + 10)}
    )


@pytest.mark.parametrize("rows_too", [False, True])
def test_a_ring_that_is_left_goes_on_behind_what_can_be_read_of_a_damaged_group(sessions, rows_too):
    sessions.play()
    sessions.play(ring_is_left=True)
    restore = damage(sessions.manifests()[-1])
    path = sorted(sessions.folder.glob("rows-*"))[-1]
    rows = path.read_bytes()
    if rows_too:
        path.write_bytes(b"nothing")
    sessions.play(ring_is_left=True)
    if not rows_too:
        restore()
        assert spans(sessions.folder) == [{0: (0, 10)}, {0: (11, 21)}, {0: (22, 32)}]
        return
    log = ReplayLog(sessions.folder)
    # What nobody can read is taken from the ring once more, under other numbers.
    assert [dict(each.lanes) for each in log.segments] == [{0: (0, 10)}, {0: (UNKNOWN_ROWS + 11, UNKNOWN_ROWS + 32)}]
    assert log.read(log.segments[1])["reward"].to_pylist() == [*range(10, 20), 0, *range(20, 30), 0]
    path.write_bytes(rows)
    restore()
    assert [
        each["generation"][0].as_py()
        for each in map(ReplayLog(sessions.folder).read, ReplayLog(sessions.folder).segments)
    ] == [0, 11, UNKNOWN_ROWS + 11]
    assert ReplayLog(sessions.folder).verify() == []
