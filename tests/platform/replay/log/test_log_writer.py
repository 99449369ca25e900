"""The log of a shard: what was inserted is what is read back, once each, whatever happened to its actors and itself."""

from __future__ import annotations

import threading

import numpy as np
import pyarrow.dataset
import pytest

from onibi.platform.annotation.captions import lost_caption
from onibi.platform.errors import ReplayError
from onibi.platform.fragment import CaptionText, KeyText
from onibi.platform.replay.log.log_files import FolderDisk, LocalFiles
from onibi.platform.replay.log.log_reader import ReplayLog
from onibi.platform.replay.log.log_settings import LogSettings
from onibi.platform.replay.log.log_writer import LogWriter
from onibi.platform.replay.log.segment_writer import RetentionSettings
from onibi.platform.replay.ring.file import remove_ring
from tests.platform.replay.log.log_workbench import (
    ACTORS,
    ENVS,
    TEXTS,
    SlowDisk,
    assert_log_holds,
    rows_of,
    wait_until,
)


@pytest.mark.parametrize("segment_bytes", [1 << 10, 20_000, 64 << 20])
def test_every_row_is_read_back_once_with_gaps_registers_cut_episodes_and_ragged_lanes(bench, segment_bytes):
    bench.open(segment_bytes=segment_bytes, seal_seconds=0.05)
    bench.insert_many(60)
    bench.close()
    log = ReplayLog(bench.folder)
    assert_log_holds(log, bench)
    assert log.spec == bench.rows.SPEC
    final = sum(row["role"] for rows in bench.model.rows for row in rows)
    assert final > 20
    figures = bench.log.figures()
    assert figures.rows == figures.sealed_rows == log.rows == sum(map(len, bench.model.rows))
    assert (figures.dropped_rows, figures.lag_seconds, figures.failure) == (0, 0.0, "")
    assert figures.segments == len(log.segments) == len(list(bench.folder.glob("manifest-*")))
    if segment_bytes == 1 << 10:
        assert len(log.segments) > 10


def test_captions_and_episodes_are_logged_with_their_lane_of_the_ring(bench):
    bench.open(segment_bytes=1 << 10)
    bench.insert_many(30)
    bench.close()
    log = ReplayLog(bench.folder)
    captions = log.captions().to_pylist()
    assert captions == [
        {"caption_id": 1, "text": TEXTS[1], "keys": [TEXTS[1]], "askable": [True]},
        {"caption_id": 2, "text": TEXTS[2], "keys": [TEXTS[2]], "askable": [False]},
    ]
    episodes = log.episodes().to_pylist()
    assert len(episodes) == 30
    assert {episode["lane"] for episode in episodes} == {1, ENVS + 1}
    assert episodes[0] == {
        "lane": episodes[0]["lane"],
        "episode_id": 0,
        "episode_return": 1.5,
        "length": 3,
        "terminated": True,
        "extra": [("score", 2.0)],
    }


def test_plain_pyarrow_reads_the_rows_files_without_onibi(bench):
    bench.open(segment_bytes=4 << 10)
    bench.insert_many(30)
    bench.close()
    files = sorted(map(str, bench.folder.glob("rows-*.arrow")))
    table = pyarrow.dataset.dataset(files, format="ipc").to_table(filter=pyarrow.dataset.field("terminated"))
    expected = sum(int(row["terminated"]) for rows in bench.model.rows for row in rows)
    assert table.num_rows == expected > 0
    assert ReplayLog(bench.folder).dataset().count_rows() == sum(map(len, bench.model.rows))


def test_rows_that_wait_too_long_are_sealed_without_another_insertion(bench):
    bench.open(seal_seconds=0.05)
    while not sum(map(len, bench.model.rows)):
        bench.insert(0)
    wait_until(lambda: bench.log.figures().sealed_rows == sum(map(len, bench.model.rows)))
    assert bench.log.figures().lag_seconds == 0


def test_a_disk_that_does_not_keep_up_makes_insertions_wait_and_nothing_is_lost(bench):
    disk = SlowDisk(bench.folder)
    bench.open(disk=disk, segment_bytes=1 << 10)
    inserting = threading.Thread(target=bench.insert_many, args=(200,), kwargs={"registers": 0.0})
    inserting.start()
    inserting.join(2)
    assert inserting.is_alive(), "the ring has room for far fewer rows"
    assert bench.log.figures().dropped_rows == 0
    disk.open.set()
    inserting.join(60)
    bench.close()
    assert_log_holds(ReplayLog(bench.folder), bench)


def test_with_drop_insertions_go_on_and_every_lost_row_is_counted(bench):
    disk = SlowDisk(bench.folder)
    bench.open(disk=disk, segment_bytes=1 << 10, overflow="drop")
    bench.insert_many(200)
    disk.open.set()
    bench.close()
    log = ReplayLog(bench.folder)
    assert log.verify() == []
    total = sum(map(len, bench.model.rows))
    figures = bench.log.figures()
    assert figures.dropped_rows > 0
    assert (figures.rows, figures.sealed_rows) == (total, log.rows) == (total, total - figures.dropped_rows)
    for lane, (generation, table) in rows_of(log).items():
        assert len(np.unique(generation)) == len(generation)
        rewards = [bench.model.rows[lane][number]["reward"] for number in generation]
        np.testing.assert_array_equal(table.column("reward").to_numpy(), np.array(rewards, np.float32))


