"""Statistics of few runs, with the uncertainty that few runs leave (Agarwal et al. 2021, arXiv 2108.13264).

Scores of one group are a mapping task → [runs] float64. Intervals are percentile bootstraps, stratified: runs are drawn
anew within each task, as many as there are. Tasks may have different numbers of runs. Where no task has
``LEAST_VALUES`` runs, an interval is infinite: so few do not tell how far they are off.

Difference from the paper's package (rliable): where they do, the mean weighs every task alike, and the interquartile
mean and the optimality gap every run.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from onibi.clusters.reports.compare import CONFIDENCE, LEAST_VALUES

Scores: TypeAlias = Mapping[str, NDArray[np.float64]]
"""Of one group: task → [runs]."""

Statistic: TypeAlias = Callable[[Sequence[NDArray[np.float64]]], NDArray[np.float64]]
"""Scores of each task, [S, runs], one row a resample → [S]."""

_RESAMPLES = 10_000
_RESAMPLES_AT_ONCE = 1_000
_TRIMMED_SHARE = 0.25


@dataclass(frozen=True)
class Estimate:
    """A statistic of the scores at hand, and the interval that holds the true one with 95% confidence.

    ``low`` and ``high`` are infinite where the runs are too few to say.
    """

    value: float
    low: float
    high: float

    @property
    def is_known(self) -> bool:
        """Whether there are runs enough for an interval."""
        return math.isfinite(self.high - self.low)


def interquartile_mean(tasks: Sequence[NDArray[np.float64]]) -> NDArray[np.float64]:
    """Mean of the middle half of all runs of all tasks: a quarter of them, rounded down, is left out at either end.

    Args:
        tasks: one [S, runs] for each task.
    Returns: [S].
    """
    ordered = np.sort(np.concatenate(tasks, axis=1), axis=1)
    cut = int(_TRIMMED_SHARE * ordered.shape[1])
    middle: NDArray[np.float64] = ordered[:, cut : ordered.shape[1] - cut].mean(axis=1)
    return middle


def mean(tasks: Sequence[NDArray[np.float64]]) -> NDArray[np.float64]:
    """Mean over tasks of the mean over runs; [S, runs] for each task → [S]."""
    found: NDArray[np.float64] = _task_means(tasks).mean(axis=0)
    return found


def median(tasks: Sequence[NDArray[np.float64]]) -> NDArray[np.float64]:
    """Median over tasks of the mean over runs; [S, runs] for each task → [S]."""
    found: NDArray[np.float64] = np.median(_task_means(tasks), axis=0)
    return found


def optimality_gap(target: float) -> Statistic:
    """How far runs stay below ``target`` on average, what lies above counting as the target itself: lower is better."""

    def gap(tasks: Sequence[NDArray[np.float64]]) -> NDArray[np.float64]:
        reached: NDArray[np.float64] = np.minimum(np.concatenate(tasks, axis=1), target).mean(axis=1)
        return target - reached

    return gap


def estimate(scores: Scores, statistic: Statistic, rng: np.random.Generator) -> Estimate:
    """A statistic of one group's scores with its stratified bootstrap interval.

    Args:
        scores: task → [runs], n ≥ 1 runs each.
        statistic: one of the above.
        rng: draws the resamples.
    Raises: ValueError where a task has no run or a score is not finite.
    """
    tasks = _checked(scores)
    value = float(statistic([runs[None] for runs in tasks])[0])
    return _interval(value, [tasks], lambda size: statistic([_resampled(runs, size, rng) for runs in tasks]))


def probability_of_improvement(group: Scores, other: Scores, rng: np.random.Generator) -> Estimate:
    """P(X > Y) + ½ P(X = Y) for a run X of ``group`` and Y of ``other`` on one task, averaged over their common tasks.

    Args:
        group: task → [runs].
        other: task → [runs].
        rng: draws the resamples, of each group for itself.
    Raises: ValueError where no task is common, one has no run, or a score is not finite.
    """
    common = [task for task in group if task in other]
    if not common:
        raise ValueError(f"no task is common: {', '.join(group)} against {', '.join(other)}")
    pairs = list(zip(_checked({t: group[t] for t in common}), _checked({t: other[t] for t in common}), strict=True))

    def chance(drawn: Sequence[tuple[NDArray[np.float64], NDArray[np.float64]]]) -> NDArray[np.float64]:
        wins = [
            ((x[:, :, None] > y[:, None]) + 0.5 * (x[:, :, None] == y[:, None])).mean(axis=(1, 2)) for x, y in drawn
        ]
        found: NDArray[np.float64] = np.mean(wins, axis=0)
        return found

    value = float(chance([(x[None], y[None]) for x, y in pairs])[0])
    groups = [[x for x, _ in pairs], [y for _, y in pairs]]
    return _interval(
        value, groups, lambda size: chance([(_resampled(x, size, rng), _resampled(y, size, rng)) for x, y in pairs])
    )


def difference_of_means(
    scores: NDArray[np.float64], others: NDArray[np.float64], rng: np.random.Generator, *, paired: bool
) -> Estimate:
    """mean(x) − mean(y).

    Args:
        scores: [n] x.
        others: [m] y; where paired m = n, and x_i belongs to y_i.
        rng: draws the resamples: of pairs, or of each set for itself.
        paired: the runs of one seed share what luck there is.
    Raises: ValueError where a set is empty, not finite, or pairs do not match.
    """
    x, y = _checked({"scores": scores, "others": others})
    if paired:
        if len(x) != len(y):
            raise ValueError(f"{len(x)} scores and {len(y)} others make no pairs")
        return estimate({"difference": x - y}, mean, rng)
    value = float(x.mean() - y.mean())
    return _interval(
        value,
        [[x], [y]],
        lambda size: _resampled(x, size, rng).mean(axis=1) - _resampled(y, size, rng).mean(axis=1),
    )


def pointwise_band(
    curves: NDArray[np.float64], rng: np.random.Generator
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Interquartile mean over runs at each point of their curves, with 95% intervals of each point for itself.

    Args:
        curves: [runs, points].
        rng: draws the resamples: of whole runs.
    Returns: middle, low, high, each [points].
    """
    runs = len(curves)
    middle = interquartile_mean([curves.T])
    drawn = np.stack([interquartile_mean([curves[rng.integers(0, runs, runs)].T]) for _ in range(_RESAMPLES_AT_ONCE)])
    low, high = np.quantile(drawn, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2], axis=0)
    return middle, low, high


