"""The exact permutation test of two groups of few runs, and the interval that it leaves (Fisher 1935; Pitman 1937).

Under the hypothesis that the group makes no difference, every way of sharing the n + m scores out to the groups is as
likely as the one that was seen. No distribution is assumed and nothing is drawn at random: all ways are looked at. With
few runs this says plainly how little they say: 3 against 3 cannot be told apart at 95%, whatever the scores.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from onibi.clusters.reports.compare import CONFIDENCE

MOST_WAYS = 1_000_000
"""Ways to share scores out that are looked at; 11 against 11 has 705,432."""

_ROUNDING = 1e-12
"""Differences that agree to this share of the largest score are equal: sums of the same numbers in another order."""


@dataclass(frozen=True)
class PermutationTest:
    """What two groups of scores say.

    Args:
        difference: mean(x) − mean(y).
        low: the least shift of x over y that the test does not reject at 5%; −inf where the runs are too few.
        high: the greatest.
        p_value: two-sided: twice the smaller share of ways whose difference is as far out on that side, at most 1.
        ways: in which the scores can be shared out; 1 / ways is the least one-sided p there can be.
    """

    difference: float
    low: float
    high: float
    p_value: float
    ways: int


def permutation_test(scores: NDArray[np.float64], others: NDArray[np.float64]) -> PermutationTest:
    """Exact test of mean(x) − mean(y) = 0, and the shifts that it does not reject.

        p₊(δ) = share of ways π with  mean(π(x − δ)) − mean(π(y)) ≥ mean(x − δ) − mean(y),    p₋(δ) likewise with ≤

    The interval is {δ : p₊(δ) > 2.5%, p₋(δ) > 2.5%}. A way exchanges equally many scores A of x and B of y, and is as
    far out as what was seen just where δ ≥ mean(A) − mean(B): so the ends are order statistics of these differences.

    Args:
        scores: [n] x, n ≥ 1.
        others: [m] y, m ≥ 1.
    Raises: ValueError where a group is empty or not finite, or there are more than ``MOST_WAYS`` ways.
    """
    x, y = _checked("scores", scores), _checked("others", others)
    n, m = len(x), len(y)
    ways = ways_of(n, m)
    shifts = np.sort(_exchanges(x, y))
    difference = float(x.mean() - y.mean())
    rounding = _ROUNDING * max(float(np.abs(x).max()), float(np.abs(y).max()), np.finfo(np.float64).tiny)
    above = 1 + int(np.count_nonzero(shifts <= rounding))  # of δ = 0; what was seen itself counts
    below = 1 + int(np.count_nonzero(shifts >= -rounding))
    # So many exchanges, and what was seen itself, are the fewest ways that make more than 2.5%.
    needed = math.floor((1 - CONFIDENCE) / 2 * ways + 1e-9)
    # As the p-value counts them: an end that rounding alone holds off 0 would reject what the p-value does not.
    shifts[np.abs(shifts) <= rounding] = 0.0
    return PermutationTest(
        difference=difference,
        low=float(shifts[needed - 1]) if needed else -math.inf,
        high=float(shifts[len(shifts) - needed]) if needed else math.inf,
        p_value=min(1.0, 2 * min(above, below) / ways),
        ways=ways,
    )


def has_exact_test(scores: int, others: int) -> bool:
    """Whether so many scores can be shared out in ``MOST_WAYS`` ways at most."""
    return math.comb(scores + others, scores) <= MOST_WAYS


def ways_of(scores: int, others: int) -> int:
    """Ways to share so many scores out. Raises: ValueError where there are more than ``MOST_WAYS``."""
    ways = math.comb(scores + others, scores)
    if not has_exact_test(scores, others):
        raise ValueError(
            f"{scores} scores against {others} can be shared out in {ways:,} ways; allowed: up to {MOST_WAYS:,}, as 11 "
            "against 11"
        )
    return ways


def _exchanges(x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.float64]:
    """mean(A) − mean(B) for all A ⊂ x and B ⊂ y of equal size ≥ 1: [ways − 1]."""
    found = []
    for size in range(1, min(len(x), len(y)) + 1):
        taken, given = (np.array([sum(part) for part in combinations(each.tolist(), size)]) for each in (x, y))
        found.append(((taken[:, None] - given[None]) / size).ravel())
    return np.concatenate(found)


def _checked(name: str, values: NDArray[np.float64]) -> NDArray[np.float64]:
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or not len(array) or not np.isfinite(array).all():
        raise ValueError(f"{name} are {array.tolist()}; allowed: one finite number for each of n ≥ 1 runs")
    return array
