"""From scores of caption keys to what they are worth: the chain behind every reward table (docs/annotation.md).

    raw score → member normalisation → aggregate over members → transform → threshold → control

    retrieval        v = label                                                    0 while unlabelled
    similarity       v = s · 1[s > η]           or 1[s > η]                       s: cosine of key and goal
    classification   v = 1[p > η]               or p · 1[p > η]                   p = aggregate of p_m(helpful | key)
    ranking          v = min(max(z, 0) · 1[z > ε], cap)                           z = aggregate of (r_m − μ_m)/σ_m

Sums are over *rows*: a key counts as often as it was seen, empty and never-asked ones do not. All of it in float64.

Differences from ONI (arXiv 2410.23022): z is not paid below 0 whatever ε is, is capped so that a value support follows,
and its μ and σ are those of the rows given here instead of a running mean that never forgets. A probability is on one
scale for all members and is not normalised before it is aggregated.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from onibi.platform.config import Settings
from onibi.platform.errors import CaptionError
from onibi.platform.rewards.table import LABELLED, NEVER_ASKED, UNLABELLED

Control: TypeAlias = Literal["none", "all_ones", "permuted"]
"""What takes the judge's place: nothing; every askable key pays 1; each key is paid another one's value."""
Aggregate: TypeAlias = Literal["mean", "minimum", "mean_less_deviation"]
"""How members become one score: Σ_m s_m/N; min_m s_m; mean − λ · standard deviation over members."""


@dataclass(frozen=True, kw_only=True)
class RetrievalChain(Settings):
    """A key is worth its label; 0 while it has none."""


@dataclass(frozen=True, kw_only=True)
class SimilarityChain(Settings):
    """A key is worth its annotator's score above a threshold (ELLM's cosine similarity to the goal)."""

    threshold: float = 0.5  # η: a score must be above it
    pays: Literal["score", "one"] = "score"  # above the threshold

    def __post_init__(self) -> None:
        _check_share("threshold", self.threshold)


@dataclass(frozen=True, kw_only=True)
class EnsembleChain(Settings):
    """What values of a trained model have in common."""

    aggregate: Aggregate = "mean"
    deviation_weight: float = 1.0  # λ of mean_less_deviation
    minimum_keys: int = 20  # every key is worth 0 until so many of them have a label

    def __post_init__(self) -> None:
        if not 0 <= self.deviation_weight < math.inf:
            raise ValueError(f"deviation_weight is {self.deviation_weight}; allowed: 0 or more")
        if self.minimum_keys < 1:
            raise ValueError(f"minimum_keys is {self.minimum_keys}; allowed: 1 or more")


@dataclass(frozen=True, kw_only=True)
class ClassificationChain(EnsembleChain):
    """A key is worth what a text classifier, trained on the labels, says of it."""

    threshold: float = 0.5  # η: p(helpful) must be above it
    pays: Literal["one", "probability"] = "one"  # above the threshold; ONI's is one

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_share("threshold", self.threshold)


@dataclass(frozen=True, kw_only=True)
class RankingChain(EnsembleChain):
    """A key is worth its normalised Bradley-Terry score above a threshold, in standard deviations of the rows."""

    threshold: float | None = None  # ε in standard deviations; null: the quantile below
    threshold_quantile: float | None = 0.5  # of z over the rows, as Motif; null: the number above
    cap: float = 3.0  # most that a key is worth: z is not bounded, and a value support needs bounds
    minimum_pairs: int = 256  # every key is worth 0 until so many pairs were judged
    deviation_floor: float = 0.1  # least σ: a spread of 0.1 is a preference of 52.5%, and no more than noise

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.threshold is None) == (self.threshold_quantile is None):
            raise ValueError(
                f"threshold is {self.threshold} and threshold_quantile {self.threshold_quantile}; set one of them and "
                "the other to null"
            )
        if self.threshold is not None and not math.isfinite(self.threshold):
            raise ValueError(f"threshold is {self.threshold}; allowed: a finite number")
        if self.threshold_quantile is not None:
            _check_share("threshold_quantile", self.threshold_quantile)
        if not 0 < self.cap < math.inf or not 0 < self.deviation_floor < math.inf:
            raise ValueError(f"cap {self.cap} and deviation_floor {self.deviation_floor} must be above 0")
        if self.minimum_pairs < 1:
            raise ValueError(f"minimum_pairs is {self.minimum_pairs}; allowed: 1 or more")


@dataclass(frozen=True)
class ReferenceRows:
    """Rows over which μ, σ and the quantile are taken instead of the run's: of a model that was fitted offline."""

    members: NDArray[np.float32]
    """[N, R] raw scores."""
    rows: NDArray[np.int64]
    """[R], how often each of them occurred."""


