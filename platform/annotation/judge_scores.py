"""How good a judge is against labels by hand: AUC, precision, recall, each with an interval, and what it left out."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_CONFIDENCE = 0.95
_RESAMPLES_AT_ONCE = 256  # of [resamples, captions] counts


@dataclass(frozen=True)
class Estimate:
    """A figure and the interval that holds the one over all captions of this kind with 95% confidence.

    Not a number where nothing could be measured, as the precision of a judge that calls nothing helpful.
    """

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class JudgeScores:
    """One judge on one goal.

    ``recall`` counts helpful captions without a label as missed: they are not paid either.
    """

    captions: int
    helpful: int  # of them, by hand
    labelled: int  # that the judge gave a label that can be read
    auc: Estimate  # over the labelled
    precision: Estimate  # of those that it calls helpful, how many are
    recall: Estimate  # of those that are helpful, how many it calls so

    @property
    def unlabelled_share(self) -> float:
        """Share of the captions that it gave no label, or one that cannot be read."""
        return 1.0 - self.labelled / self.captions


def roc_auc(truth: NDArray[np.bool_], score: NDArray[np.float64]) -> float:
    """Probability that a helpful caption scores higher than an unhelpful one; a tie counts half (Mann–Whitney U).

    AUC = Σ_{i helpful, j unhelpful} (1[s_i > s_j] + ½ · 1[s_i = s_j]) / (helpful · unhelpful)

    Args:
        truth: [n] whether helpful.
        score: [n] finite.
    Returns: 0 to 1; not a number where all captions are of one kind. Raises: ValueError where a score is not finite.
    """
    return float(_weighted_aucs(truth, score, np.ones((1, len(truth)), np.float64))[0])


def judge_scores(
    truth: NDArray[np.bool_],
    score: NDArray[np.float64],
    called_helpful: NDArray[np.bool_],
    labelled: NDArray[np.bool_],
    rng: np.random.Generator,
    *,
    resamples: int,
) -> JudgeScores:
    """The scores of a judge, with percentile bootstrap intervals over captions (Efron 1979).

    Args:
        truth: [n] by hand, whether helpful.
        score: [n] the judge's; read where labelled.
        called_helpful: [n] the judge's verdict; read where labelled.
        labelled: [n] whether the judge gave a label that can be read.
        rng: draws the resamples.
        resamples: how many; at least 100.
    Raises: ValueError for empty or unequal arrays, too few resamples, or a label with a score that is not finite.
    """
    sizes = {len(truth), len(score), len(called_helpful), len(labelled)}
    if sizes != {len(truth)} or not len(truth):
        raise ValueError(f"arrays of {sorted(sizes)} captions; all must have the same number, 1 or more")
    if resamples < 100:
        raise ValueError(f"resamples is {resamples}; an interval of 95% needs 100 or more")
    called = called_helpful & labelled
    judged = np.flatnonzero(labelled)
    drawn: list[list[NDArray[np.float64]]] = []
    for first in range(0, resamples, _RESAMPLES_AT_ONCE):
        sets = min(_RESAMPLES_AT_ONCE, resamples - first)
        counts = rng.multinomial(len(truth), np.full(len(truth), 1.0 / len(truth)), size=sets).astype(np.float64)
        drawn.append(_figures(truth, score, called, judged, counts))
    (auc,), (precision,), (recall,) = _figures(truth, score, called, judged, np.ones((1, len(truth)), np.float64))
    spread = [np.concatenate(part) for part in zip(*drawn, strict=True)]
    return JudgeScores(
        captions=len(truth),
        helpful=int(truth.sum()),
        labelled=len(judged),
        auc=_estimate(float(auc), spread[0]),
        precision=_estimate(float(precision), spread[1]),
        recall=_estimate(float(recall), spread[2]),
    )


def _figures(
    truth: NDArray[np.bool_],
    score: NDArray[np.float64],
    called: NDArray[np.bool_],
    judged: NDArray[np.int64],
    counts: NDArray[np.float64],
) -> list[NDArray[np.float64]]:
    """AUC, precision and recall, [sets] each, of captions that occur ``counts`` [sets, n] times."""
    hits = counts @ (truth & called).astype(np.float64)
    with np.errstate(invalid="ignore", divide="ignore"):
        precision = hits / (counts @ called.astype(np.float64))
        recall = hits / (counts @ truth.astype(np.float64))
    return [_weighted_aucs(truth[judged], score[judged], counts[:, judged]), precision, recall]


def _weighted_aucs(
    truth: NDArray[np.bool_], score: NDArray[np.float64], counts: NDArray[np.float64]
) -> NDArray[np.float64]:
    """AUC of each set, in which caption i occurs counts[set, i] times."""
    if not np.isfinite(score).all():
        raise ValueError(f"{int((~np.isfinite(score)).sum())} of {len(score)} scores are not finite")
    sets = len(counts)
    if not len(score):
        return np.full(sets, np.nan)
    order = np.argsort(score, kind="stable")
    starts = np.flatnonzero(np.r_[True, np.diff(score[order]) > 0])  # of captions with equal scores
    helpful = np.add.reduceat(counts[:, order] * truth[order], starts, axis=1)
    unhelpful = np.add.reduceat(counts[:, order] * ~truth[order], starts, axis=1)
    below = np.cumsum(unhelpful, axis=1) - unhelpful
    wins = (helpful * (below + 0.5 * unhelpful)).sum(axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        aucs: NDArray[np.float64] = wins / (helpful.sum(axis=1) * unhelpful.sum(axis=1))
    return aucs


def _estimate(value: float, spread: NDArray[np.float64]) -> Estimate:
    known = spread[np.isfinite(spread)]  # a resample without a helpful caption measures nothing
    if not np.isfinite(value) or not len(known):
        return Estimate(value, float("nan"), float("nan"))
    low, high = np.quantile(known, [(1 - _CONFIDENCE) / 2, (1 + _CONFIDENCE) / 2])
    return Estimate(value, float(low), float(high))
