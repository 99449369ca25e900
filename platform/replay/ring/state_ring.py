"""States that are kept every few steps of an episode alone: a second ring beside the rows' (docs/replay.md).

    rows       | 0 | 1 | 2 | 3 | 4 | 5 | 6 | 7 | 8 | …      of a lane; with period 4 the steps 4, 8, … keep their state
    entries    |       0       |       1       |   2 …      row k's lies in entry k // 4 mod entries, named by its row

Kept rows of an episode lie a period apart, so no two of them share an entry until the lane has gone round. There are
two entries more than the slots need: an entry is overwritten when the rows that it served have long been, so the end
check of rows vouches for states too. Where rows are missing between two kept ones (a fragment was lost) the earlier one
may give way; its reader finds another row's name there.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from onibi.platform.fragment import StateRows
from onibi.platform.spec import StateSpec


def state_entries(slots: int, period: int) -> int:
    """Entries of a lane of so many slots."""
    return slots // period + 2


class StateRing:
    """One kind of state in all lanes of a ring, over the ring's memory.

    Args:
        spec: of the state.
        kept: int64 [L, entries], the row that an entry's state belongs to, plus 1; 0 where there is none.
        values: [L, entries, ...].
    """

    def __init__(self, spec: StateSpec, kept: NDArray[np.int64], values: NDArray[Any]) -> None:
        self._period, self._entries = spec.period, kept.shape[1]
        self._kept, self._values = kept, values
        self._flat = values.reshape(-1, *spec.shape)

    def put(self, first_lane: int, first_row: NDArray[np.int64], rows: StateRows) -> None:
        """Keep a fragment's states.

        Args:
            first_lane: the lane of the fragment's first one.
            first_row: [E] number of the first row of each of its lanes.
            rows: what to keep; of two that share an entry the later one stays.
        """
        number = first_row[rows.lane] + rows.row
        at = first_lane + rows.lane, number // self._period % self._entries
        self._kept[at] = number + 1
        self._values[at] = rows.values

    def take(self, lane: NDArray[np.int64], row: NDArray[np.int64], step: NDArray[Any], out: NDArray[Any]) -> None:
        """States of rows, into ``out`` [m, ...]; 0 where none was kept, and at an episode's first step.

        Args:
            lane: [m]
            row: [m], readable ones: the end check afterwards vouches for them.
            step: [m] of these rows in their episodes.
        """
        entry = row // self._period % self._entries
        np.take(self._flat, lane * self._entries + entry, axis=0, out=out, mode="clip")
        # A commit that was cut off may have named a row that another one has become: only steps that keep are asked.
        known = (self._kept[lane, entry] == row + 1) & is_kept(step, self._period)
        if not known.all():
            out[~known] = 0


def is_kept(step: NDArray[Any], period: int) -> NDArray[np.bool_]:
    """Which steps of an episode keep their state; the first one's is 0 by definition."""
    kept: NDArray[np.bool_] = (step % period == 0) & (step > 0)
    return kept