@dataclass(frozen=True)
class KeyFacts:
    """What is known of all keys at one moment. Keys behind the last one that a model scored count as unscored."""

    askable: NDArray[np.bool_]
    """[keys]"""
    rows: NDArray[np.int64]
    """[keys], sightings in the replay window."""
    label: NDArray[np.float32]
    """[keys], 0 to 1; NaN where there is none. For ``similarity`` the annotator's score."""
    compared: NDArray[np.bool_] | None = None
    """[keys], whether a judged pair holds the key; None: no pairs."""
    pairs: int = 0
    """Pairs that were judged."""
    members: NDArray[np.float32] | None = None
    """[N, scored], raw scores of each member: log-odds of helpful, or Bradley-Terry scores. None: no model yet."""
    reference: ReferenceRows | None = None
    is_fitted: bool = False
    """Whether the model was fitted beforehand, so that it need not wait for labels of this run."""


@dataclass(frozen=True)
class TableColumns:
    """Columns of a reward table over keys."""

    value: NDArray[np.float32]
    """[keys], in [0, 1]; of ranking in [0, cap]."""
    labelled: NDArray[np.uint8]
    """[keys], ``UNLABELLED``, ``LABELLED`` or ``NEVER_ASKED``; whether a label is there, not whether a value is."""
    columns: Mapping[str, NDArray[np.float32]] = field(default_factory=dict)
    """Others by name, each [keys]: with a model ``score`` (the aggregate) and ``deviation`` over its members."""
    figures: Mapping[str, float] = field(default_factory=dict)
    """``reward_table/…``."""


def build_values(chain: Settings, facts: KeyFacts, *, control: Control = "none", seed: int = 0) -> TableColumns:
    """What each key is worth.

    Args:
        chain: the kind's settings: a chain of this module.
        facts: labels, scores and rows of this moment.
        control: what is paid in the judge's place.
        seed: of the permutation.
    Raises: CaptionError where lengths disagree or a score is not finite.
    """
    _check(facts)
    labels = facts.label.astype(np.float64)
    has_label = facts.askable & ~np.isnan(labels)
    columns: dict[str, NDArray[np.float32]] = {}
    figures: dict[str, float] = {}
    if isinstance(chain, EnsembleChain):
        value, decided = _model_values(chain, facts, has_label, columns, figures)
    else:
        decided = has_label
        value = np.where(has_label, labels, 0.0)
        if isinstance(chain, SimilarityChain):
            value = _above(value, chain.threshold, ones=chain.pays == "one")
    if isinstance(chain, RankingChain) and facts.compared is not None:
        has_label = has_label | (facts.askable & facts.compared)
    if control == "all_ones":
        value, has_label, decided = facts.askable.astype(np.float64), facts.askable, facts.askable
    elif control == "permuted":
        value = permuted(value, decided, seed)
    labelled = np.where(facts.askable, np.where(has_label, LABELLED, UNLABELLED), NEVER_ASKED).astype(np.uint8)
    asked_rows = max(int(facts.rows[facts.askable].sum()), 1)
    figures |= {
        "reward_table/paid_keys": float(np.count_nonzero(value > 0)),
        "reward_table/paid_row_share": float(facts.rows[value > 0].sum() / asked_rows),
        "reward_table/valued_row_share": float(facts.rows[decided].sum() / asked_rows),
    }
    return TableColumns(value.astype(np.float32), labelled, columns, figures)


