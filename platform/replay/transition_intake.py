"""New rows with the observation after them, each told once: what modules learn from that must see every row once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onibi.platform.replay.ring.reader import RingReader
from onibi.platform.replay.samplers.window_starts import checked_lanes


@dataclass(frozen=True, kw_only=True)
class Transitions:
    """Committed rows not told before, by lane and age; checked to be whole. Arrays [m, ...]."""

    role: NDArray[np.uint8]
    """Of a final row only ``observation`` says something."""
    columns: dict[str, NDArray[Any]]
    observation: dict[str, NDArray[Any]]
    """o_k."""
    next_observation: dict[str, NDArray[Any]]
    """o_{k+1}; after a final row that of another episode."""

    def __len__(self) -> int:
        return len(self.role)


class TransitionIntake:
    """Follows the cursors of some lanes, so many rows at a time as its owner learns from.

    Args:
        reader: the ring.
        lanes: to read; None: all.
        leaves: observation leaves to read.
        columns: other columns to read.
        follow: whether ``next_observation`` is read.
    """

    def __init__(
        self,
        reader: RingReader,
        *,
        lanes: Sequence[int] | None,
        leaves: Sequence[str],
        columns: Sequence[str] = (),
        follow: bool = False,
    ) -> None:
        self._reader, self._lanes = reader, checked_lanes(reader, lanes)
        self._leaves, self._columns, self._follow = tuple(leaves), tuple(columns), follow
        self._taken, self._known = (rows[self._lanes] for rows in reader.restored)
        self.lost_rows = 0
        """Rows that the writer overwrote before they were told."""

    def take(self, least: int, most: int) -> Transitions | None:
        """The next rows, ``most`` of them at once; None while fewer than ``least`` wait."""
        reader = self._reader
        snapshot = reader.snapshot()
        cursor, oldest = snapshot.cursor[self._lanes], snapshot.oldest[self._lanes]
        begin = np.maximum(self._taken, oldest)
        self.lost_rows += int((begin - self._taken).sum())
        self._taken = begin
        waiting = cursor - begin
        if int(waiting.sum()) < max(1, least):
            return None
        count = np.minimum(waiting, np.maximum(0, most - (np.cumsum(waiting) - waiting)))
        place = np.repeat(np.arange(len(count)), count)
        row = np.arange(len(place)) + np.repeat(begin - (np.cumsum(count) - count), count)
        lane = self._lanes[place]
        at = lane * reader.slots + row % reader.slots
        read = {name: np.take(reader.columns[name], at, axis=0) for name in {"role", *self._columns, *self._leaves}}
        after = lane * reader.slots + (row + 1) % reader.slots
        behind = {name: np.take(reader.columns[name], after, axis=0) for name in self._leaves} if self._follow else {}
        self._taken = begin + count
        whole = row >= reader.oldest_now()[lane]  # the end check, after the last read
        if not whole.all():
            self.lost_rows += int(np.count_nonzero(~whole))
            read, behind = ({name: each[whole] for name, each in part.items()} for part in (read, behind))
        return Transitions(
            role=read["role"],
            columns={name: read[name] for name in self._columns},
            observation={name: read[name] for name in self._leaves},
            next_observation=behind,
        )

    def state(self) -> dict[str, NDArray[np.int64]]:
        """From which ``restore`` goes on, given the same ring."""
        return {
            "ring": np.array(self._reader.created_unix_ns, np.int64),
            "taken": self._taken.copy(),
            "lost_rows": np.array(self.lost_rows, np.int64),
        }

    def restore(self, state: Mapping[str, NDArray[Any]]) -> None:
        """Go on from ``state``. Where it is of another ring, rows that this one was given from a log count as told: all
        but the youngest were, when they were in that one.
        """
        self.lost_rows = int(state["lost_rows"])
        cursor = self._reader.snapshot().cursor[self._lanes]
        taken = np.asarray(state["taken"], np.int64)
        same = int(state["ring"]) == self._reader.created_unix_ns and taken.shape == cursor.shape
        self._taken = np.minimum(taken, cursor) if same else self._known.copy()
