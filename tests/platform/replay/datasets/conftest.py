"""Logs to convert, query and check: sealed by the log's own segment writer, row by row known."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from onibi.platform.fragment import CaptionText, EpisodeStatistics, KeyText
from onibi.platform.replay.log.log_files import open_files
from onibi.platform.replay.log.log_reader import ReplayLog
from onibi.platform.replay.log.segment_format import RingOrigin
from onibi.platform.replay.log.segment_writer import RetentionSettings, Rows, SegmentWriter
from onibi.platform.spec import ROLE_FINAL, ArraySpec, ReplaySpec

SPEC = ReplaySpec(
    observation=(
        ArraySpec(name="observation.vector", dtype="float32", shape=(3,), unit="metres"),
        ArraySpec(name="observation.inner.image", dtype="uint8", shape=(2, 2), low=0.0, high=255.0),
        ArraySpec(name="observation.inner.compass", dtype="int8", low=0.0, high=7.0),
    ),
    actions=5,
    keys_per_caption=2,
    extra=(ArraySpec(name="action_log_prob", dtype="float32"), ArraySpec(name="logits", dtype="float16", shape=(5,))),
)
CAPTIONS = {
    1: CaptionText("You see a key.", (KeyText("you see a key"),)),
    2: CaptionText("Ouch!  A wall.", (KeyText("ouch"), KeyText("a wall", askable=False))),
}


class LaneOfRows:
    """Rows of one lane: episodes of given lengths, each with its final row."""

    def __init__(self, lane: int, rng: np.random.Generator) -> None:
        self.lane, self.rng = lane, rng
        self.rows: list[dict] = []
        self.episodes: list[tuple[int, EpisodeStatistics]] = []  # row behind which it ended
        self.gaps: dict[int, int] = {}  # how many generations are free before a row

    @property
    def generations(self) -> np.ndarray:
        return np.cumsum([1 + self.gaps.get(number, 0) for number in range(len(self.rows))]) - 1

    def row(self, episode_id: int, step: int, role: int = 0) -> dict:
        row = {column.name: np.zeros(column.shape, column.dtype) for column in SPEC.columns}
        row["observation.vector"][:] = self.rng.standard_normal(3)
        row["observation.vector"].view(np.uint32)[0] = 0x7FC00000 + len(self.rows)  # a NaN with a payload of its own
        row["observation.inner.image"][:] = self.rng.integers(0, 256, (2, 2))
        row["observation.inner.compass"][...] = self.rng.integers(0, 8)
        row["episode_id"][...], row["step"][...], row["role"][...] = episode_id, step, role
        return row

    def episode(
        self, episode_id: int, length: int, *, end: str = "terminated", first_step: int = 0, final: bool = True
    ):
        total = 0.0
        for step in range(first_step, first_step + length):
            row = self.row(episode_id, step)
            row["action"][...] = self.rng.integers(0, 5)
            row["reward"][...] = self.rng.integers(-3, 4) / 4
            row["caption_id"][...] = self.rng.integers(0, 3)
            row["caption_count"][:] = self.rng.integers(0, 9, 2)
            row["policy_version"][...] = 2**40 + step
            row["action_log_prob"][...] = self.rng.standard_normal()
            row["logits"][:] = self.rng.standard_normal(5)
            if step == first_step + length - 1 and end in ("terminated", "truncated"):
                row[end][...] = 1
            total += float(row["reward"])
            self.rows.append(row)
        if final:
            self.rows.append(self.row(episode_id, first_step + length, ROLE_FINAL))
            if end != "cut":
                figures = EpisodeStatistics(
                    lane=self.lane,
                    episode_id=episode_id,
                    episode_return=total,
                    length=length,
                    terminated=end == "terminated",
                    extra={"depth": float(length)} if episode_id % 2 else {},
                )
                self.episodes.append((len(self.rows) - 1, figures))


def seal_lanes(location: str, lanes: list[LaneOfRows], *, segments: int, shard: int = 0, spec=SPEC) -> None:
    """Seal the rows in so many segments, a part of every lane in each, as fragments bring them."""
    writer = SegmentWriter(
        open_files(location, create=True),
        spec,
        run_id="a-run",
        shard=shard,
        retention=RetentionSettings(bytes=None),
        compression="zstd",
        wall_clock=iter(range(10**18, 2 * 10**18, 10**9)).__next__,
    )
    known: set[int] = set()
    for segment in range(segments):
        spans = [
            (lane, len(lane.rows) * segment // segments, len(lane.rows) * (segment + 1) // segments) for lane in lanes
        ]
        rows = [row for lane, begin, end in spans for row in lane.rows[begin:end]]
        columns = {column.name: np.stack([row[column.name] for row in rows]) for column in spec.columns}
        named = set(np.unique(columns["caption_id"]).tolist()) - known - {0}
        known |= named
        writer.seal(
            Rows(
                lane=np.concatenate([np.full(end - begin, lane.lane, np.int32) for lane, begin, end in spans]),
                generation=np.concatenate([lane.generations[begin:end] for lane, begin, end in spans]),
                columns=columns,
            ),
            {caption: CAPTIONS[caption] for caption in sorted(named)},
            [figures for lane, begin, end in spans for row, figures in lane.episodes if begin <= row < end],
            next_generation=[int(lane.generations[end - 1]) + 1 if end else 0 for lane, _, end in spans],
            ring=RingOrigin(created_unix_ns=1, first_generation=(0,) * len(lanes)),
        )


def two_lanes(seed: int = 0) -> list[LaneOfRows]:
    """Lane 0: two whole episodes and one the log breaks off in. Lane 1: one cut by a dead actor, one whole."""
    rng = np.random.default_rng(seed)
    lanes = [LaneOfRows(0, rng), LaneOfRows(1, rng)]
    lanes[0].episode(1, 7)
    lanes[0].episode(2, 4, end="truncated")
    lanes[0].episode(3, 5, end="none", final=False)
    lanes[1].episode(11, 6, end="cut")
    lanes[1].episode(12, 9)
    return lanes


class Logs:
    """What tests make logs with and look at them by."""

    SPEC, CAPTIONS, Lane = SPEC, CAPTIONS, LaneOfRows
    seal, two_lanes = staticmethod(seal_lanes), staticmethod(two_lanes)

    @staticmethod
    def rows(log: ReplayLog) -> pa.Table:
        """All rows, metadata left out, in the order of the log."""
        return pa.concat_tables([log.read(segment).replace_schema_metadata(None) for segment in log.segments])

    @staticmethod
    def bits(table: pa.Table) -> dict[str, bytes]:
        """Every column's values bit by bit: NaNs count, too."""
        found = {}
        for name in table.column_names:
            values = table.column(name).combine_chunks()
            if pa.types.is_fixed_size_list(values.type):
                values = values.flatten()
            found[name] = values.to_numpy(zero_copy_only=False).tobytes()
        return found


@pytest.fixture(scope="session")
def logs() -> Logs:
    return Logs()


@pytest.fixture
def log(tmp_path) -> ReplayLog:
    """A log of 35 rows in 4 segments."""
    location = tmp_path / "log"
    seal_lanes(str(location), two_lanes(), segments=4)
    return ReplayLog(location)