def row_moments(
    members: NDArray[np.float64], rows: NDArray[Any], deviation_floor: float
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean and standard deviation of each member's scores over rows.

        μ = Σ_k w_k r_k / Σ_k w_k        σ = max(√(Σ_k w_k (r_k − μ)² / Σ_k w_k), floor)

    Args:
        members: [N, keys].
        rows: [keys], w, counts or shares; 0 leaves a key out. At least one must be above 0.
        deviation_floor: least σ.
    Returns: μ [N, 1] and σ [N, 1].
    """
    weight = rows / rows.sum()
    mean = (members * weight).sum(axis=1, keepdims=True)
    variance = ((members - mean) ** 2 * weight).sum(axis=1, keepdims=True)
    return mean, np.maximum(np.sqrt(variance), deviation_floor)


def aggregated(members: NDArray[np.float64], aggregate: Aggregate, deviation_weight: float) -> NDArray[np.float64]:
    """One score a key from [N, keys] ones; see ``Aggregate``. The deviation is √(Σ_m (s_m − mean)²/N)."""
    if aggregate == "minimum":
        lowest: NDArray[np.float64] = members.min(axis=0)
        return lowest
    mean: NDArray[np.float64] = members.mean(axis=0)
    return mean if aggregate == "mean" else mean - deviation_weight * members.std(axis=0)


def row_quantile(score: NDArray[np.float64], rows: NDArray[np.int64], quantile: float) -> float:
    """The smallest score below or at which lies at least this share of the rows.

    Args:
        score: [keys].
        rows: [keys], how often each one occurs; at least one above 0.
        quantile: 0 to 1.
    """
    order = np.argsort(score, kind="stable")
    order = order[rows[order] > 0]
    reached = np.cumsum(rows[order])
    place = int(np.searchsorted(reached, quantile * reached[-1], side="left"))
    return float(score[order[min(place, len(order) - 1)]])


def permuted(value: NDArray[np.float64], decided: NDArray[np.bool_], seed: int) -> NDArray[np.float64]:
    """Values moved to other keys: each decided key gets that of the next one on a circle in random order.

    A key that joins changes its two neighbours on the circle alone, so values stay as still as without permutation.

    Args:
        value: [keys].
        decided: [keys], which take part; the others keep theirs.
        seed: of the order.
    """
    keys = np.flatnonzero(decided)
    circle = keys[np.argsort(_places(keys, seed), kind="stable")]
    moved = value.copy()
    moved[circle] = value[np.roll(circle, -1)]
    return moved


def _model_values(
    chain: EnsembleChain,
    facts: KeyFacts,
    has_label: NDArray[np.bool_],
    columns: dict[str, NDArray[np.float32]],
    figures: dict[str, float],
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    value = np.zeros(len(facts.askable))
    if facts.members is None or facts.members.shape[1] == 0:
        return value, np.zeros(len(value), bool)
    scored = facts.members.shape[1]
    members, askable = facts.members.astype(np.float64), facts.askable[:scored]
    rows = np.where(askable, facts.rows[:scored], 0)
    reference = (members, rows)
    if facts.reference is not None:
        reference = facts.reference.members.astype(np.float64), facts.reference.rows
    paid: NDArray[np.float64] | None = None
    if isinstance(chain, RankingChain):
        if reference[1].sum() > 0:
            mean, deviation = row_moments(*reference, chain.deviation_floor)
            members = (members - mean) / deviation
            score = aggregated(members, chain.aggregate, chain.deviation_weight)
            over_rows = aggregated((reference[0] - mean) / deviation, chain.aggregate, chain.deviation_weight)
            paid = _ranked(chain, score, over_rows, reference[1], figures)
            capped = askable & (paid > chain.cap)
            figures["reward_table/capped_keys"] = float(np.count_nonzero(capped))
            figures["reward_table/capped_row_share"] = float(rows[capped].sum() / max(int(rows.sum()), 1))
            paid = np.minimum(paid, chain.cap)
        waits = facts.pairs < chain.minimum_pairs or _count(facts.compared, facts.askable) < chain.minimum_keys
    else:
        assert isinstance(chain, ClassificationChain), "the two kinds with a model"
        members = 1.0 / (1.0 + np.exp(-np.clip(members, -700.0, 700.0)))
        score = aggregated(members, chain.aggregate, chain.deviation_weight)
        paid = _above(score, chain.threshold, ones=chain.pays == "one")
        waits = int(np.count_nonzero(has_label)) < chain.minimum_keys
    if paid is None:
        return value, np.zeros(len(value), bool)
    for name, column in (("score", score), ("deviation", members.std(axis=0))):
        columns[name] = np.zeros(len(value), np.float32)
        columns[name][:scored] = np.where(askable, column, 0.0)
    figures["reward_table/deviation"] = float((members.std(axis=0) * rows).sum() / max(int(rows.sum()), 1))
    figures["reward_table/waits_for_labels"] = float(waits and not facts.is_fitted)
    decided = np.zeros(len(value), bool)
    if not waits or facts.is_fitted:
        value[:scored] = np.where(askable, paid, 0.0)
        decided[:scored] = askable
    return value, decided


def _ranked(
    chain: RankingChain,
    score: NDArray[np.float64],
    over_rows: NDArray[np.float64],
    rows: NDArray[np.int64],
    figures: dict[str, float],
) -> NDArray[np.float64]:
    """max(z, 0) · 1[z > ε]."""
    threshold = chain.threshold
    if threshold is None:
        assert chain.threshold_quantile is not None, "the settings' own check"
        threshold = row_quantile(over_rows, rows, chain.threshold_quantile)
    figures["reward_table/threshold"] = threshold
    return np.where(score > threshold, np.maximum(score, 0.0), 0.0)


def _above(score: NDArray[np.float64], threshold: float, *, ones: bool) -> NDArray[np.float64]:
    """Pays s or 1 where s > η. A score may lie below 0 after its members' deviation; a value never does."""
    return np.where(score > threshold, 1.0 if ones else np.maximum(score, 0.0), 0.0)


def _count(compared: NDArray[np.bool_] | None, askable: NDArray[np.bool_]) -> int:
    return 0 if compared is None else int(np.count_nonzero(compared & askable))


def _places(keys: NDArray[np.int64], seed: int) -> NDArray[np.uint64]:
    """A random number for each key that depends on nothing but it and the seed (the finaliser of splitmix64)."""
    with np.errstate(over="ignore"):
        x = (keys.astype(np.uint64) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
        x += np.uint64(seed % (1 << 64)) * np.uint64(0xD1B54A32D192ED03)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return x ^ (x >> np.uint64(31))


def _check(facts: KeyFacts) -> None:
    keys = len(facts.askable)
    lengths = [len(facts.rows), len(facts.label), keys if facts.compared is None else len(facts.compared)]
    if any(length != keys for length in lengths):
        raise CaptionError(f"table chain: {keys} keys, but columns of {lengths}; all must have one entry a key")
    for members in (facts.members, None if facts.reference is None else facts.reference.members):
        if members is not None and not np.isfinite(members).all():
            raise CaptionError(
                f"table chain: {int(np.count_nonzero(~np.isfinite(members)))} scores of the reward model are not "
                "finite; lower reward_model.learning_rate and resume from the last checkpoint"
            )
    if facts.members is not None and (facts.members.ndim != 2 or facts.members.shape[1] > keys):
        raise CaptionError(f"table chain: scores have shape {facts.members.shape}, expected [members, at most {keys}]")


def _check_share(name: str, value: float) -> None:
    if not 0 <= value <= 1:
        raise ValueError(f"{name} is {value}; allowed: 0 to 1")
