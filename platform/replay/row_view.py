"""A drawn batch row by row: what reward components read, whatever sampler drew it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onibi.platform.replay.samplers.draws import Batch
from onibi.platform.replay.samplers.frame_stack import FrameStack
from onibi.platform.replay.samplers.sequences import Sequences
from onibi.platform.replay.samplers.windows import Windows


@dataclass(frozen=True)
class RowView:
    """Arrays [*R, ...] where R is the shape of the batch's rewards: [B, n] of windows, [T, B] of sequences, [B, T] of a
    slab. What stands behind a window's end, in padding and in final rows is unspecified: see ``used``.

    Args:
        batch: as drawn, with ``WindowDraws.each_row`` for windows.
        stack: which leaves of sequences and slabs come as frame stacks: the newest frame of those is taken.
    """

    batch: Batch
    stack: FrameStack | None = None

    @property
    def used(self) -> NDArray[np.bool_]:
        """[*R]"""
        return self.batch.used

    @property
    def lane(self) -> NDArray[np.int64]:
        """[*R]"""
        lane = self.batch.lane if isinstance(self.batch, Sequences) else self.batch.lane[:, None]
        return np.broadcast_to(lane, self.used.shape)

    @property
    def row(self) -> NDArray[np.int64]:
        """[*R], absolute number in the lane."""
        if isinstance(self.batch, Sequences):
            return self.batch.first_row + np.arange(self.used.shape[0])[:, None]
        return self.batch.generation[:, None] + np.arange(self.used.shape[1])

    def column(self, name: str) -> NDArray[Any]:
        """An extra column of every row."""
        return self.batch.row_extra[name] if isinstance(self.batch, Windows) else self.batch.extra[name]

    def before(self, leaf: str) -> NDArray[Any]:
        """o_k of every row k."""
        if isinstance(self.batch, Windows):
            return self.batch.trail[leaf][:, :-1]
        whole = self._newest_frame(leaf)
        return whole[:-1] if isinstance(self.batch, Sequences) else whole[:, :-1]

    def after(self, leaf: str) -> NDArray[Any]:
        """o_{k+1} of every row k."""
        if isinstance(self.batch, Windows):
            return self.batch.trail[leaf][:, 1:]
        whole = self._newest_frame(leaf)
        return whole[1:] if isinstance(self.batch, Sequences) else whole[:, 1:]

    def _newest_frame(self, leaf: str) -> NDArray[Any]:
        whole = self.batch.observation[leaf]
        return whole[:, :, -1] if self.stack is not None and leaf in self.stack.leaves else whole
