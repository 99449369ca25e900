"""Logs elsewhere than in a local folder, groups with next to nothing in them, and the settings."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import numpy as np
import pytest

from onibi.platform.config import read_settings
from onibi.platform.errors import ConfigError, ReplayError, SegmentError
from onibi.platform.fragment import CaptionText, EpisodeStatistics, KeyText
from onibi.platform.replay.log.log_files import location_of, open_files
from onibi.platform.replay.log.log_reader import ReplayLog
from onibi.platform.replay.log.log_settings import LogSettings
from onibi.platform.replay.log.log_writer import LogWriter
from onibi.platform.replay.log.segment_format import RingOrigin
from onibi.platform.replay.log.segment_writer import RetentionSettings, Rows, SegmentWriter
from onibi.platform.replay.ring.writer import RingWriter
from onibi.platform.spec import ArraySpec, ReplaySpec

SPEC = ReplaySpec(
    observation=(
        ArraySpec(name="observation.half", dtype="float16", shape=(2,)),
        ArraySpec(name="observation.wide", dtype="int64", shape=(2, 1, 3)),
    ),
    actions=2,
)


def open_writer(location, retention=None, run_id="test", spec=SPEC, shard=0):
    return SegmentWriter(
        open_files(location, create=True),
        spec,
        run_id=run_id,
        shard=shard,
        retention=retention or RetentionSettings(),
        compression="lz4",
    )


def seal(writer, first, count, text="a key"):
    columns = {column.name: np.zeros((count, *column.shape), column.dtype) for column in SPEC.columns}
    columns["observation.wide"] += first
    rows = Rows(lane=np.full(count, 3, np.int32), generation=first + np.arange(count), columns=columns)
    caption = {1: CaptionText(text, (KeyText("a key"),))} if count else {}
    episodes = [EpisodeStatistics(3, first, 1.0, count, False)]
    origin = RingOrigin(created_unix_ns=1, first_generation=(0,) * 4)
    return writer.seal(rows, caption, episodes, next_generation=[0, 0, 0, first + count], ring=origin)


_WRITER_WITH_A_CHILD = """
import os, signal, sys
from onibi.platform.replay.log.log_files import open_files
lock = open_files(sys.argv[1]).lock()
if os.fork() == 0:
    print(os.getpid(), flush=True)
