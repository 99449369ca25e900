"""A new ring that begins with the newest rows of the run's log: what is in it, and what the log gets afterwards."""

from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from onibi.clusters.run_state import make_room
from onibi.platform.errors import SegmentError
from onibi.platform.replay.datasets.ring_filling import RingFilling
from onibi.platform.replay.log.log_files import open_files
from onibi.platform.replay.log.log_reader import ReplayLog
from onibi.platform.replay.log.log_settings import LogSettings
from onibi.platform.replay.log.log_writer import LogWriter
from onibi.platform.replay.ring.file import UNFINISHED_SUFFIX, remove_ring
from onibi.platform.replay.ring.layout import RingLayout
from onibi.platform.replay.ring.reader import RingReader
from onibi.platform.replay.ring.writer import RingWriter
from onibi.platform.spec import ROLE_FINAL, ROLE_STEP

LANES, SLOTS = 2, 16


def filled(logs, source, ring_path, *, slots=SLOTS, counted=False, on_damage=None):
    layout = RingLayout(spec=logs.SPEC, groups=LANES, lanes_per_group=1, slots=slots, window_rows=1, run_id="a-run")
    filling = RingFilling(source, {(0, 0): 0, (0, 1): 1}, counted=counted, on_damage=on_damage)
    return RingWriter.of_layout(ring_path, layout, filling.fill), filling


def ended(logs, rows):
    """The rows as a ring has them where nothing is known of what follows each one that ``follows`` says so of."""
    made = []
    for row, follows in rows:
        if not follows and row["role"] == ROLE_STEP:
            kept = {name: row[name] for name in logs.SPEC.head_columns}
            row = {column.name: np.zeros(column.shape, column.dtype) for column in logs.SPEC.columns} | kept
            row["role"][...] = ROLE_FINAL
        made.append(row)
    return made


def expected(logs, lane, lost, slots=SLOTS):
    """The newest rows of a lane, slowly: of all that are not ``lost``, each with whether the next one is there."""
    left = [number for number in range(len(lane.rows)) if number not in lost]
    follows = {number for number in left if number + 1 in left and number + 1 not in lane.gaps}
    rows = ended(logs, [(lane.rows[number], number in follows) for number in left])
    return rows[-(slots - 1) :]


def found(reader, lane):
    """The readable rows of a lane, in their order."""
    snapshot = reader.snapshot()
    at = lane * reader.slots + np.arange(snapshot.oldest[lane], snapshot.cursor[lane]) % reader.slots
    return [{name: column[place] for name, column in reader.columns.items()} for place in at]


def bits(rows):
    return [{name: np.asarray(value).tobytes() for name, value in row.items()} for row in rows]


