"""Whether two sets of episodes differ: confidence intervals for means and for shares."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

CONFIDENCE = 0.95
"""Of every interval in Onibi's claims."""

LEAST_VALUES = 3
"""From so many values on a bootstrap says anything: one has no spread, and two are alike too often by chance."""

_RESAMPLES = 10_000  # the ends of a 95% interval then move by about 1% of its width between seeds
_DRAWS_AT_ONCE = 1 << 17
_NORMAL_QUANTILE = 1.959963984540054  # of (1 + CONFIDENCE) / 2


@dataclass(frozen=True)
class Interval:
    """A mean of ``count`` values and the interval that holds the true one with 95% confidence.

    ``low`` and ``high`` are infinite where the values are too few to say.
    """

    mean: float
    low: float
    high: float
    count: int

    @property
    def is_known(self) -> bool:
        """Whether there are values enough for an interval."""
        return math.isfinite(self.high - self.low)


def bootstrap_interval(values: Sequence[float] | NDArray[np.float64], rng: np.random.Generator) -> Interval:
    """Mean and percentile bootstrap interval (Efron 1979): quantiles of the means of resampled sets of the same size.

    Args:
        values: [n] one figure per episode, n ≥ 1.
        rng: draws the resamples.
    Returns: the interval: infinite under ``LEAST_VALUES`` values, as they do not tell how far the mean is off. All
        values equal gives one of width 0; for shares use ``share_interval``.
    Raises: ValueError for no value, or one that is not finite.
    """
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or not len(array):
        raise ValueError(f"values has shape {array.shape}; allowed: [n] with n ≥ 1")
    if not np.isfinite(array).all():
        raise ValueError(f"{int((~np.isfinite(array)).sum())} of {len(array)} values are not finite")
    if len(array) < LEAST_VALUES:
        return Interval(float(array.mean()), -math.inf, math.inf, len(array))
    means = np.empty(_RESAMPLES)
    sets = max(1, _DRAWS_AT_ONCE // len(array))  # all at once would take n × 80 kB
    for first in range(0, _RESAMPLES, sets):
        part = means[first : first + sets]
        part[:] = array[rng.integers(0, len(array), size=(len(part), len(array)))].mean(axis=1)
    low, high = np.quantile(means, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return Interval(float(array.mean()), float(low), float(high), len(array))


def share_interval(successes: int, episodes: int) -> Interval:
    """Wilson's score interval of a share (Wilson 1927), which does not shrink to nothing at 0 or 1.

    (p + z²/2n ± z √(p(1 − p)/n + z²/4n²)) / (1 + z²/n)   with z the normal quantile of 95%.

    Raises: ValueError unless 0 ≤ successes ≤ episodes and episodes ≥ 1.
    """
    if not 0 <= successes <= episodes or episodes < 1:
        raise ValueError(f"{successes} successes of {episodes} episodes; allowed are 0 ≤ successes ≤ episodes ≥ 1")
    share, z2 = successes / episodes, _NORMAL_QUANTILE**2
    centre = share + z2 / (2 * episodes)
    half = math.sqrt(z2 * (share * (1 - share) / episodes + z2 / (4 * episodes**2)))
    scale = 1 + z2 / episodes
    return Interval(share, max(0.0, (centre - half) / scale), min(1.0, (centre + half) / scale), episodes)


def success_interval(successes: Sequence[float], rng: np.random.Generator) -> Interval:
    """Of the mean success of episodes: Wilson's of wins, the bootstrap's of successes that are shares themselves."""
    if set(successes) <= {0.0, 1.0}:
        return share_interval(int(sum(successes)), len(successes))
    return bootstrap_interval(successes, rng)


def intervals_apart(lower: Interval, upper: Interval) -> bool:
    """Whether ``upper`` lies wholly above ``lower``: stricter than a test of the difference at the same confidence."""
    return lower.high < upper.low
