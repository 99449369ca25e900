"""A log put into a ring file, so that samplers draw from it and learners learn with no actors at all.

Each lane of the log becomes a group of one lane of the ring; see ``ring_filling`` for what becomes of its rows.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from onibi.platform.counted import counted
from onibi.platform.errors import ReplayError
from onibi.platform.fragment import CaptionText
from onibi.platform.replay.datasets.log_builder import captions_of
from onibi.platform.replay.datasets.ring_filling import RingFilling
from onibi.platform.replay.log.log_reader import ReplayLog
from onibi.platform.replay.ring.layout import RingLayout, smallest_slots
from onibi.platform.replay.ring.writer import RingWriter
from onibi.platform.spec import StateSpec

Resolve = Callable[[list[CaptionText]], NDArray[np.uint32]]
"""Interns captions in a run's caption table; returns their dense ids in order."""


@dataclass(frozen=True, kw_only=True)
class LoadedRing:
    """What a ring was filled with. Where it is smaller than the log, the newest rows of each lane are there."""

    path: Path
    lanes: tuple[tuple[int, int], ...]  # (shard, lane of the log) of each lane of the ring
    rows: int  # that can be read, final rows included
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
    Raises: ReplayError where the log has no sealed rows, the file exists, or there is too little memory; SegmentError
        where a segment is damaged: then there is no ring.
    """
    if capacity_rows is not None and capacity_rows < 1:
        raise ReplayError(f"capacity_rows is {capacity_rows}; allowed: 1 or more, or None for all rows of the log")
    places = sorted({(segment.shard, lane) for segment in log.segments for lane in segment.lanes})
    if not places:
        raise ReplayError(
            f"{log.location}: no rows are sealed in this log ({counted(len(log.torn), 'file')} of unfinished "
            f"segments, {counted(len(log.unreadable), 'damaged manifest')}): there is nothing to load. Wait until its "
            "run seals some, or look at it with `onibi replay verify`"
        )
    wanted = _longest_lane(log) + 1 if capacity_rows is None else capacity_rows // len(places)
    filling = RingFilling(
        log,
        {place: lane for lane, place in enumerate(places)},
        ids=None if resolve is None else _translation(log, resolve),
        counted=True,
    )
    layout = RingLayout(
        spec=replace(log.spec, states=states),
        groups=len(places),
        lanes_per_group=1,
        slots=max(wanted, smallest_slots(0, window_rows)),
        window_rows=window_rows,
        run_id=run_id or log.segments[0].run_id,
    )
    RingWriter.of_layout(path, layout, filling.fill).close()
    return LoadedRing(
        path=path, lanes=tuple(places), rows=filling.rows, steps=filling.steps, lost_steps=filling.lost_steps
    )


def _longest_lane(log: ReplayLog) -> int:
    """Rows of the longest lane, at most: manifests name the first and last row of each lane and segment."""
    rows: dict[tuple[int, int], int] = {}
    for segment in log.segments:
        for lane, (first, last) in segment.lanes.items():
            most = min(last - first + 1, segment.rows)  # fewer than its span where rows were dropped
            rows[segment.shard, lane] = rows.get((segment.shard, lane), 0) + most
    return max(rows.values())


def _translation(log: ReplayLog, resolve: Resolve) -> NDArray[np.uint32]:
    """The run's id of each of the log's caption ids; 0, the empty caption, where the log has no text for one."""
    captions = captions_of(log.captions())
    ids = np.zeros(1 + max(captions, default=0), np.uint32)
    if captions:
        ids[list(captions)] = resolve(list(captions.values()))
    return ids