def _task_means(tasks: Sequence[NDArray[np.float64]]) -> NDArray[np.float64]:
    """[tasks, S]."""
    return np.stack([runs.mean(axis=1) for runs in tasks])


def _checked(scores: Scores) -> list[NDArray[np.float64]]:
    arrays = []
    for task, runs in scores.items():
        array = np.asarray(runs, dtype=np.float64)
        if array.ndim != 1 or not len(array) or not np.isfinite(array).all():
            raise ValueError(
                f"scores of {task} are {array.tolist()}; allowed: one finite number for each of n ≥ 1 runs"
            )
        arrays.append(array)
    if not arrays:
        raise ValueError("there are no scores")
    return arrays


def _resampled(runs: NDArray[np.float64], size: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """[size, runs] drawn with replacement."""
    return runs[rng.integers(0, len(runs), (size, len(runs)))]


def _interval(
    value: float,
    groups: Sequence[Sequence[NDArray[np.float64]]],
    draw: Callable[[int], NDArray[np.float64]],
) -> Estimate:
    """``groups``: scores of each task, of each group that the value is of."""
    if any(max(map(len, tasks)) < LEAST_VALUES for tasks in groups):
        return Estimate(value, -math.inf, math.inf)
    drawn = np.concatenate([draw(_RESAMPLES_AT_ONCE) for _ in range(_RESAMPLES // _RESAMPLES_AT_ONCE)])
    low, high = np.quantile(drawn, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return Estimate(value, float(low), float(high))
