"""The contract of a bonus that the learner's process computes, or learns something for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from onibi.platform.replay.ring.reader import RingReader
from onibi.platform.replay.row_view import RowView
from onibi.platform.rewards.table import RewardTable
from onibi.platform.spec import ArraySpec, ReplaySpec

State = Mapping[str, NDArray[Any]]


@dataclass(frozen=True)
class ModulePlace:
    """Where a module works."""

    name: str
    """That the user gave the bonus."""
    reader: RingReader
    """The ring whose rows it learns from, each once."""
    spec: ReplaySpec
    leaves: tuple[ArraySpec, ...]
    """Observation columns that it reads."""
    seed: int
    device: str


class BonusModule(Protocol):
    """Made as ``cls(settings, place)``; one process of a run has it."""

    def learn(self) -> None:
        """Take in the rows that have come since the last call."""

    def metrics(self) -> dict[str, float]:
        """What its learning is like now, by short names."""

    def weights(self) -> dict[str, NDArray[Any]]:
        """Copies of what actors need; {} where they need nothing."""

    def state(self) -> dict[str, NDArray[Any]]:
        """Copies of all that resuming needs."""

    def restore(self, state: State) -> None:
        """Go on from ``state``. Raises: CheckpointError where it is of other settings."""


class PayingModule(BonusModule, Protocol):
    """One that pays by itself: a ``batch`` component."""

    def pay(self, view: RowView, table: RewardTable | None) -> NDArray[np.float32]:
        """[*R] what each row of a batch is paid now, before clip and coefficient."""


def prefixed(prefix: str, state: State) -> dict[str, NDArray[Any]]:
    """A part's state under names of its own."""
    return {f"{prefix}.{name}": each for name, each in state.items()}


def part_of(prefix: str, state: State) -> dict[str, NDArray[Any]]:
    """The state that was ``prefixed`` so."""
    return {name.removeprefix(f"{prefix}."): each for name, each in state.items() if name.startswith(f"{prefix}.")}
