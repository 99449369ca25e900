"""A run that trains removes its oldest segments while its log is read: no damage, and no reading fails of it."""

from __future__ import annotations

import pytest

from onibi.platform.annotation.stored_captions import read_captions
from onibi.platform.errors import SegmentError
from onibi.platform.replay.datasets.log_summary import summarize
from onibi.platform.replay.datasets.minari_export import export_minari
from onibi.platform.replay.datasets.parquet_files import export_parquet, import_parquet
from onibi.platform.replay.datasets.ring_loading import load_into_ring
from onibi.platform.replay.datasets.row_check import verify_log
from onibi.platform.replay.datasets.sql_query import log_views, query
from onibi.platform.replay.log.log_files import open_files
from onibi.platform.replay.log.log_reader import ReplayLog
from onibi.platform.replay.log.segment_format import MANIFEST, ROWS, file_name
from onibi.platform.replay.ring.reader import RingReader

ROWS_IN_ALL = 35


def remove(log: ReplayLog, number: int) -> None:
    """As retention does: the manifest first, the other files after it."""
    segment, files = log.segments[number], open_files(log.location)
    files.remove([file_name(MANIFEST, segment.shard, segment.number)])
    files.remove(list(segment.files))


@pytest.fixture
def left(log) -> int:
    """Rows behind the first segment, which is removed after the log was opened."""
    remove(log, 0)
    return ROWS_IN_ALL - log.segments[0].rows


def asked(log, sql):
    _, batches = query(log_views(log), sql)
    return [row for batch in batches for row in batch.to_pylist()]


def test_figures_queries_and_checks_are_of_what_is_left(log, left):
    summary = summarize(log)
    assert (summary.steps, summary.episodes) == (asked(log, "select count(*) n from rows where role = 0")[0]["n"], 3)
    assert asked(log, "select count(*) n from rows") == [{"n": left}]
    damage, notes = verify_log(log)
    assert (damage, notes[-1]) == (
        [],
        "1 segments were removed by the run's retention meanwhile; not all of them was checked",
    )


def test_a_segment_that_is_removed_between_two_readings_of_a_check_is_no_damage(log):
    log.on_rows = lambda _rows: log.removed(log.segments[0]) or remove(log, 0)
    damage, notes = verify_log(log)
    assert damage == []
    assert "removed by the run's retention" in notes[-1]


def test_captions_to_be_judged_are_those_of_what_is_left(log, monkeypatch, tmp_path):
    heard = ReplayLog.captions

    def removed_after(opened):
        captions = heard(opened)
        remove(opened, 0)
        return captions

    whole = read_captions(log.location, tmp_path)
    monkeypatch.setattr(ReplayLog, "captions", removed_after)
    left = read_captions(log.location, tmp_path)
    assert {key.text for key in left.keys} == {key.text for key in whole.keys}
    assert 0 < sum(key.sightings for key in left.keys) < sum(key.sightings for key in whole.keys)


@pytest.mark.parametrize("removed_at", [0, 2])
def test_exports_go_on_without_the_rows_and_say_so(log, logs, tmp_path, removed_at):
    read = []

    def count(rows):
        read.append(rows)
        if len(read) == removed_at:  # the captions of these rows lie in a segment that is gone when all rows are read
            remove(log, 0)

    log.on_rows = count
    if not removed_at:
        remove(log, 0)
    expected = ROWS_IN_ALL if removed_at else ROWS_IN_ALL - log.segments[0].rows
    moved = export_parquet(log, str(tmp_path / "out"))
    assert moved.rows == expected
    assert moved.notes == (() if removed_at else ("8 rows left out: the run's retention removed them meanwhile",))
    import_parquet(str(tmp_path / "out"), str(tmp_path / "again"))
    again = ReplayLog(tmp_path / "again")
    assert again.rows == expected
    if removed_at:
        named = set(logs.rows(again)["caption_id"].to_pylist()) - {0}
        assert named <= set(again.captions()["caption_id"].to_pylist())


def test_a_minari_export_and_a_ring_are_made_of_what_is_left(log, left, tmp_path, ring_path):
    moved = export_minari(log, str(tmp_path / "out-v0"), pieces="all")
    assert moved.notes[0] == "8 rows left out: the run's retention removed them meanwhile"
    loaded = load_into_ring(log, ring_path, window_rows=2)
    assert loaded.rows == RingReader(ring_path).snapshot().readable_rows == left


def test_rows_that_are_gone_while_their_manifest_is_there_are_damage(log, tmp_path):
    segment = log.segments[1]
    open_files(log.location).remove([file_name(ROWS, segment.shard, segment.number)])
    assert [found.name for found in verify_log(log)[0]] == [file_name(ROWS, segment.shard, segment.number)]
    with pytest.raises(SegmentError, match="cannot be read"):
        export_parquet(log, str(tmp_path / "out"))
    with pytest.raises(SegmentError, match="`onibi replay verify` tells which"):
        log_views(log)
