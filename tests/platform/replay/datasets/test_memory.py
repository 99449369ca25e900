"""Converters read a log segment by segment: what they hold does not grow with it."""

from __future__ import annotations

import tracemalloc

import h5py  # noqa: F401  or its import would be traced
import minari  # noqa: F401
import numpy as np
import pyarrow as pa
import pytest

from onibi.platform.replay.datasets import minari_export, parquet_files
from onibi.platform.replay.datasets.ring_loading import load_into_ring
from onibi.platform.replay.log.log_files import open_files
from onibi.platform.replay.log.log_reader import ReplayLog
from onibi.platform.replay.log.segment_format import RingOrigin
from onibi.platform.replay.log.segment_writer import RetentionSettings, Rows, SegmentWriter
from onibi.platform.spec import ArraySpec, ReplaySpec

SPEC = ReplaySpec(observation=(ArraySpec(name="observation", dtype="uint8", shape=(1024,)),), actions=2)
SEGMENTS, ROWS = 12, 500  # half a megabyte each
SEGMENT_BYTES = ROWS * SPEC.row_bytes


class MeasuredLog(ReplayLog):
    """Notes at each segment read what Arrow and Python hold then."""

    def __init__(self, location):
        super().__init__(location)
        self.held: list[int] = []

    def read(self, segment):
        self.held.append(pa.total_allocated_bytes() + tracemalloc.get_traced_memory()[0])
        return super().read(segment)


@pytest.fixture
def log(tmp_path) -> MeasuredLog:
    location = f"memory://{tmp_path.name}/log"
    writer = SegmentWriter(
        open_files(location, create=True),
        SPEC,
        run_id="a-run",
        shard=0,
        retention=RetentionSettings(bytes=None),
        compression="none",
    )
    for number in range(SEGMENTS):
        generation = np.arange(number * ROWS, (number + 1) * ROWS)
        columns = {column.name: np.zeros((ROWS, *column.shape), column.dtype) for column in SPEC.columns}
        columns["observation"][:] = np.random.default_rng(number).integers(0, 256, (ROWS, 1024))
        columns["episode_id"][:], columns["step"][:] = generation // 250, generation % 250
        columns["role"][:], columns["terminated"][:] = generation % 250 == 249, generation % 250 == 248
        writer.seal(
            Rows(lane=np.zeros(ROWS, np.int32), generation=generation, columns=columns),
            {},
            [],
            next_generation=[(number + 1) * ROWS],
            ring=RingOrigin(created_unix_ns=0, first_generation=(0,)),
        )
    return MeasuredLog(location)


@pytest.mark.parametrize("target", ["parquet", "minari", "ring"])
def test_what_is_held_does_not_grow_with_the_log(log, tmp_path, ring_path, monkeypatch, target):
    monkeypatch.setattr(parquet_files, "group_rows", lambda spec: ROWS)
    monkeypatch.setattr(minari_export, "_BYTES_AT_ONCE", SEGMENT_BYTES)
    tracemalloc.start()
    try:
        if target == "parquet":
            parquet_files.export_parquet(log, str(tmp_path / "out"))
        elif target == "minari":
            minari_export.export_minari(log, str(tmp_path / "out-v0"), pieces="begun")
        else:
            load_into_ring(log, ring_path, window_rows=1)
    finally:
        tracemalloc.stop()
    assert len(log.held) == SEGMENTS
    # Once buffers have their size, eight and more segments make no difference of one.
    assert max(log.held[8:]) - max(log.held[2:8]) < SEGMENT_BYTES