signal.pause()
"""


def test_each_shard_of_a_log_has_one_writer_and_locks_no_other_out(tmp_path):
    files = [open_files(tmp_path / "log", create=True) for _ in range(2)]
    locks = [files[0].lock(shard) for shard in (0, 1, 2)]
    for shard in (0, 1, 2):
        with pytest.raises(ReplayError, match="being written by another process"):
            files[1].lock(shard)
    locks[1].release()
    files[1].lock(1).release()
    with pytest.raises(ReplayError, match="being written by another process"):
        files[1].lock(0)


def test_a_forked_child_does_not_keep_the_folder_locked_when_the_writer_dies(tmp_path):
    files = open_files(tmp_path / "log", create=True)
    command = [sys.executable, "-c", _WRITER_WITH_A_CHILD, str(tmp_path / "log")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as writer:
        child = int(writer.stdout.readline())
        try:
            with pytest.raises(ReplayError, match="being written by another process"):
                files.lock()
            writer.kill()
            writer.wait()
            files.lock().release()
        finally:
            writer.kill()
            os.kill(child, signal.SIGKILL)


@pytest.fixture(params=["folder", "file", "memory"])
def location(request, tmp_path):
    return {
        "folder": tmp_path / "deep" / "log",
        "file": f"file://{tmp_path}/log",
        "memory": f"memory://{tmp_path.name}/log",
    }[request.param]


def test_a_log_is_written_retained_verified_and_gone_on_with_wherever_it_lies(location):
    writer = open_writer(location, RetentionSettings(rows=8))
    for number in range(4):
        seal(writer, 4 * number, 4)
        assert writer.retain() == (1 if number >= 2 else 0)
    log = ReplayLog(location)
    assert [(segment.number, segment.rows, segment.lanes) for segment in log.segments] == [
        (2, 4, {3: (8, 11)}),
        (3, 4, {3: (12, 15)}),
    ]
    assert (log.verify(), log.torn, log.spec, log.rows) == ([], (), SPEC, 8)
    assert log.dataset().to_table(columns=["generation"]).column(0).to_pylist() == list(range(8, 16))
    assert log.captions().column("text").to_pylist() == ["a key"]
    open_files(location).seal([("rows-0000-00000004.arrow", b"half an upload")])
    assert ReplayLog(location).torn == ("rows-0000-00000004.arrow",)
    writer = open_writer(location)
    assert writer.opened.torn == ("rows-0000-00000004.arrow",)
    assert writer.opened.last is not None
    assert writer.opened.last.next_generation == (0, 0, 0, 16)
    assert seal(writer, 16, 2).number == 5
    assert (ReplayLog(location).torn, ReplayLog(location).verify()) == ((), [])


def test_a_group_without_rows_keeps_its_episodes(location):
    seal(open_writer(location), 0, 0)
    log = ReplayLog(location)
    assert (log.verify(), log.rows) == ([], 0)
    assert log.episodes().column("episode_id").to_pylist() == [0]
    assert log.captions().num_rows == 0
    assert log.dataset().count_rows() == 0


def test_a_log_with_another_row_layout_or_run_is_refused(location):
    seal(open_writer(location), 0, 3)
    with pytest.raises(ReplayError, match="of another layout"):
        open_writer(location, spec=ReplaySpec(observation=SPEC.observation[:1], actions=2))
    with pytest.raises(ReplayError, match="of run 'test', not of 'other'"):
        open_writer(location, run_id="other")


def test_rows_twice_and_files_that_are_gone_are_found(location):
    writer = open_writer(location)
    seal(writer, 0, 3)
    seal(writer, 2, 3)
    files = open_files(location)
    files.remove(["captions-0000-00000000.arrow"])
    log = ReplayLog(location)
    faults = {damage.name: damage.fault for damage in log.verify()}
    assert set(faults) == {"captions-0000-00000000.arrow", "manifest-0000-00000001.json"}
    assert "rows twice" in faults["manifest-0000-00000001.json"]
    with pytest.raises(SegmentError, match="cannot be read"):
        log.captions()


def test_shards_number_their_lanes_each_for_itself(location):
    for shard in (0, 1):
        seal(open_writer(location, shard=shard), 0, 3)
    log = ReplayLog(location)
    assert (log.rows, log.verify()) == (6, [])


def test_no_log_and_unknown_addresses_are_told(tmp_path):
    with pytest.raises(ReplayError, match=r"replay\.log\.enabled"):
        ReplayLog(tmp_path / "nothing")
    with pytest.raises(ReplayError, match="no segment of a replay log"):
        ReplayLog(tmp_path)
    with pytest.raises(ReplayError, match="known neither to pyarrow nor to fsspec"):
        ReplayLog("nonsense://place/log")


@pytest.mark.parametrize(
    "wrong",
    [
        {"seal_seconds": 0.0},
        {"segment_bytes": 100},
        {"url": ""},
        {"overflow": "wait"},
        {"retention": {"bytes": 0}},
        {"retention": {"age_seconds": -1.0}},
    ],
)
def test_settings_that_cannot_work_are_refused(wrong):
    with pytest.raises(ConfigError):
        read_settings(LogSettings, wrong)


def test_the_place_of_a_log_follows_from_its_settings(tmp_path):
    assert location_of(LogSettings(enabled=False), tmp_path, "id") is None
    assert location_of(LogSettings(), tmp_path, "id") == f"{tmp_path}/replay"
    assert location_of(LogSettings(url="s3://bucket/logs/"), tmp_path, "id") == "s3://bucket/logs/id"
    assert location_of(LogSettings(url="s3://b/logs?region=x&scheme=http"), tmp_path, "id") == (
        "s3://b/logs/id?region=x&scheme=http"
    )
    assert location_of(LogSettings(url=f"file://{tmp_path}"), tmp_path, "id") == f"{tmp_path}/id"


@pytest.fixture
def ring(ring_path):
    """A function that makes a ring with one column of this name."""

    def make(name):
        spec = ReplaySpec(observation=(ArraySpec(name=name, dtype="int8"),), actions=2)
        RingWriter.create(ring_path, spec, groups=1, lanes_per_group=1, slots=40, window_rows=3, run_id="test").close()
        return ring_path

    return make


def opened(folder, ring):
    return LogWriter(LogSettings(), open_files(folder, create=True), ring, run_id="test", captions={})


def test_a_log_in_a_folder_has_one_writer_at_a_time(ring, tmp_path):
    path = ring("observation")
    first = opened(tmp_path / "log", path)
    with pytest.raises(ReplayError, match="being written by another process"):
        opened(tmp_path / "log", path)
    first.close()
    opened(tmp_path / "log", path).close()


def test_a_refused_opening_leaves_the_log_to_others(ring, tmp_path):
    with pytest.raises(ReplayError, match=r"\['lane'\] have names of tables' own"):
        opened(tmp_path / "log", ring("lane"))
    open_files(tmp_path / "log").lock().release()
