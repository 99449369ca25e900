"""What a log's writer and readers keep of each sealed group, and what a listing of a living log leaves out."""

from __future__ import annotations

import gc
import os
import tracemalloc
from contextlib import contextmanager

import numpy as np
import pyarrow as pa
import pytest

from onibi.platform.fragment import CaptionText, KeyText
from onibi.platform.replay.datasets.log_builder import captions_of
from onibi.platform.replay.log.log_files import open_files
from onibi.platform.replay.log.log_reader import ReplayLog
from onibi.platform.replay.log.segment_format import LaneSpans, RingOrigin
from onibi.platform.replay.log.segment_writer import UNKNOWN_ROWS, RetentionSettings, Rows, SegmentWriter
from onibi.platform.spec import ArraySpec, ReplaySpec

SPEC = ReplaySpec(observation=(ArraySpec(name="observation", dtype="int64"),), actions=2)
LANES, GROUPS = 512, 20
COUNTING = pa.proxy_memory_pool(pa.default_memory_pool())
"""Arrow's memory, counted; it must outlive the tables that lie in it."""


def open_writer(folder, retention=None):
    return SegmentWriter(
        open_files(folder, create=True),
        SPEC,
        run_id="test",
        shard=0,
        retention=retention or RetentionSettings(),
        compression="lz4",
    )


def seal(writer, group, lanes=LANES, captions=None):
    """One row of each lane."""
    rows = Rows(
        lane=np.arange(lanes, dtype=np.int32),
        generation=np.full(lanes, group),
        columns={column.name: np.zeros((lanes, *column.shape), column.dtype) for column in SPEC.columns},
    )
    origin = RingOrigin(created_unix_ns=1, first_generation=(0,) * lanes)
    writer.seal(rows, captions or {}, [], next_generation=[group + 1] * lanes, ring=origin)


def kept_bytes(make):
    """Bytes of Python's heap that what ``make`` returns holds, and that."""
    make()  # what is imported by a first call is no part of it
    gc.collect()
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        made = make()
        gc.collect()
        return tracemalloc.get_traced_memory()[0] - before, made
    finally:
        tracemalloc.stop()


def test_a_group_costs_its_writer_less_than_a_kilobyte_however_many_lanes_it_has(tmp_path):
    writer = open_writer(tmp_path)
    seal(writer, 0)
    kept, _ = kept_bytes(lambda: [seal(writer, group) for group in range(1, GROUPS)])
    assert kept / GROUPS < 1_000  # a manifest of so many lanes is 100 KB
    kept, again = kept_bytes(lambda: open_writer(tmp_path))
    newest, _ = kept_bytes(lambda: again._manifest(2 * GROUPS - 2))
    assert (kept - newest) / GROUPS < 2_000  # the newest manifest alone, once
    assert (again.segments, again.rows, again.stored_bytes) == (writer.segments, writer.rows, writer.stored_bytes)


def test_a_group_costs_its_reader_twenty_bytes_a_lane_and_a_few_kilobytes(tmp_path):
    writer = open_writer(tmp_path)
    for group in range(GROUPS):
        seal(writer, group)
    kept, log = kept_bytes(lambda: ReplayLog(tmp_path))
    assert kept / GROUPS < 20 * LANES + 4_000
    assert [dict(each.lanes) for each in log.segments] == [dict.fromkeys(range(LANES), (k, k)) for k in range(GROUPS)]


def test_rows_and_bytes_of_a_log_are_those_of_the_groups_that_retention_leaves(tmp_path):
    writer = open_writer(tmp_path, RetentionSettings(rows=8))
    for group in range(5):
        seal(writer, group, lanes=3)
        writer.retain()
    stored = sum(path.stat().st_size for path in tmp_path.glob("*.arrow"))
    assert (writer.segments, writer.rows, writer.stored_bytes) == (2, 6, stored)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        f"{kind}-0000-0000000{number}.{end}"
        for kind, end in (("manifest", "json"), ("rows", "arrow"))
        for number in (3, 4)
    ]


@pytest.mark.parametrize("lanes", [{}, {7: (3, 3)}, {7: (3, 9), 2: (0, 0), 40: (5, 1 << 50)}])
def test_spans_are_a_mapping_of_lanes(lanes):
    spans = LaneSpans(lanes)
    assert spans == lanes
    assert list(spans) == sorted(lanes)
    assert [spans[lane] for lane in lanes] == list(lanes.values())
    assert [lane for lane in range(50) if lane in spans] == sorted(lanes)
    every = [(lane, number) for lane, (first, last) in lanes.items() for number in (last, first)]
    lane, generation = (np.array([pair[k] for pair in every], dtype) for k, dtype in ((0, np.int32), (1, np.int64)))
    assert LaneSpans.of_rows(lane, generation) == lanes


@pytest.mark.parametrize(("rows_of", "free"), [(2, 0), (0, UNKNOWN_ROWS)])
def test_behind_a_damaged_manifest_rows_are_believed_where_they_follow_on_the_ones_before(tmp_path, rows_of, free):
    writer = open_writer(tmp_path)
    for group in range(3):
        seal(writer, group, lanes=2)
    (tmp_path / "manifest-0000-00000002.json").write_text("{")
    rows = [tmp_path / f"rows-0000-0000000{group}.arrow" for group in range(3)]
    rows[2].write_bytes(rows[rows_of].read_bytes())  # those of group 0: numbers that others have
    opened = open_writer(tmp_path).opened
    assert opened.next_generation == ((3, 3) if not free else (2, 2))
    assert opened.unknown_rows == free


def test_files_that_vanish_while_a_folder_is_listed_are_left_out(tmp_path, monkeypatch):
    for name in ("rows-0000-00000000.arrow.part", "rows-0000-00000001.arrow", "manifest-0000-00000001.json"):
        (tmp_path / name).write_bytes(b"1234")
    real = os.scandir

    @contextmanager
    def scanned_too_late(path):
        entries = list(real(path))
        (tmp_path / "rows-0000-00000000.arrow.part").rename(tmp_path / "rows-0000-00000000.arrow")
        (tmp_path / "manifest-0000-00000001.json").unlink()
        yield entries

    monkeypatch.setattr(os, "scandir", scanned_too_late)
    assert open_files(tmp_path).names() == {"rows-0000-00000001.arrow": 4}


def test_captions_that_every_group_names_are_held_once_by_readers_and_writers(tmp_path):
    named = {number: CaptionText(f"caption {number} " + "of many words " * 20, ()) for number in range(1, 501)}
    writer = open_writer(tmp_path)
    for group in range(GROUPS):
        own = {10_000 - group: CaptionText(f"of group {group}", (KeyText("a", askable=False),))}
        seal(writer, group, lanes=1, captions=named | own)
    every = named | {
        10_000 - group: CaptionText(f"of group {group}", (KeyText("a", False),)) for group in range(GROUPS)
    }
    assert open_writer(tmp_path).opened.captions == every
    log, ordinary = ReplayLog(tmp_path), pa.default_memory_pool()
    pa.set_memory_pool(COUNTING)
    try:
        table = log.captions()
    finally:
        pa.set_memory_pool(ordinary)
    assert table["caption_id"].to_pylist() == sorted(every)
    assert captions_of(table) == every
    assert COUNTING.max_memory() < GROUPS / 2 * table.nbytes