@pytest.mark.parametrize("seed", range(12))
def test_it_holds_the_newest_rows_of_each_lane_whatever_is_missing(logs, tmp_path, ring_path, seed):
    rng = np.random.default_rng(seed)
    lanes = [logs.Lane(0, rng), logs.Lane(1, rng)]
    for lane in lanes:
        for number in range(int(rng.integers(1, 8))):
            end = ("terminated", "truncated", "cut", "none")[int(rng.integers(4))]
            lane.episode(number, int(rng.integers(1, 9)), end=end, final=end != "none")
        lane.gaps = {number: int(rng.integers(1, 100)) for number in range(1, len(lane.rows)) if rng.random() < 0.1}
    segments = int(rng.integers(1, 7))
    logs.seal(str(tmp_path / "log"), lanes, segments=segments)
    lost = [segment for segment in range(segments) if rng.random() < 0.25]
    lost = lost[len(lost) == segments :]  # one says what the rows are
    for segment in lost:
        path = tmp_path / "log" / f"rows-0000-{segment:08d}.arrow"
        path.write_bytes(path.read_bytes()[:-1])
    damage = []
    writer, filling = filled(logs, ReplayLog(tmp_path / "log"), ring_path, on_damage=damage.append)
    reader = writer.reader()
    read = 0
    for number, lane in enumerate(lanes):
        spans = [(len(lane.rows) * at // segments, len(lane.rows) * (at + 1) // segments) for at in range(segments)]
        gone = {row for at in lost for row in range(*spans[at])}
        mine = found(reader, number)
        assert bits(mine) == bits(expected(logs, lane, gone)), "older rows are read where newer ones are damaged"
        read += len(mine)
    assert filling.rows == read == reader.snapshot().readable_rows
    assert reader.snapshot().inserted_rows == 0, "play goes on: its rows alone are counted"
    assert all(isinstance(error, SegmentError) for error in damage)
    assert len(damage) <= len(lost)
    writer.close()


def test_segments_of_rows_that_do_not_fit_are_not_read(log, logs, ring_path, monkeypatch):
    read = []
    monkeypatch.setattr(log, "read", lambda segment: read.append(segment.number) or ReplayLog.read(log, segment))
    writer, _ = filled(logs, log, ring_path, slots=8)
    newest = max(segment.number for segment in log.segments)
    assert read == sorted(read)
    assert read[-1] == newest
    assert 0 < len(read) < len(log.segments)
    writer.close()


def play(logs, writer, log_writer, lane, incarnation, sequence, rows, head):
    """One fragment of a lane, as an actor brings it."""
    columns = {column.name: np.stack([row[column.name] for row in [*rows, head]])[None] for column in logs.SPEC.columns}
    for name in logs.SPEC.step_columns:
        columns[name][0, -1] = 0
    columns["role"][0, -1] = ROLE_STEP
    writer.insert(
        lane,
        incarnation=incarnation,
        sequence=sequence,
        rows_per_lane=np.array([len(rows)], np.int32),
        columns=columns,
    )
    log_writer.note(lane, writer.record("cursor")[lane, :1], [])


@pytest.mark.parametrize("killed", [False, True])
def test_play_goes_on_and_no_row_is_logged_twice(logs, tmp_path, ring_path, killed):
    lanes = logs.two_lanes()
    logs.seal(str(tmp_path / "log"), lanes, segments=3)
    before = ReplayLog(tmp_path / "log")
    writer, _ = filled(logs, before, ring_path)
    files = open_files(str(tmp_path / "log"), create=True)
    settings = LogSettings(seal_seconds=0.01)
    if killed:  # before the first seal: the log knows nothing of the ring, and the ring all that is needed
        first = LogWriter(LogSettings(seal_seconds=3600), files, ring_path, run_id="a-run", captions={})
        first._segments._files = None
        first._lock.release()
        writer.close()
        writer = RingWriter.open(ring_path, "a-run")
    log_writer = LogWriter(settings, files, ring_path, run_id="a-run", captions=logs.CAPTIONS)
    assert log_writer.figures().rows == 0
    new = logs.Lane(0, np.random.default_rng(9))
    new.episode(4, 3)
    incarnation = writer.register(0)
    assert incarnation == 2, "the group looks like one whose actor was killed"
    play(logs, writer, log_writer, 0, incarnation, 0, new.rows[:2], new.rows[2])
    deadline = time.monotonic() + 30
    while log_writer.figures().sealed_rows < 2 and time.monotonic() < deadline:
        time.sleep(0.01)
    play(logs, writer, log_writer, 0, incarnation, 1, new.rows[2:3], new.rows[3])
    log_writer.close()

    after = ReplayLog(tmp_path / "log")
    assert after.verify() == []
    generations = {lane: [] for lane in range(LANES)}
    for segment in after.segments:
        table = after.read(segment)
        for lane, generation in zip(table["lane"].to_pylist(), table["generation"].to_pylist(), strict=True):
            generations[lane].append(generation)
    had = len(lanes[0].rows)
    assert generations[0] == [*range(had), *range(had + 1, had + 5)], "one number is free"
    assert generations[1] == list(range(len(lanes[1].rows)))
    writer.close()

    # A ring made from this log again holds the new rows behind the old ones.
    remove_ring(ring_path)
    writer, _ = filled(logs, after, ring_path, slots=64)
    steps = [int(row["step"]) for row in found(writer.reader(), 0)]
    assert steps == [int(row["step"]) for row in [*lanes[0].rows, *new.rows]]
    roles = [int(row["role"]) for row in found(writer.reader(), 0)]
    assert roles[had - 1] == ROLE_FINAL, "a step whose next observation nobody knows is none"
    writer.close()


def test_another_log_begins_with_the_rows_that_are_in_the_ring(logs, tmp_path, ring_path):
    lanes = logs.two_lanes()
    logs.seal(str(tmp_path / "log"), lanes, segments=3)
    writer, filling = filled(logs, ReplayLog(tmp_path / "log"), ring_path, slots=12)
    files = open_files(str(tmp_path / "other"), create=True)
    log_writer = LogWriter(LogSettings(), files, ring_path, run_id="a-run", captions=logs.CAPTIONS)
    log_writer.close()
    assert log_writer.figures().dropped_rows == 0, "rows that did not fit were never in this ring"
    assert ReplayLog(tmp_path / "other").rows == log_writer.figures().rows == filling.rows == 2 * 11
    writer.close()


@pytest.mark.parametrize("end", ["damaged", "sealed"])
def test_a_segment_of_another_layout_is_left_out(logs, tmp_path, ring_path, end):
    other = dataclasses.replace(logs.SPEC, actions=logs.SPEC.actions + 1)
    logs.seal(str(tmp_path / "log"), logs.two_lanes(), segments=3)
    logs.seal(str(tmp_path / "other"), logs.two_lanes(), segments=3, spec=other)
    for path in (tmp_path / "other").glob("*-00000002.*"):
        if end == "sealed" or path.name.startswith("rows"):  # else a file that can be read, and is not the one sealed
            path.replace(tmp_path / "log" / path.name)
    damage = []
    writer, filling = filled(logs, ReplayLog(tmp_path / "log"), ring_path, slots=64, on_damage=damage.append)
    assert filling.rows == sum(segment.rows for segment in ReplayLog(tmp_path / "log").segments[:2])
    assert len(damage) == 1
    assert "rows-0000-00000002.arrow" in str(damage[0])
    writer.close()


def test_who_is_killed_while_it_is_filled_leaves_no_ring(logs, tmp_path, ring_path):
    logs.seal(str(tmp_path / "log"), logs.two_lanes(), segments=2)
    ring = ring_path.with_name("onibi-killed.ring")
    process = subprocess.Popen(
        [sys.executable, str(Path(__file__).with_name("killed_filling.py")), str(tmp_path / "log"), str(ring)],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "one segment is in\n"
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    process.stdout.close()
    unfinished = ring.with_name(ring.stem + UNFINISHED_SUFFIX)
    assert unfinished.exists() and not ring.exists()
    assert make_room(ring.parent, 1) == [unfinished]
    writer, filling = filled(logs, ReplayLog(tmp_path / "log"), ring)
    assert filling.rows > 0
    writer.close()
    remove_ring(ring)


def test_a_damaged_segment_leaves_no_ring_where_damage_is_not_borne(log, logs, ring_path):
    path = Path(log.segments[-1].rows_path)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(SegmentError):
        filled(logs, log, ring_path)
    assert list(ring_path.parent.iterdir()) == []


def test_its_rows_count_as_inserted_where_learning_starts_from_them(log, logs, ring_path):
    writer, filling = filled(logs, log, ring_path, slots=64, counted=True)
    reader = RingReader(ring_path)
    steps = sum(row["role"] == ROLE_STEP for lane in range(LANES) for row in found(reader, lane))
    assert reader.snapshot().inserted_rows == filling.steps == steps > 0
    reader.close(), writer.close()
