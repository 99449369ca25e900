"""The contract of a bonus that actors compute, one number for each row."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from onibi.platform.features import FeaturesFactory
from onibi.platform.fragment import CaptionText
from onibi.platform.spec import ArraySpec


@dataclass(frozen=True)
class Arrival:
    """What E lanes see and hear now."""

    observation: Mapping[str, NDArray[Any]]
    """Each leaf [E, ...] by its column's name; not kept, not written to."""
    captions: Sequence[CaptionText] | None = None
    """[E]; None where the run has no captions."""
    caption_count: NDArray[np.uint16] | None = None
    """[E, K], times that each key was heard in the episode, this time included."""


@dataclass(frozen=True)
class RowBonusPlace:
    """Where a bonus works."""

    envs: int
    """E."""
    leaves: tuple[ArraySpec, ...]
    """Observation columns that it reads."""
    features: FeaturesFactory | None
    """Makes encoders of published arrays, for a bonus that wants one."""


class RowBonus(Protocol):
    """Made as ``cls(settings, place)``. What it pays for a row hangs on o_{k+1} and the episode so far."""

    def begin(self, arrival: Arrival, lanes: NDArray[np.bool_]) -> None:
        """A new episode in ``lanes`` [E]; ``arrival`` has its o_0, which counts and is not paid."""

    def pay(self, arrival: Arrival, lanes: NDArray[np.bool_]) -> NDArray[Any]:
        """[E] for o_{k+1} in ``lanes`` [E], whatever elsewhere; NaN where it cannot be told yet."""

    def load(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Newer arrays of the learner's module of the same bonus; used from the next episode on."""
