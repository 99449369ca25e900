"""Actions chosen without looking, with log-probabilities: before the first weights, and mixed into evaluations."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onibi.platform.spec import ACTION_MASK, ReplaySpec


def random_actions(
    spec: ReplaySpec, observation: Mapping[str, NDArray[Any]], rng: np.random.Generator
) -> tuple[NDArray[Any], NDArray[np.float32]]:
    """One random action for each environment.

    Discrete ones are uniform among those that the observation's mask allows. Continuous ones are uniform between their
    bounds, and standard normal in a dimension that has none.

    Args:
        spec: what actions there are.
        observation: each leaf [E, ...].
        rng: the only source of randomness.
    Returns: actions, [E] int64 or [E, D] float32, and log μ(a) [E] float32.
    """
    envs = len(next(iter(observation.values())))
    if spec.action is not None:
        return _random_box(spec, envs, rng)
    mask = observation.get(ACTION_MASK)
    if mask is None:
        return rng.integers(spec.actions, size=envs), np.full(envs, -math.log(spec.actions), np.float32)
    allowed = mask != 0
    allowed |= ~allowed.any(axis=1, keepdims=True)  # a row that allows none (behind an episode's end) allows all
    upto = allowed.cumsum(axis=1)
    place = (rng.random(envs) * upto[:, -1]).astype(np.int64)  # below the count: the number is below 1
    return (upto > place[:, None]).argmax(axis=1), -np.log(upto[:, -1]).astype(np.float32)


def _random_box(
    spec: ReplaySpec, envs: int, rng: np.random.Generator
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    low, high = np.asarray(spec.action_low, np.float64), np.asarray(spec.action_high, np.float64)
    bounded = np.isfinite(low) & np.isfinite(high)
    low, high = np.where(bounded, low, 0.0), np.where(bounded, high, 1.0)
    normal, uniform = rng.standard_normal((envs, len(low))), rng.random((envs, len(low)))
    action = np.where(bounded, low + (high - low) * uniform, normal)
    each = np.where(bounded, -np.log(high - low), -0.5 * normal**2 - 0.5 * math.log(2.0 * math.pi))
    return action.astype(np.float32), each.sum(axis=1).astype(np.float32)
