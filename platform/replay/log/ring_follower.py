"""Copies committed rows out of a ring, each once, into buffers of a fixed size: the ring itself is the log's queue."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from onibi.platform.replay.log.segment_writer import Rows
from onibi.platform.replay.ring.reader import RingReader
from onibi.platform.spec import ROLE_FINAL


class RingFollower:
    """A reader of a ring that takes every row that is committed, and counts those that were overwritten before.

    Args:
        reader: of the ring; closed with ``close``.
        capacity_rows: rows that the buffers hold.
        next_row: [L] the first row of each lane that is wanted, by the ring's numbers.
        first_generation: [L] the log's number of each lane's row 0.
    """

    def __init__(
        self,
        reader: RingReader,
        capacity_rows: int,
        next_row: NDArray[np.int64],
        first_generation: NDArray[np.int64],
    ) -> None:
        self._reader, self._capacity = reader, capacity_rows
        self._first_generation = first_generation
        self.next_row: NDArray[np.int64] = next_row.copy()
        """[L] rows below are copied or lost. A new array each time, so that other threads may read it."""
        self.missed_rows = 0
        """Rows that were overwritten before they could be copied."""
        self.rows = 0
        """Rows in the buffers."""
        self._lane = np.empty(capacity_rows, np.int32)
        self._generation = np.empty(capacity_rows, np.int64)
        # Reserved, not touched: memory is used as rows come.
        self._columns: dict[str, NDArray[Any]] = {
            column.name: np.empty((capacity_rows, *column.shape), column.dtype) for column in reader.spec.columns
        }

    @property
    def next_generation(self) -> NDArray[np.int64]:
        """[L] ``next_row`` by the log's numbers."""
        return self.next_row + self._first_generation

    @property
    def full(self) -> bool:
        """Whether ``take`` and ``clear`` come before another row fits."""
        return self.rows == self._capacity

    def copy(self) -> bool:
        """Copy what is committed and fits. Returns: whether rows are left that did not fit."""
        snapshot = self._reader.snapshot()
        first = np.maximum(self.next_row, snapshot.oldest)
        count = np.maximum(snapshot.cursor - first, 0)
        # Lanes in turn, as many as fit.
        room = self._capacity - self.rows
        taken = np.minimum(count, np.maximum(room - (np.cumsum(count) - count), 0))
        self._append(first, taken)
        # What was overwritten during the copy is dropped again; the writer announces before it overwrites.
        oldest = self._reader.oldest_now()
        begin = self.rows - int(taken.sum())
        lane = self._lane[begin : self.rows]
        whole = self._generation[begin : self.rows] - self._first_generation[lane] >= oldest[lane]
        if not whole.all():
            self._keep(begin, whole)
        # Rows between `next_row` and `first` were overwritten before this call.
        self.missed_rows += int((first - self.next_row).sum()) + int(np.count_nonzero(~whole))
        self.next_row = first + taken
        return bool((taken < count).any())

    def copy_heads(self) -> bool:
        """Write the open heads of a ring at rest as final rows. Returns: whether some are left that did not fit."""
        snapshot = self._reader.snapshot()
        wanted = snapshot.open & (self.next_row == snapshot.cursor)
        taken = (wanted & (np.cumsum(wanted) <= self._capacity - self.rows)).astype(np.int64)
        begin = self.rows
        self._append(snapshot.cursor, taken)
        self._columns["role"][begin : self.rows] = ROLE_FINAL
        for name in self._reader.spec.step_columns:
            self._columns[name][begin : self.rows] = 0
        self.next_row = self.next_row + taken
        return int(taken.sum()) < int(wanted.sum())

    def take(self) -> Rows:
        """What is in the buffers, as views that hold until ``clear``."""
        return Rows(
            lane=self._lane[: self.rows],
            generation=self._generation[: self.rows],
            columns={name: column[: self.rows] for name, column in self._columns.items()},
        )

    def clear(self) -> None:
        """Empty the buffers."""
        self.rows = 0

    def close(self) -> None:
        """Unmap the ring and give the buffers back."""
        self._reader.close()
        self._columns = {}

    def _append(self, first: NDArray[np.int64], count: NDArray[np.int64]) -> None:
        """Copy rows ``first`` to ``first + count - 1`` of every lane behind what is in the buffers."""
        total = int(count.sum())
        if not total:
            return
        lane = np.repeat(np.arange(len(count)), count)
        row = np.arange(total) - np.repeat(np.cumsum(count) - count, count) + first[lane]
        place = slice(self.rows, self.rows + total)
        self._lane[place] = lane
        self._generation[place] = row + self._first_generation[lane]
        at = lane * self._reader.slots + row % self._reader.slots
        for name, column in self._columns.items():
            np.take(self._reader.columns[name], at, axis=0, out=column[place], mode="clip")
        self.rows += total

    def _keep(self, begin: int, whole: NDArray[np.bool_]) -> None:
        """Close the gaps of rows that are not ``whole``, from row ``begin`` of the buffers on."""
        kept = begin + int(whole.sum())
        buffers: list[NDArray[Any]] = [self._lane, self._generation, *self._columns.values()]
        for column in buffers:
            column[begin:kept] = column[begin : self.rows][whole]
        self.rows = kept
