"""A log put into a ring file, so that samplers draw from it and learners learn with no actors at all.

Each lane of the log becomes a group of one lane of the ring. What ends pieces in the log ends them in the ring: final
rows, and gaps in the generations. A lane's newest row becomes its head: readable as next observation and never drawn.
Where it is a step row, its step is lost: the observation that it led to is not in the log.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from onibi.platform.errors import ReplayError
from onibi.platform.fragment import CaptionText
from onibi.platform.replay.datasets.log_builder import captions_of
from onibi.platform.replay.datasets.row_columns import LaneRows, joined, lanes_of
from onibi.platform.replay.log.log_reader import ReplayLog
from onibi.platform.replay.ring_layout import smallest_slots
from onibi.platform.replay.ring_writer import RingWriter
from onibi.platform.spec import ROLE_STEP, StateSpec

Resolve = Callable[[list[CaptionText]], NDArray[np.uint32]]
"""Interns captions in a run's caption table; returns their dense ids in order."""

_MOST_ROWS = 4_096
"""Of one insertion: a ring needs four times as many slots a lane."""


@dataclass(frozen=True, kw_only=True)
class LoadedRing:
    """What a ring was filled with."""

    path: Path
    lanes: tuple[tuple[int, int], ...]  # (shard, lane of the log) of each lane of the ring
    rows: int  # committed to the ring, final rows included; where it is too small, the oldest were overwritten again
    steps: int
    lost_steps: int  # whose following observation is not in the log


def load_into_ring(
    log: ReplayLog,
    path: Path,
    *,
    window_rows: int,
    capacity_rows: int | None = None,
    run_id: str | None = None,
    resolve: Resolve | None = None,
    states: tuple[StateSpec, ...] = (),
) -> LoadedRing:
    """Make a ring file and fill it with the log, one segment in memory at a time; checksums are compared on the way.

    Args:
        path: of the new file, best on a memory file system such as /dev/shm.
        window_rows: the longest reach of a draw in rows: n, or burn-in and length of sequences.
        capacity_rows: over all lanes; the newest rows stay. None: all rows of the log.
        run_id: that the ring's header names; the log's where None.
        resolve: gives the captions the ids of a run's own table. None: they keep the log's.
        states: that a learner reads; a log holds none, so they are all 0.
    Raises: ReplayError where the file exists or there is too little memory; SegmentError where a segment is damaged:
        then there is no ring.
    """
    if capacity_rows is not None and capacity_rows < 1:
        raise ReplayError(f"capacity_rows is {capacity_rows}; allowed: 1 or more, or None for all rows of the log")
    spec = replace(log.spec, states=states)
    places = sorted({(segment.shard, lane) for segment in log.segments for lane in segment.lanes})
    longest = _longest_lane(log)
    wanted = longest + 1 if capacity_rows is None else max(1, capacity_rows // len(places))
    most = max(1, min(_MOST_ROWS, longest, wanted // 4 - 1 - window_rows))
    slots = max(wanted, smallest_slots(most, window_rows))
    ids = None if resolve is None else _translation(log, resolve)
    writer = RingWriter.create(
        path,
        spec,
        groups=len(places),
        lanes_per_group=1,
        slots=slots,
        window_rows=window_rows,
        run_id=run_id or next(iter(log.manifests.values())).run_id,
    )
    try:
        lanes = {place: _LaneLoader(writer, group, most) for group, place in enumerate(places)}
        for segment in log.segments:
            for rows in lanes_of(spec, log.read(segment)):
                lanes[segment.shard, rows.lane].add(rows if ids is None else _translated(rows, ids))
        for lane in lanes.values():
            lane.finish()
    except BaseException:
        writer.close()
        path.unlink(missing_ok=True)
        raise
    writer.close()
    return LoadedRing(
        path=path,
        lanes=tuple(places),
        rows=sum(lane.rows for lane in lanes.values()),
        steps=sum(lane.steps for lane in lanes.values()),
        lost_steps=sum(lane.lost_steps for lane in lanes.values()),
    )


class _LaneLoader:
    """Inserts one lane; the newest row waits until it is known what follows it."""

    def __init__(self, writer: RingWriter, group: int, most: int) -> None:
        self._writer, self._group, self._most = writer, group, most
        self._head_columns = {*(column.name for column in writer.layout.spec.observation), "episode_id", "step"}
        self._incarnation = writer.register(group)
        self._sequence = 0
        self._waiting: LaneRows | None = None
        self.rows = self.steps = self.lost_steps = 0

    def add(self, rows: LaneRows) -> None:
        """Insert the next rows of the lane, but for the newest."""
        if self._waiting is not None:
            rows = joined([self._waiting, rows])
        begin = 0
        breaks = np.flatnonzero(np.diff(rows.generation) != 1)
        for end in breaks.tolist():
            self._insert(rows.part(begin, end + 1))
            self._break(rows.part(end, end + 1))
            begin = end + 1
        self._insert(rows.part(begin, len(rows)))
        last = rows.part(len(rows) - 1, len(rows))
        self._waiting = LaneRows(
            lane=rows.lane,
            generation=last.generation.copy(),
            columns={name: values.copy() for name, values in last.columns.items()},
        )

    def finish(self) -> None:
        """The lane's last row stays its head."""
        if self._waiting is not None:
            self._count_lost(self._waiting)

    def _insert(self, rows: LaneRows) -> None:
        """Rows without a gap; the last of each fragment is its head, and comes again as the next one's first row."""
        for begin in range(0, len(rows) - 1, self._most):
            part = rows.part(begin, min(begin + self._most, len(rows) - 1) + 1)
            count = len(part) - 1
            columns = {name: values[None].copy() for name, values in part.columns.items()}
            for name, values in columns.items():
                if name not in self._head_columns:
                    values[0, -1] = 0
            insertion = self._writer.insert(
                self._group,
                incarnation=self._incarnation,
                sequence=self._sequence,
                rows_per_lane=np.array([count], np.int32),
                columns=columns,
            )
            self._sequence += 1
            self.rows += count
            self.steps += insertion.step_rows

    def _break(self, newest: LaneRows) -> None:
        """A gap follows: the next fragment comes out of turn, at which the writer makes the head a final row."""
        self._sequence += 1
        self._count_lost(newest)

    def _count_lost(self, newest: LaneRows) -> None:
        self.lost_steps += int(newest.columns["role"][0] == ROLE_STEP)


def _longest_lane(log: ReplayLog) -> int:
    """Rows of the longest lane, at most: manifests name the first and last row of each lane and segment."""
    rows: dict[tuple[int, int], int] = {}
    for segment in log.segments:
        for lane, (first, last) in segment.lanes.items():
            rows[segment.shard, lane] = rows.get((segment.shard, lane), 0) + last - first + 1
    return max(rows.values())


def _translation(log: ReplayLog, resolve: Resolve) -> NDArray[np.uint32]:
    """The run's id of each of the log's caption ids; 0, the empty caption, where the log has no text for one."""
    captions = captions_of(log.captions())
    ids = np.zeros(1 + max(captions, default=0), np.uint32)
    if captions:
        ids[list(captions)] = resolve(list(captions.values()))
    return ids


def _translated(rows: LaneRows, ids: NDArray[np.uint32]) -> LaneRows:
    theirs = rows.columns["caption_id"]
    mine = np.where(theirs < len(ids), ids[np.minimum(theirs, len(ids) - 1)], np.uint32(0))
    return LaneRows(lane=rows.lane, generation=rows.generation, columns={**rows.columns, "caption_id": mine})
