"""One commit of a ring, planned before any store, and the copies it needs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onibi.platform.fragment import StateRows
from onibi.platform.replay.ring.layout import RingLayout

REGISTERED, RETIRED = -1, -2
"""Committed sequences of a group that has registered and not inserted since, and of one that was given up."""


@dataclass(frozen=True, kw_only=True)
class Commit:
    """What a commit stores. Arrays are over the group's lanes, [E] over those of the fragment."""

    group: int
    number: int
    cursor: NDArray[np.int64]
    oldest: NDArray[np.int64]
    open: NDArray[np.int64]
    incarnation: int
    sequence: int
    inserted: int
    closed: NDArray[np.int64]  # row numbers of heads that become final, -1 where none
    first: NDArray[np.int64]  # [E] number of the first row written
    rows: NDArray[np.int64]  # [E] rows written, head included
    columns: Mapping[str, NDArray[Any]]
    states: Mapping[str, StateRows]


def by_lane(column: NDArray[Any], layout: RingLayout) -> NDArray[Any]:
    """A column [lanes × slots, ...] as [lanes, slots, ...]; no copy."""
    return column.reshape(layout.lanes, layout.slots, *column.shape[1:])


def copy_blocks(slot: NDArray[np.int64], rows: NDArray[np.int64], slots: int) -> list[tuple[int, int, int, int, int]]:
    """The copies of a fragment: (first lane, lanes, first row, slot, rows), two per run of lanes in step where the ring
    wraps.

    Lanes in step, the usual case, make one run: one strided copy per column.
    """
    if not len(slot):
        return []
    starts = [0]
    if (slot != slot[0]).any() or (rows != rows[0]).any():
        starts += (np.flatnonzero((np.diff(slot) != 0) | (np.diff(rows) != 0)) + 1).tolist()
    blocks = []
    for lane, end in zip(starts, [*starts[1:], len(slot)], strict=True):
        at, count = int(slot[lane]), int(rows[lane])
        before_wrap = min(count, slots - at)
        blocks.append((lane, end - lane, 0, at, before_wrap))
        if count > before_wrap:
            blocks.append((lane, end - lane, before_wrap, 0, count - before_wrap))
    return blocks
