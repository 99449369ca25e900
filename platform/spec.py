"""What one row of replay is made of: names, dtypes and shapes, shared by actors, shards and learners."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

ROLE_STEP, ROLE_FINAL = 0, 1
"""Values of the ``role`` column: a step with an action, or an episode's last observation (never drawn)."""

ACTION_MASK = "observation.action_mask"
"""Observation leaf [A], 0 where an action is not allowed now: read by policies and learners, no input of networks."""

NUMBERS, TEXT_HASH = "numbers", "text hash"
"""What a column holds: values of dtype and unit, or ``captions.text_hash`` of texts in a table beside the rows."""


@dataclass(frozen=True, kw_only=True)
class ArraySpec:
    """One fixed-width column.

    ``shape`` is that of one row; ``low`` and ``high`` are inclusive bounds where the space gives finite ones (those
    that need more than 53 bits are rounded outward). ``content`` tells numbers from 64-bit hashes that stand for texts
    (``TEXT_HASH``): those name something, their size says nothing.
    """

    name: str
    dtype: str
    shape: tuple[int, ...] = ()
    unit: str = ""
    low: float | None = None
    high: float | None = None
    content: str = NUMBERS

    @property
    def row_bytes(self) -> int:
        """Bytes of one row."""
        return int(np.dtype(self.dtype).itemsize * np.prod(self.shape, dtype=np.int64))


@dataclass(frozen=True, kw_only=True)
class StateSpec(ArraySpec):
    """What a policy carries from step to step, kept where a step's number in its episode is a multiple of ``period``.

    It is no column of rows: it lies in a ring of its own, and stays out of logs and exports, as it tells nothing
    without the weights that made it. At an episode's first step it is 0.
    """

    period: int = 1


@dataclass(frozen=True, kw_only=True)
class StackedSpec(ArraySpec):
    """A leaf as networks see it under a frame stack: the first axis of ``shape`` counts frames, the oldest first."""


@dataclass(frozen=True, kw_only=True)
class ReplaySpec:
    """The row layout of a run (docs/replay.md).

    Args:
        observation: one leaf per column; names are ``observation`` for a bare Box, ``observation.KEY`` for a Dict.
        actions: number of discrete actions A; 0 where actions are continuous.
        keys_per_caption: K, caption keys counted for each row.
        extra: further columns that the learner declares (for example ``action_log_prob``).
        states: kept beside the rows, every few steps (for example a recurrent state).
        action: column of a continuous action, float32 [D], named ``action``; None for discrete ones, int64.
        action_low, action_high: D bounds each of the action as the policy gives it, infinite where there is none.
    """

    observation: tuple[ArraySpec, ...]
    actions: int
    keys_per_caption: int = 4
    extra: tuple[ArraySpec, ...] = ()
    states: tuple[StateSpec, ...] = ()
    action: ArraySpec | None = None
    action_low: tuple[float, ...] = ()
    action_high: tuple[float, ...] = ()

    @property
    def columns(self) -> tuple[ArraySpec, ...]:
        """All columns of a row in storage order, the observation first."""
        return (
            *self.observation,
            self.action or ArraySpec(name="action", dtype="int64"),
            ArraySpec(name="reward", dtype="float32"),
            ArraySpec(name="terminated", dtype="uint8"),
            ArraySpec(name="truncated", dtype="uint8"),
            ArraySpec(name="role", dtype="uint8"),
            ArraySpec(name="episode_id", dtype="int64"),
            ArraySpec(name="step", dtype="int32"),
            ArraySpec(name="policy_version", dtype="int64", unit="incarnation * 2**40 + update"),
            ArraySpec(name="caption_id", dtype="uint32"),
            ArraySpec(name="caption_count", dtype="uint16", shape=(self.keys_per_caption,)),
            *self.extra,
        )

    @property
    def head_columns(self) -> tuple[str, ...]:
        """Names of the columns that a lane's head row has: the observation and where it belongs."""
        return (*(column.name for column in self.observation), "episode_id", "step")

    @property
    def step_columns(self) -> tuple[str, ...]:
        """Names of the columns that steps alone have; they are 0 in final rows."""
        others = {*self.head_columns, "role"}
        return tuple(column.name for column in self.columns if column.name not in others)

    @property
    def row_bytes(self) -> int:
        """Bytes of one row over all columns; states come on top."""
        return sum(column.row_bytes for column in self.columns)
