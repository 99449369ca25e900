"""What an episode was paid before each of its rows, by the newest table: for the cap on an episode.

A row drawn at random does not know its episode. So whoever draws keeps, row for row of its part of the ring, the sum of
what came before in the episode; a new table sums all of them anew.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from onibi.platform.replay.ring.reader import RingReader
from onibi.platform.replay.row_intake import RowIntake
from onibi.platform.replay.samplers.window_starts import checked_lanes
from onibi.platform.rewards.table import RewardTable, caption_rewards
from onibi.platform.spec import ROLE_FINAL


class EpisodePay:
    """Σ of max(0, maxⱼ value[keyⱼ] / Nⱼ^β) over the rows before one in its episode piece.

    Exact under any table for episodes that the ring still holds from their begin. Of one whose first rows were
    overwritten, those keep what the table of their time paid. Rows that were never seen (lost, or of a session before
    with a ring that was kept) count as 0, and so does a row that is asked for after it was overwritten.

    Args:
        reader: the ring.
        lanes: that are drawn from; None: all.
        power: β.
    """

    def __init__(self, reader: RingReader, lanes: Sequence[int] | None, power: float) -> None:
        chosen = checked_lanes(reader, lanes)
        self._slots, self._power = reader.slots, power
        self._intake = RowIntake(reader, chosen, ("role", "caption_id", "caption_count"))
        self._place: NDArray[np.int64] = np.full(reader.lanes, -1, np.int64)
        self._place[chosen] = np.arange(len(chosen))
        shape = (len(chosen), reader.slots)
        self._row: NDArray[np.int64] = np.full(shape, -1, np.int64)
        self._begins: NDArray[np.bool_] = np.zeros(shape, np.bool_)
        self._caption: NDArray[np.uint32] = np.zeros(shape, np.uint32)
        self._count: NDArray[np.uint16] = np.zeros((*shape, reader.spec.keys_per_caption), np.uint16)
        self._pay: NDArray[np.float64] = np.zeros(shape)
        self._before: NDArray[np.float64] = np.zeros(shape)
        self._final: NDArray[np.bool_] = np.ones(len(chosen), np.bool_)  # whether each lane's newest row is final
        self._newest: NDArray[np.int64] = np.full(len(chosen), -1, np.int64)
        self._table: RewardTable | None = None

    def before(self, table: RewardTable | None, lane: NDArray[np.int64], row: NDArray[np.int64]) -> NDArray[np.float32]:
        """Sums before rows.

        Args:
            table: the newest one; None pays nothing.
            lane: [...] of the rows.
            row: [...] absolute numbers.
        Returns: [...] float32.
        """
        renewed = table is not None and (self._table is None or table.version != self._table.version)
        self._table = table
        self._take()
        if renewed:
            for each in range(len(self._newest)):
                self._sum_anew(each)
        place, slot = self._place[lane], row % self._slots
        known = self._row[place, slot] == row
        told: NDArray[np.float32] = np.where(known, self._before[place, slot], 0.0).astype(np.float32)
        return told

    def _take(self) -> None:
        new = self._intake.take()
        ends = np.searchsorted(new.place, np.arange(len(self._newest) + 1))
        for place in np.unique(new.place).tolist():
            part = slice(ends[place], ends[place + 1])
            rows, role = new.row[part], new.columns["role"][part]
            at = rows % self._slots
            begins = np.empty(len(rows), np.bool_)
            begins[0] = self._final[place] or rows[0] != self._newest[place] + 1
            begins[1:] = role[:-1] == ROLE_FINAL
            last = self._newest[place] % self._slots
            offset = 0.0 if begins[0] else self._before[place, last] + self._pay[place, last]
            self._row[place, at], self._begins[place, at] = rows, begins
            self._caption[place, at] = new.columns["caption_id"][part]
            self._count[place, at] = new.columns["caption_count"][part]
            self._newest[place], self._final[place] = rows[-1], role[-1] == ROLE_FINAL
            self._put_sums(place, at, offset)

    def _sum_anew(self, place: int) -> None:
        newest = int(self._newest[place])
        at = np.arange(max(0, newest + 1 - self._slots), newest + 1) % self._slots
        at = at[self._row[place, at] >= 0]
        if len(at):
            self._put_sums(place, at, 0.0 if self._begins[place, at[0]] else float(self._before[place, at[0]]))

    def _put_sums(self, place: int, at: NDArray[np.int64], offset: float) -> None:
        """Pay and sums of the rows in slots ``at``, in their order; ``offset`` was paid before the first of them."""
        pay = np.zeros(len(at))
        if self._table is not None:
            rewards, _ = caption_rewards(self._table, self._caption[place, at], self._count[place, at], self._power)
            pay = np.maximum(rewards, 0).astype(np.float64)
        before = np.cumsum(pay) - pay
        begin = np.maximum.accumulate(np.where(self._begins[place, at], np.arange(len(at)), -1))
        self._pay[place, at] = pay
        self._before[place, at] = before - np.where(begin >= 0, before[np.maximum(begin, 0)], -offset)
