"""A log's newest rows put into the memory of a new ring, while nobody else can see it.

So no commit protocol is needed, and whatever a lane's rows are in the log they lie in the ring one behind the other.
What ends pieces in the log ends them here: final rows, and gaps in the generations. The row before a gap, and a lane's
newest row, become final where they are steps: the observation that such a step led to is not in the log.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onibi.platform.errors import SegmentError
from onibi.platform.replay.datasets.row_columns import LaneRows, lanes_of
from onibi.platform.replay.log.log_reader import ReplayLog, Segment
from onibi.platform.replay.log.segment_format import spec_of_segment
from onibi.platform.replay.ring.commit import REGISTERED
from onibi.platform.replay.ring.file import MappedRing
from onibi.platform.spec import ROLE_FINAL, ROLE_STEP

Place = tuple[int, int]
"""Shard and lane of a log."""
Group = tuple[int, int]
"""Shard and number of a segment."""


class RingFilling:
    """Rows of ``source`` for a ring that is being created: ``fill`` is what ``create_ring_file`` calls.

    Args:
        source: the log; only segments with rows that fit the ring are read, one in memory at a time.
        lanes: the ring's lane of each of the log's; rows of others are left out.
        ids: the ring's caption id of each of the log's; None: they stay.
        counted: whether the rows count as inserted: where learning starts from them, and not where play goes on.
        on_damage: called with the fault of each segment that cannot be read, which is then left out as a gap is; None:
            it is raised.
    """

    def __init__(
        self,
        source: ReplayLog,
        lanes: Mapping[Place, int],
        *,
        ids: NDArray[np.uint32] | None = None,
        counted: bool,
        on_damage: Callable[[SegmentError], None] | None = None,
    ) -> None:
        self._source, self._lanes, self._ids, self._counted = source, lanes, ids, counted
        self._on_damage = on_damage
        self.rows = self.steps = self.lost_steps = 0
        """In the ring: rows, steps among them; and steps that became final rows on the way."""

    def fill(self, ring: MappedRing) -> None:
        """Write columns and words. Raises: SegmentError where a segment is damaged and ``on_damage`` is None."""
        left_out: set[Group] = set()
        while True:  # what is damaged is made up for by older rows
            lanes = {place: _FilledLane(ring, lane) for place, lane in self._lanes.items()}
            damaged = self._read_into(ring, lanes, self._newest(ring.layout.slots, left_out))
            if not damaged:
                break
            left_out |= damaged
        for lane in lanes.values():
            lane.finish(self._counted)
            self.rows += lane.rows
            self.steps += lane.steps
            self.lost_steps += lane.lost_steps

    def _read_into(self, ring: MappedRing, lanes: Mapping[Place, _FilledLane], segments: list[Segment]) -> set[Group]:
        """Put the segments' rows into the ring. Returns: those that are damaged, or were removed since."""
        spec, damaged = replace(ring.layout.spec, states=()), set[Group]()
        for segment in segments:
            try:
                table = self._source.read(segment)
                if spec_of_segment(table.schema) != spec:
                    raise SegmentError(f"{segment.rows_path}: its rows are of another layout")
            except SegmentError as error:
                if not self._source.removed(segment):  # by the retention of a run that goes on
                    if self._on_damage is None:
                        raise
                    self._on_damage(error)
                damaged.add((segment.shard, segment.number))
                continue
            for rows in lanes_of(spec, table):
                lane = lanes.get((segment.shard, rows.lane))
                if lane is not None:
                    lane.add(rows, rows.columns if self._ids is None else _translated(rows, self._ids))
        return damaged

    def _newest(self, slots: int, left_out: set[Group]) -> list[Segment]:
        """The newest segments that fill each lane, or all; in the order in which they were sealed."""
        missing = dict.fromkeys(self._lanes, slots)
        chosen = []
        for segment in reversed(self._source.segments):
            wanted = any(left > 0 for place, left in missing.items() if self._holds(segment, place))
            if not wanted or (segment.shard, segment.number) in left_out:
                continue
            chosen.append(segment)
            for lane, rows in self._rows_by_lane(segment).items():
                if (segment.shard, lane) in missing:
                    missing[segment.shard, lane] -= rows
        return chosen[::-1]

    def _rows_by_lane(self, segment: Segment) -> dict[int, int]:
        """How many rows of each lane a segment has; it is read for that where generations are missing in it."""
        spans = {lane: last - first + 1 for lane, (first, last) in segment.lanes.items()}
        if sum(spans.values()) == segment.rows:
            return spans
        try:
            lanes, rows = np.unique(self._source.read(segment).column("lane").to_numpy(), return_counts=True)
        except SegmentError:
            return {}  # told when it is to be filled in
        return dict(zip(lanes.tolist(), rows.tolist(), strict=True))

    @staticmethod
    def _holds(segment: Segment, place: Place) -> bool:
        return segment.shard == place[0] and place[1] in segment.lanes


