"""How old the rows of each lane are: lanes of gone or slow actors keep old rows that are drawn like new ones."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from onibi.platform.policy import updates_of
from onibi.platform.replay.ring.reader import RingReader, Snapshot
from onibi.platform.spec import ROLE_STEP

QUANTILES = (0.0, 0.5, 0.9, 1.0)
"""Of the ages of a lane's rows: its newest row, the median, nine in ten, its oldest."""

_LOOKED_AT = 64
"""Rows of a lane whose policy version is read, evenly spaced; versions hardly fall along a lane."""


@dataclass(frozen=True, kw_only=True)
class RowAges:
    """Ages of the readable rows by lane. NaN where a lane has no such row."""

    rows: NDArray[np.int64]
    """[L] readable rows, final ones included."""
    seconds: NDArray[np.float64]
    """[L, quantiles] since the rows came in; of rows older than the ``RowClock``, at least that."""
    updates: NDArray[np.float64]
    """[L, quantiles] learner updates between the policy that chose the action and ``newest_update``."""

    def metrics(self) -> dict[str, float]:
        """Over the lanes that have rows: median and worst lane of the median and of the oldest row's age."""
        told = {"replay/lanes_with_rows": float((self.rows > 0).sum())}
        for unit, ages in (("seconds", self.seconds), ("updates", self.updates)):
            for quantile, name in ((1, "median"), (3, "oldest")):
                known = ages[:, quantile][~np.isnan(ages[:, quantile])]
                if len(known):
                    told[f"replay/row_age_{name}_{unit}"] = float(np.median(known))
                    told[f"replay/row_age_{name}_{unit}_worst_lane"] = float(known.max())
        return told


class RowClock:
    """Remembers when each lane's cursor stood where: the ring itself keeps no times.

    Kept in the process that reports; rows from before its first look count as that old at least. ``marks`` bounds what
    it keeps: when they are full every other one is forgotten, so that old times get coarser, not lost.
    """

    def __init__(self, marks: int = 512) -> None:
        self._limit = max(4, marks)
        self._times: list[float] = []
        self._cursors: list[NDArray[np.int64]] = []

    def look(self, snapshot: Snapshot, now: float) -> None:
        """Note the cursors of this moment; call it about once a second. ``now`` in seconds, never falling."""
        if len(self._times) >= self._limit:
            self._times, self._cursors = self._times[::2], self._cursors[::2]
        self._times.append(now)
        self._cursors.append(snapshot.cursor.copy())

    def came_in(self, lanes: NDArray[np.int64], rows: NDArray[np.int64]) -> NDArray[np.float64]:
        """When rows had come in at the latest: the first look that saw them behind the cursor.

        Rows that no look has seen yet count as of the last one.

        Args:
            lanes: [L']
            rows: [L', rows]
        Returns: [L', rows]
        """
        first = np.zeros(rows.shape, np.int64)
        for cursor in self._cursors:  # they never fall, so those that lie below a row are the first ones
            first += cursor[lanes, None] <= rows
        times: NDArray[np.float64] = np.array(self._times)[np.minimum(first, len(self._times) - 1)]
        return times


def row_ages(reader: RingReader, clock: RowClock, now: float, newest_update: int) -> RowAges:
    """The ages of this moment; reads a few rows of each lane and looks at the clock once.

    Args:
        now: seconds, of the clock's time.
        newest_update: update number of the newest published weights.
    """
    snapshot = reader.snapshot()
    clock.look(snapshot, now)
    rows = snapshot.cursor - snapshot.oldest
    seconds = np.full((reader.lanes, len(QUANTILES)), np.nan)
    updates = seconds.copy()
    lanes = np.flatnonzero(rows > 0)
    share = 1.0 - np.array(QUANTILES)  # age falls along a lane: its q-quantile is the age of the row at 1 - q
    row = snapshot.oldest[lanes, None] + np.round(share * (rows[lanes, None] - 1)).astype(np.int64)
    seconds[lanes] = now - clock.came_in(lanes, row)
    spread = np.linspace(0.0, 1.0, _LOOKED_AT)
    row = snapshot.oldest[lanes, None] + np.round(spread * (rows[lanes, None] - 1)).astype(np.int64)
    at = lanes[:, None] * reader.slots + row % reader.slots
    version, role = reader.columns["policy_version"][at], reader.columns["role"][at]
    whole = row >= reader.oldest_now()[lanes, None]  # the end check
    chosen = whole & (role == ROLE_STEP)  # final rows chose nothing
    age = newest_update - updates_of(version.reshape(-1)).reshape(version.shape)
    updates[lanes] = _quantiles(age, chosen)
    return RowAges(rows=rows, seconds=seconds, updates=updates)


def _quantiles(age: NDArray[np.int64], chosen: NDArray[np.bool_]) -> NDArray[np.float64]:
    """[L', quantiles] of the ``chosen`` ones [L', rows], as ``np.quantile`` has them; NaN where a lane has none."""
    ordered = np.sort(np.where(chosen, age, np.nan), axis=1)  # NaN last
    count = np.count_nonzero(chosen, axis=1)[:, None]
    place = np.array(QUANTILES) * np.maximum(count - 1, 0)
    low = np.floor(place).astype(np.int64)
    below, above = (np.take_along_axis(ordered, np.minimum(at, age.shape[1] - 1), axis=1) for at in (low, low + 1))
    between = place - low
    quantiles: NDArray[np.float64] = np.where(between > 0, below + between * (above - below), below)
    return quantiles
