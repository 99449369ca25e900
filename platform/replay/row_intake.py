"""New rows as they come in, each told once: what samplers with a memory of their own are kept up to date by."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onibi.platform.errors import ReplayError
from onibi.platform.replay.ring.reader import RingReader

INTAKES = 64
"""How often a sampler without a single start looks for new rows before it gives up."""


@dataclass(frozen=True, kw_only=True)
class NewRows:
    """Committed rows not told before, lane by lane in ascending order; checked to be whole. Arrays [m] but the last."""

    place: NDArray[np.int64]
    """Place of the row's lane among the intake's lanes."""
    row: NDArray[np.int64]
    """Absolute number in the lane."""
    columns: dict[str, NDArray[Any]]
    """The columns asked for, each [m, ...]."""
    oldest: NDArray[np.int64]
    """[L'] rows below it are gone, by the check made after the last read."""

    def __len__(self) -> int:
        return len(self.row)


class RowIntake:
    """Follows the cursors of some lanes. A cursor that jumped over a whole lap is nothing special: what was overwritten
    in between is never told.
    """

    def __init__(self, reader: RingReader, lanes: NDArray[np.int64], columns: Sequence[str]) -> None:
        self._reader, self._lanes, self._names = reader, lanes, tuple(columns)
        self.taken = np.zeros(len(lanes), np.int64)
        """[L'] the next row to be told: the lane's cursor at the last ``take``."""

    def take(self) -> NewRows:
        """The rows that were committed since the last call and are still there."""
        reader = self._reader
        snapshot = reader.snapshot()
        cursor, oldest = snapshot.cursor[self._lanes], snapshot.oldest[self._lanes]
        begin = np.maximum(self.taken, oldest)
        count = cursor - begin
        total = int(count.sum())
        self.taken = cursor
        place = np.repeat(np.arange(len(cursor)), count)
        row = np.arange(total) + np.repeat(begin - (np.cumsum(count) - count), count)
        at = self._lanes[place] * reader.slots + row % reader.slots
        columns = {name: reader.columns[name][at] for name in self._names}
        oldest = np.maximum(oldest, reader.oldest_now()[self._lanes])
        whole = row >= oldest[place]
        if not whole.all():
            place, row = place[whole], row[whole]
            columns = {name: column[whole] for name, column in columns.items()}
        return NewRows(place=place, row=row, columns=columns, oldest=oldest)

    def restore(self, taken: NDArray[np.int64]) -> None:
        """Go on behind ``taken`` [L']. Raises: ReplayError where the ring does not reach so far."""
        cursor = self._reader.snapshot().cursor[self._lanes]
        if taken.shape != cursor.shape or (taken > cursor).any() or (taken < 0).any():
            raise ReplayError(
                f"{self._reader.path}: the sampler's state knows rows up to {taken.tolist()[:8]}, this ring has "
                f"{cursor.tolist()[:8]}; restore it with the ring it was taken from, or start a new sampler"
            )
        self.taken = taken.copy()
