"""How action values become actions: greedy or softmax, under an ε ladder across lanes. No torch: actors import this.

The ladder is Ape-X's (Horgan et al. 2018, arXiv 1803.00933).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onibi.platform.config import Settings
from onibi.platform.number_ranges import Count, NotNegative, Probability
from onibi.platform.policy import LaneRange, WeightsVersion, updates_of


@dataclass(frozen=True, kw_only=True)
class ExplorationSettings(Settings):
    """Share of random actions on each of N lanes: ε_i = max(floor, base^(1 + α·i/(N − 1))); the same for all where α is
    0.

    Differs from Ape-X (α 7): a gentler ladder, since nearly greedy lanes with weights some ticks old stand at a wall.
    """

    base: Probability = 0.4
    alpha: NotNegative = 2.0
    floor: Probability = 0.0
    # Every lane's ε falls from 1 to its place on the ladder, linearly, over so many updates; null: it stands there.
    anneal_updates: Count | None = None
    # τ in value units: actions ∝ exp(Q/τ) instead of the greedy one, in evaluation too; 0 is greedy. Without memory a
    # deterministic player of a partially observed game walks into one wall for ever; a softmax one does not.
    temperature: NotNegative = 0.0


class Explorer:
    """Chooses actions by values, for the lanes of one actor or greedily.

    Args:
        settings: ladder, annealing and temperature.
        lanes: those to explore on; None explores nowhere, as evaluations do.
        noisy: whether the values are to be asked for under noise on the weights (``networks/noisy.py``).
    """

    def __init__(self, settings: ExplorationSettings, lanes: LaneRange | None, *, noisy: bool) -> None:
        self._settings, self._lanes = settings, lanes
        self.noisy = noisy and lanes is not None
        self._ladder = np.zeros(1) if lanes is None else epsilon_ladder(settings, lanes)
        self.epsilon = self._ladder
        """[E] float64, or [1] for any number of environments: the share of random actions now."""

    def follow(self, version: WeightsVersion) -> None:
        """Anneal ε to the number of updates that weights of this version have seen."""
        if self._lanes is not None:
            updates = int(updates_of(np.array(version)))
            self.epsilon = annealed_epsilon(self._ladder, updates, self._settings.anneal_updates)

    def noise(self, envs: int, size: int, rng: np.random.Generator) -> NDArray[np.float32] | None:
        """[E, size] standard normals for the next step; None where the values are to be those of the means."""
        return rng.standard_normal((envs, size), np.float32) if self.noisy and size else None

    def choose(
        self, values: NDArray[np.float32], rng: np.random.Generator, allowed: NDArray[Any] | None = None
    ) -> NDArray[np.int64]:
        """See ``choose_actions``."""
        return choose_actions(values, self.epsilon, self._settings.temperature, rng, allowed)


def epsilon_ladder(settings: ExplorationSettings, lanes: LaneRange) -> NDArray[np.float64]:
    """ε of each lane of a range.

    Args:
        settings: base, α and floor.
        lanes: the range within all lanes of the run. A run of a single lane gets the ladder's middle, i/(N − 1) = ½.
    Returns: [count] float64. Raises: ValueError where the range does not lie in the run's lanes.
    """
    if lanes.first < 0 or lanes.count < 1 or lanes.first + lanes.count > lanes.total:
        raise ValueError(
            f"lanes {lanes.first} to {lanes.first + lanes.count} do not lie within the {lanes.total} of the run"
        )
    index = np.arange(lanes.first, lanes.first + lanes.count)
    share = index / (lanes.total - 1) if lanes.total > 1 else np.full(1, 0.5)
    ladder: NDArray[np.float64] = np.maximum(settings.floor, settings.base ** (1.0 + settings.alpha * share))
    return ladder


def annealed_epsilon(ladder: NDArray[np.float64], updates: int, anneal_updates: int | None) -> NDArray[np.float64]:
    """ε_i + (1 − ε_i) · max(0, 1 − u/U): from 1 at the start to the ladder after U updates.

    Args:
        ladder: [E] float64 ε_i.
        updates: u that the weights have seen.
        anneal_updates: U; None gives the ladder.
    Returns: [E] float64.
    """
    if anneal_updates is None:
        return ladder
    left = max(0.0, 1.0 - updates / anneal_updates)
    return ladder + (1.0 - ladder) * left


def choose_actions(
    values: NDArray[np.float32],
    epsilon: NDArray[np.float64],
    temperature: float,
    rng: np.random.Generator,
    allowed: NDArray[Any] | None = None,
) -> NDArray[np.int64]:
    """Greedy actions, or samples of softmax(Q/τ), replaced by uniformly random ones with probability ε.

    Args:
        values: [E, A] float32 action values Q.
        epsilon: [E] float64, or [1] for all.
        temperature: τ ≥ 0 in value units; 0 is greedy.
        rng: as many draws whatever the values and ε are, so that a run's random numbers do not hang on its weights.
        allowed: [E, A], 0 where an action must not be chosen; a row that allows none allows all. None allows all.
    Returns: [E] int64.
    """
    envs, actions = values.shape
    explore = rng.random(envs) < epsilon
    at_random = rng.integers(actions, size=envs) if allowed is None else random_among(allowed, rng)
    if allowed is not None:
        values = np.where(_some_allowed(allowed), values, -np.inf)
    best = values.argmax(axis=1)
    if temperature > 0:
        best = (values + temperature * rng.gumbel(size=values.shape)).argmax(axis=1)  # a sample of the softmax
    return np.where(explore, at_random, best)


def random_among(allowed: NDArray[Any], rng: np.random.Generator) -> NDArray[np.int64]:
    """Uniformly random actions among those allowed.

    Args:
        allowed: [E, A], 0 where an action must not be chosen; a row that allows none allows all.
        rng: one number for each row.
    Returns: [E] int64.
    """
    upto = _some_allowed(allowed).cumsum(axis=1)
    place = (rng.random(len(allowed)) * upto[:, -1]).astype(np.int64)  # below the count: the number is below 1
    chosen: NDArray[np.int64] = (upto > place[:, None]).argmax(axis=1)
    return chosen


def _some_allowed(allowed: NDArray[Any]) -> NDArray[np.bool_]:
    given: NDArray[np.bool_] = allowed != 0
    given |= ~given.any(axis=1, keepdims=True)
    return given
