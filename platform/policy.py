"""What an actor needs of a policy, and what a learner publishes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NewType, Protocol

import numpy as np
from numpy.typing import NDArray

WeightsVersion = NewType("WeightsVersion", int)
NO_WEIGHTS = WeightsVersion(-1)
"""Version of a policy that has loaded nothing yet; such a policy acts uniformly at random."""

_UPDATE_BITS = 40


def weights_version(incarnation: int, update: int) -> WeightsVersion:
    """(learner incarnation, update) as one int64 that sorts in that order."""
    if incarnation < 0 or not 0 <= update < 1 << _UPDATE_BITS:
        raise ValueError(f"incarnation {incarnation} or update {update} is out of range")
    return WeightsVersion((incarnation << _UPDATE_BITS) | update)


def updates_of(versions: NDArray[np.int64]) -> NDArray[np.int64]:
    """The update count in each version, any shape; 0 for NO_WEIGHTS."""
    return np.where(versions < 0, 0, versions & ((1 << _UPDATE_BITS) - 1))


@dataclass(frozen=True)
class Weights:
    """A copy of a network's parameters and buffers by name, and the version that orders them."""

    version: WeightsVersion
    arrays: dict[str, NDArray[Any]]
    bonuses: dict[str, NDArray[Any]] = field(default_factory=dict)
    """What actors need to compute bonuses, named ``BONUS.ARRAY``."""


@dataclass(frozen=True)
class LaneRange:
    """Which of all the run's lanes a policy serves: ``[first, first + count)`` of ``total``. Sets its exploration."""

    first: int
    count: int
    total: int


@dataclass(frozen=True)
class PolicyStep:
    """Actions for E environments, the next recurrent state, and the extra columns that the learner declared."""

    action: NDArray[Any]  # [E] int64; continuous ones [E, D] float32, as replay stores them
    state: Any = None
    extra: dict[str, NDArray[Any]] = field(default_factory=dict)  # each [E, ...]; declared states among them


class Policy(Protocol):
    """Chooses actions in a rollout. Made by a factory that the learner's file provides."""

    version: WeightsVersion

    def initial_state(self, envs: int) -> Any:
        """Recurrent state of ``envs`` fresh episodes; None where there is none."""

    def act(self, observation: Mapping[str, NDArray[Any]], state: Any, rng: np.random.Generator) -> PolicyStep:
        """Choose one action per environment.

        Args:
            observation: each leaf [E, ...] by its ReplaySpec name; not kept, not written to.
            state: what the last call (or ``initial_state``) returned.
            rng: the only source of randomness.
        """

    def load(self, weights: Weights) -> None:
        """Take newer weights; what was acted before is not affected."""


class PolicyFactory(Protocol):
    """Picklable maker of policies: handed to actors by ``clusters``, provided by a learner's file."""

    def __call__(self, lanes: LaneRange | None) -> Policy:
        """A policy that explores for ``lanes``, or the greedy one for None."""
