"""How action values become actions: greedy or softmax, under an ε ladder across lanes. No torch: actors import this.

The ladder is Ape-X's (Horgan et al. 2018, arXiv 1803.00933).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from onibi.platform.config import Settings
from onibi.platform.policy import LaneRange

Probability = Annotated[float, Field(ge=0, le=1)]


@dataclass(frozen=True, kw_only=True)
class ExplorationSettings(Settings):
    """Share of random actions on each of N lanes: ε_i = max(floor, base^(1 + α·i/(N − 1))).

    Differs from Ape-X (α 7): a gentler ladder, since nearly greedy lanes with weights some ticks old stand at a wall.
    """

    base: Probability = 0.4
    alpha: Annotated[float, Field(ge=0)] = 2.0
    floor: Probability = 0.0
    # τ in value units: actions ∝ exp(Q/τ) instead of the greedy one, in evaluation too; 0 is greedy. Without memory a
    # deterministic player of a partially observed game walks into one wall for ever; a softmax one does not.
    temperature: Annotated[float, Field(ge=0)] = 0.0


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


def choose_actions(
    values: NDArray[np.float32], epsilon: NDArray[np.float64], temperature: float, rng: np.random.Generator
) -> NDArray[np.int64]:
    """Greedy actions, or samples of softmax(Q/τ), replaced by uniformly random ones with probability ε.

    Args:
        values: [E, A] float32 action values Q.
        epsilon: [E] float64, or [1] for all.
        temperature: τ ≥ 0 in value units; 0 is greedy.
        rng: as many draws whatever the values and ε are, so that a run's random numbers do not hang on its weights.
    Returns: [E] int64.
    """
    envs, actions = values.shape
    explore, at_random = rng.random(envs) < epsilon, rng.integers(actions, size=envs)
    best = values.argmax(axis=1)
    if temperature > 0:
        best = (values + temperature * rng.gumbel(size=values.shape)).argmax(axis=1)  # a sample of the softmax
    return np.where(explore, at_random, best)
