"""Frame stacks: the last k observations of an episode side by side, stored once, put together when they are drawn."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from onibi.platform.config import Settings
from onibi.platform.errors import ConfigError, ReplayError
from onibi.platform.replay.ring.reader import RingReader
from onibi.platform.spec import ACTION_MASK, ROLE_FINAL, ArraySpec, ReplaySpec, StackedSpec


@dataclass(frozen=True, kw_only=True)
class FrameStackSettings(Settings):
    """How many observations a network sees at once."""

    frames: Annotated[int, Field(ge=1, le=64)] = 1  # k; 1: the newest observation alone
    leaves: tuple[str, ...] | None = None  # observation columns that are stacked; null: all but an action mask

    def __post_init__(self) -> None:
        if self.frames > 1 and self.leaves == ():
            raise ValueError(f"leaves is empty, so of {self.frames} frames nothing is stacked; allowed: names, or null")


@dataclass(frozen=True, kw_only=True)
class FrameStack:
    """Leaves of which ``frames`` are stacked, 2 or more. A leaf [...] is seen as [k, ...], the oldest frame first.

    Nothing is stacked across the begin of an episode piece: there its first observation stands for those before it (as
    in Gymnasium's ``FrameStackObservation`` with padding ``reset``).
    """

    frames: int
    leaves: tuple[str, ...]

    @property
    def look_back(self) -> int:
        """Rows that a stack reads before its own."""
        return self.frames - 1

    def shape_of(self, leaf: str) -> tuple[int, ...]:
        """Axes that stacking puts before those of a leaf."""
        return (self.frames,) if leaf in self.leaves else ()

    def seen(self, spec: ReplaySpec) -> ReplaySpec:
        """The row layout as networks see it: stacked leaves have one axis more than stored, and say so."""
        return replace(spec, observation=tuple(self._seen(leaf) for leaf in spec.observation))

    def _seen(self, leaf: ArraySpec) -> ArraySpec:
        if leaf.name not in self.leaves:
            return leaf
        return StackedSpec(**vars(leaf) | {"shape": (self.frames, *leaf.shape)})


def frame_stack(settings: FrameStackSettings, spec: ReplaySpec) -> FrameStack | None:
    """What is to be stacked of a run's rows; None for nothing.

    Raises: ConfigError for a leaf that the observation does not have, and for the action mask.
    """
    names = [leaf.name for leaf in spec.observation]
    if unknown := sorted(set(settings.leaves or ()) - set(names)):
        raise ConfigError(f"frame_stack.leaves names {unknown}, the observation has {names}")
    if ACTION_MASK in (settings.leaves or ()):
        raise ConfigError(
            f"frame_stack.leaves names {ACTION_MASK!r}: what is allowed now is told by the newest mask alone, which "
            "policies and learners read as it is. Leave it out of the list"
        )
    if settings.frames == 1:
        return None
    leaves = settings.leaves if settings.leaves is not None else tuple(n for n in names if n != ACTION_MASK)
    return FrameStack(frames=settings.frames, leaves=leaves)


def checked_stack(reader: RingReader, stack: FrameStack | None) -> FrameStack | None:
    """``stack``. Raises: ReplayError where it stacks fewer than 2 frames, or what the ring does not have."""
    if stack is None:
        return None
    known = [leaf.name for leaf in reader.spec.observation]
    if stack.frames < 2 or not set(stack.leaves) <= set(known):
        raise ReplayError(
            f"{reader.path}: {stack.frames} frames of the leaves {stack.leaves!r} cannot be stacked; allowed are 2 or "
            f"more frames of a tuple of these: {known}"
        )
    return stack


def stacked_rows(
    reader: RingReader,
    lane: NDArray[np.int64],
    row: NDArray[np.int64],
    frames: int,
    floor: NDArray[np.int64] | int = 0,
) -> NDArray[np.int64]:
    """Flat indices [..., k] of the rows whose observations are stacked, the oldest first.

    Where an episode piece begins is told by the ``role`` of the row before, or by row 0. Down to ``row − (k − 1)`` rows
    are looked at: the end check of what is gathered must count them.

    Args:
        reader: the ring.
        lane: [...] broadcast with ``row``.
        row: [...] rows whose stacks are asked for; step rows, final rows or heads.
        frames: k.
        floor: [...] rows where a piece is known to begin, although the final row before may be overwritten.
    """
    role, slots = reader.columns["role"], reader.slots
    base = lane * slots
    current = row
    at = np.empty((*np.broadcast_shapes(lane.shape, row.shape), frames), np.int64)
    at[..., -1] = base + current % slots
    for back in range(2, frames + 1):
        before = current - 1
        goes_on = np.take(role, base + before % slots, mode="clip") != ROLE_FINAL
        goes_on &= before >= floor
        current = np.where(goes_on, before, current)
        at[..., -back] = base + current % slots
    return at


def first_read(row: NDArray[np.int64], look_back: int, floor: NDArray[np.int64] | int = 0) -> NDArray[np.int64]:
    """The first row that a draw of ``row`` may read: ``look_back`` rows before it, or ``floor`` as in ``stacked_rows``,
    which is not above ``row``.
    """
    return np.maximum(row - look_back, floor) if look_back else row