@pytest.mark.parametrize("on_error", ["continue", "stop"])
def test_a_disk_that_refuses_switches_the_log_off_or_stops_the_run(bench, on_error, caplog):
    disk = SlowDisk(bench.folder)
    disk.open.set()
    bench.open(disk=disk, segment_bytes=1 << 10, on_error=on_error)
    bench.insert_many(20)
    wait_until(lambda: bench.log.figures().segments > 0)
    disk.error = OSError(28, "No space left on device")
    if on_error == "stop":
        with pytest.raises(ReplayError, match=r"No space left.*replay\.log\.on_error=continue"):
            bench.insert_many(2_000)
        with pytest.raises(ReplayError, match="No space left"):
            bench.shard.log_figures()
    else:
        bench.insert_many(100)
        wait_until(lambda: bench.log.figures().failure)
        bench.insert_many(100)
    assert [record.levelname for record in caplog.records].count("ERROR") == 1
    bench.close()
    log = ReplayLog(bench.folder)
    assert log.torn == ()
    assert log.verify() == []
    figures = bench.log.figures()
    assert log.rows == figures.sealed_rows > 0
    if on_error == "continue":
        heads = ACTORS * ENVS  # which a close in order would have written
        assert figures.dropped_rows == sum(map(len, bench.model.rows)) - figures.sealed_rows - heads


def test_a_killed_session_goes_on_behind_its_last_sealed_row_and_doubles_nothing(bench):
    bench.open(seal_seconds=0.01)
    bench.insert_many(4, gaps=0, registers=0)
    wait_until(lambda: bench.log.figures().lag_seconds == 0)
    bench.abandon()  # nothing more is sealed by it
    sealed = ReplayLog(bench.folder).rows
    (bench.folder / "rows-0000-00000099.arrow").write_bytes(b"torn")
    (bench.folder / "captions-0000-00000099.arrow.part").write_bytes(b"torn")
    bench.open(reopen=True)
    assert set(bench.log.opened.torn) == {"rows-0000-00000099.arrow", "captions-0000-00000099.arrow.part"}
    bench.insert_many(6)
    bench.close()
    log = ReplayLog(bench.folder)
    assert log.rows > sealed
    assert max(segment.number for segment in log.segments) >= 100, "a torn group's number is not given again"
    assert_log_holds(log, bench)


def test_rows_that_were_not_sealed_are_taken_from_the_ring_that_was_left(bench):
    bench.open(seal_seconds=3_600.0)
    bench.insert_many(5, gaps=0, registers=0)
    bench.abandon()
    assert list(bench.folder.iterdir()) == []
    known = {k: CaptionText(TEXTS[k], (KeyText(TEXTS[k], askable=k == 1),)) for k in (1, 2)}
    bench.open(reopen=True, captions=known)
    assert bench.log.figures().rows >= sum(map(len, bench.model.rows)) - ENVS * ACTORS
    bench.close()
    log = ReplayLog(bench.folder)
    assert_log_holds(log, bench)
    assert [caption["text"] for caption in log.captions().to_pylist()] == list(TEXTS[1:])


def test_a_caption_whose_text_is_known_to_nobody_is_named_as_lost(bench):
    bench.open(seal_seconds=3_600.0)
    bench.insert_many(5, gaps=0, registers=0)
    bench.abandon()
    bench.open(reopen=True)
    bench.close()
    texts = {caption["text"] for caption in ReplayLog(bench.folder).captions().to_pylist()}
    assert texts == {lost_caption(1).text, lost_caption(2).text}


def test_another_ring_leaves_a_number_free_where_the_last_one_ended(bench):
    bench.open()
    bench.insert_many(6, gaps=0, registers=0)
    bench.close()
    before = [len(rows) for rows in bench.model.rows]
    remove_ring(bench.ring)
    bench.model = bench.rows.RingModel(ACTORS * ENVS, 10**9)
    bench.open()
    bench.insert_many(6, gaps=0, registers=0)
    bench.close()
    log = ReplayLog(bench.folder)
    assert log.verify() == []
    for lane, (generation, table) in rows_of(log).items():
        after = len(bench.model.rows[lane])
        assert generation.tolist() == [*range(before[lane]), *range(before[lane] + 1, before[lane] + 1 + after)]
        rewards = [row["reward"] for row in bench.model.rows[lane]]
        np.testing.assert_array_equal(table.column("reward").to_numpy()[before[lane] :], np.array(rewards, np.float32))


def test_retention_removes_the_oldest_groups_and_every_caption_left_has_its_text(bench):
    bench.open(segment_bytes=1 << 10, seal_seconds=0.01, retention=RetentionSettings(rows=120))
    bench.insert_many(120, registers=0)
    bench.close()
    log = ReplayLog(bench.folder)
    assert log.verify() == []
    assert log.torn == ()
    assert log.rows <= 120 < sum(map(len, bench.model.rows))
    assert log.segments[0].number > 0
    named = set(log.dataset().to_table(columns=["caption_id"]).column("caption_id").to_pylist()) - {0}
    assert named <= {caption["caption_id"] for caption in log.captions().to_pylist()}
    # A resumed session knows where to go on although most groups are gone.
    bench.open(reopen=True)
    bench.insert_many(3)
    bench.close()
    assert ReplayLog(bench.folder).verify() == []


def test_a_log_of_another_run_or_row_layout_is_refused(bench, rows):
    bench.open()
    bench.insert_many(5)
    bench.close()
    files = LocalFiles(str(bench.folder), FolderDisk(bench.folder))
    with pytest.raises(ReplayError, match="of run 'test', not of 'other'"):
        LogWriter(LogSettings(), files, bench.ring, run_id="other", captions={})


def test_a_place_that_cannot_be_written_is_refused_at_the_start(bench, tmp_path):
    bench.open()
    files = LocalFiles("nowhere", FolderDisk(tmp_path / "nowhere"))
    with pytest.raises(ReplayError, match=r"replay\.log\.url"):
        LogWriter(LogSettings(), files, bench.ring, run_id="test", captions={})
