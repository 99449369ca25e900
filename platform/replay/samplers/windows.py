"""What a draw returns: windows of n steps, without any return computed (docs/replay-sampling.md)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(kw_only=True)
class Windows:
    """B windows of at most n steps. Step i of a window is row ``generation + i`` of its lane.

    After a window's end (``used`` False) reward is 0, ``continues`` is 1, captions are 0. A learner's discount is
    therefore ``where(used, gamma * continues, 1)``. ``bootstrap_observation`` is the one after the last used step; it
    is meant for use only where every ``continues`` of the window is 1, which the product of the discounts sees to by
    itself.
    """

    observation: dict[str, NDArray[Any]]
    """Each leaf [B, ...] in its stored dtype: o_k of the start row."""
    bootstrap_observation: dict[str, NDArray[Any]]
    """Each leaf [B, ...]: the observation after the last used step."""
    action: NDArray[Any]
    """[B] int64 of the start row, or [B, D] float32."""
    reward: NDArray[np.float32]
    """[B, n], the environment's own."""
    continues: NDArray[np.float32]
    """[B, n], 0 where the step terminated the episode, else 1."""
    used: NDArray[np.bool_]
    """[B, n], which steps the window has; the first is always used."""
    steps: NDArray[np.int32]
    """[B], the number of used steps, 1 to n."""
    caption_id: NDArray[np.uint32]
    """[B, n], the caption that each step caused; 0 for none."""
    caption_count: NDArray[np.uint16]
    """[B, n, K], how often each key of it was heard in the episode, this time included."""
    policy_version: NDArray[np.int64]
    """[B], of the start row."""
    lane: NDArray[np.int64]
    """[B]"""
    generation: NDArray[np.int64]
    """[B], absolute number of the start row in its lane."""
    weight: NDArray[np.float32]
    """[B], importance weight; 1 in uniform sampling."""
    extra: dict[str, NDArray[Any]] = field(default_factory=dict)
    """Further declared columns of the start row, each [B, ...]."""
    row_extra: dict[str, NDArray[Any]] = field(default_factory=dict)
    """Declared columns of every row of the window, each [B, n, ...]; unspecified behind its end."""
    trail: dict[str, NDArray[Any]] = field(default_factory=dict)
    """Declared observation leaves of every row and of what followed, each [B, n + 1, ...] as stored (no frame stacks);
    behind the window's end the last one is repeated."""
    pairs: dict[str, NDArray[Any]] = field(default_factory=dict)
    """Each leaf [B, 2, ...] C-contiguous: the memory that ``observation`` and ``bootstrap_observation`` are views of,
    for one copy to a device. Empty where the windows were not made by a sampler."""

    @property
    def batch_size(self) -> int:
        """B."""
        return len(self.action)

    @property
    def n_steps(self) -> int:
        """N."""
        return int(self.reward.shape[1])

    @property
    def drawn_rows(self) -> int:
        """What the limiter counts: one window start is one drawn row, whatever n is."""
        return len(self.action)