class _FilledLane:
    """One lane of the ring. Its rows are numbered from 0, which begins an episode in any ring; from 1 where the log's
    first row does not: to readers it then looks like a lane whose older rows were overwritten.
    """

    def __init__(self, ring: MappedRing, lane: int) -> None:
        self._ring, self._lane, self._slots = ring, lane, ring.layout.slots
        self._cursor, self._begin, self._next_generation = 0, 0, -1
        self.rows = self.steps = self.lost_steps = 0

    def add(self, rows: LaneRows, columns: Mapping[str, NDArray[Any]]) -> None:
        """Put the next rows behind those that are there, over the oldest ones where it is full."""
        if self._cursor and int(rows.generation[0]) != self._next_generation:
            self._end(np.array([self._cursor - 1]))
        if not self._cursor:
            self._cursor = self._begin = int(columns["step"][0] != 0)
        number = np.arange(self._cursor, self._cursor + len(rows))
        kept = slice(max(0, len(rows) - self._slots), None)
        at = self._places(number[kept])
        for name, values in columns.items():
            self._ring.columns[name][at] = values[kept]
        self._cursor += len(rows)
        self._next_generation = int(rows.generation[-1]) + 1
        self._end(number[:-1][np.diff(rows.generation) != 1])

    def finish(self, counted: bool) -> None:
        """Write the lane's words: its group looks like one whose actor was killed."""
        if not self._cursor:
            return
        self._end(np.array([self._cursor - 1]))
        words, layout = self._ring.words, self._ring.layout
        group, oldest = self._lane // layout.lanes_per_group, max(self._begin, self._cursor + 1 - self._slots)
        at = self._places(np.arange(oldest, self._cursor))
        role = self._ring.columns["role"][at]
        self.rows, self.steps = len(at), int(np.count_nonzero(role == ROLE_STEP))
        words["cursor"][0, self._lane] = words["restored"][1, self._lane] = self._cursor
        words["oldest"][0, self._lane] = words["restored"][0, self._lane] = oldest
        words["incarnation"][0, group], words["sequence"][0, group] = 1, REGISTERED
        if counted:
            words["inserted"][0, group] += self.steps

    def _end(self, numbers: NDArray[np.int64]) -> None:
        """What follows these rows is not here: steps among them become final rows."""
        at = self._places(numbers[numbers > self._cursor - self._slots])
        role = self._ring.columns["role"]
        at = at[role[at] == ROLE_STEP]
        role[at] = ROLE_FINAL
        for name in self._ring.layout.spec.step_columns:
            self._ring.columns[name][at] = 0
        self.lost_steps += len(at)

    def _places(self, numbers: NDArray[np.int64]) -> NDArray[np.int64]:
        return self._lane * self._slots + numbers % self._slots


def _translated(rows: LaneRows, ids: NDArray[np.uint32]) -> dict[str, NDArray[Any]]:
    theirs = rows.columns["caption_id"]
    mine = np.where(theirs < len(ids), ids[np.minimum(theirs, len(ids) - 1)], np.uint32(0))
    return {**rows.columns, "caption_id": mine}
