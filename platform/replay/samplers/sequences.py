"""Sequences of rows for learners with a memory, masks instead of special cases (docs/replay-sampling.md)."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import Any

import numpy as np
from numpy.typing import NDArray


class Tail(Enum):
    """What becomes of starts with fewer than ``length`` rows behind them in their piece. Length 4, period 2::

    rows      0 1 2 3 4 5 6 F      F: final row
    PAD       0 1 2 3              one start every period rows; the last ones are short, the rest of them masked
                  2 3 4 5
                      4 5 6 .
                          6 . .
    SHIFT     0 1 2 3              the last sequence of a piece moves back until it is full
                  2 3 4 5
                    3 4 5 6
    """

    PAD = "pad"
    """Every start is drawn. Near the newest row sequences are short as well, until more rows come."""
    SHIFT = "shift"
    """Full sequences only: a start becomes one when its last row is there, and the end of a piece brings one that
    ends with it. Pieces shorter than ``length`` are padded, once they have ended."""


@dataclass(kw_only=True)
class Sequences:
    """B sequences of T = burn-in + length rows, time first. Position t of sequence b is row ``first_row[b] + t``.

    The first ``burn_in[b]`` positions warm a network's state up, the next ones are learned from, what lies behind
    ``steps[b]`` is padding: reward 0, ``continues`` 1, captions 0, other columns unspecified. At a piece's begin the
    burn-in is shorter, for there is nothing before it, and the state there is the initial one.
    """

    observation: dict[str, NDArray[Any]]
    """Each leaf [T + 1, B, ...]: of each row, and of what follows the last one. Behind that it is repeated."""
    action: NDArray[Any]
    """[T, B] int64, or [T, B, D] float32."""
    reward: NDArray[np.float32]
    """[T, B], the environment's own."""
    continues: NDArray[np.float32]
    """[T, B], 0 where the step terminated the episode, else 1."""
    used: NDArray[np.bool_]
    """[T, B], the validity mask: False is padding."""
    learning_mask: NDArray[np.bool_]
    """[T, B], valid and not burn-in."""
    caption_id: NDArray[np.uint32]
    """[T, B]"""
    caption_count: NDArray[np.uint16]
    """[T, B, K]"""
    policy_version: NDArray[np.int64]
    """[T, B]"""
    steps: NDArray[np.int32]
    """[B], valid rows, burn-in included."""
    burn_in: NDArray[np.int32]
    """[B], rows of burn-in."""
    lane: NDArray[np.int64]
    """[B]"""
    generation: NDArray[np.int64]
    """[B], absolute number of the first row that is learned from: the sequence's name in priority updates."""
    weight: NDArray[np.float32]
    """[B], importance weight; 1 where nothing is prioritized."""
    extra: dict[str, NDArray[Any]] = field(default_factory=dict)
    """Further declared columns, each [T, B, ...]."""
    first_extra: dict[str, NDArray[Any]] = field(default_factory=dict)
    """Declared states (a recurrent one) and columns of the first row alone, each [B, ...]."""

    @property
    def validity_mask(self) -> NDArray[np.bool_]:
        """[T, B], not padding; the same array as ``used``, which is what the reward mixer reads."""
        return self.used

    @property
    def first_row(self) -> NDArray[np.int64]:
        """[B], absolute number of the row at position 0."""
        return self.generation - self.burn_in

    @property
    def batch_size(self) -> int:
        """B."""
        return len(self.lane)

    @property
    def drawn_rows(self) -> int:
        """What the limiter counts: rows to learn from, without burn-in and padding."""
        return int(np.count_nonzero(self.learning_mask))
