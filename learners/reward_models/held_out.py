"""How good a reward model is on captions that it never learned from: who they are, and the figures."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_CALIBRATION_BINS = 10
_HELD_OUT_STREAM, _BOOTSTRAP_STREAM = 1, 2
_MOST_COPIES = 12  # of an item in a bootstrap: more have a chance of 6e-11


def is_held_out(hashes: NDArray[np.uint64], share: float) -> NDArray[np.bool_]:
    """Which keys are held out, by their hash alone: the same ones in every run, process and resumed session."""
    return _uniform(hashes, _HELD_OUT_STREAM) < share


def bootstrap_copies(hashes: NDArray[np.uint64], member: int, seed: int) -> NDArray[np.int64]:
    """How often each item stands in a member's bootstrap: Poisson with mean 1, by the item's hash.

    What a bootstrap of n out of n tends to as n grows, and it needs no n: an item keeps its copies when others arrive
    (Oza & Russell 2001, "Online bagging").
    """
    chances = np.cumprod([np.exp(-1.0), *(1.0 / np.arange(1, _MOST_COPIES))])  # e^−1 / k!
    uniform = _uniform(hashes, _BOOTSTRAP_STREAM + (member << 8) + (seed << 24))
    return np.searchsorted(np.cumsum(chances), uniform, side="right").astype(np.int64)


def pair_hashes(first: NDArray[np.uint64], second: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """One hash for each ordered pair of hashes."""
    with np.errstate(over="ignore"):
        mixed: NDArray[np.uint64] = _mixed(first) * np.uint64(3) + _mixed(second + np.uint64(1))
    return mixed


def area_under_curve(score: NDArray[np.float64], is_positive: NDArray[np.bool_]) -> float | None:
    """Chance that a positive scores above a negative, ties counting half (the area under the ROC curve).

    Returns: None where there is no positive or no negative.
    """
    positives, negatives = int(is_positive.sum()), int((~is_positive).sum())
    if not positives or not negatives:
        return None
    values, place = np.unique(score, return_inverse=True)
    counts = np.bincount(place, minlength=len(values))
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[place]  # mean rank of equals, from 1
    return float((ranks[is_positive].sum() - positives * (positives + 1) / 2) / (positives * negatives))


def pair_accuracy(chance: NDArray[np.float64], preference: NDArray[np.float64]) -> float | None:
    """Share of the pairs that are no ties whose preferred one has the greater chance; equal chances count half.

    Args:
        chance: [m], that the first is preferred.
        preference: [m], 1, 0, or ½ for a tie.
    """
    decided = preference != 0.5
    if not decided.any():
        return None
    sign = np.sign(chance[decided] - 0.5) * np.sign(preference[decided] - 0.5)
    return float(np.mean((sign + 1) / 2))


def calibration_error(
    chance: NDArray[np.float64], outcome: NDArray[np.float64], weight: NDArray[np.float64]
) -> float | None:
    """Σ over ten bins of chance: (share of the weight in it) · |mean outcome − mean chance|   (Naeini et al. 2015).

    Args:
        chance, outcome, weight: [n].
    """
    if not weight.sum() > 0:
        return None
    bins = np.minimum((chance * _CALIBRATION_BINS).astype(np.int64), _CALIBRATION_BINS - 1)
    gaps = np.bincount(bins, weight * (outcome - chance), minlength=_CALIBRATION_BINS)
    return float(np.abs(gaps).sum() / weight.sum())


def _uniform(hashes: NDArray[np.uint64], stream: int) -> NDArray[np.float64]:
    """[0, 1), one number for each hash and stream."""
    salt = np.array([(stream * 0x9E3779B97F4A7C15) % (1 << 64)], np.uint64)
    return _mixed(hashes ^ _mixed(salt)) / 2.0**64


def _mixed(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The finaliser of splitmix64."""
    with np.errstate(over="ignore"):
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return x ^ (x >> np.uint64(31))
