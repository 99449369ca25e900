"""What of the labelled keys trains a reward model, what measures it, and each member's own draw of it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from onibi.learners.reward_models.held_out import bootstrap_copies, is_held_out, pair_hashes
from onibi.learners.reward_models.settings import RewardModelSettings
from onibi.platform.annotation.labels import HELPFUL_SCORE
from onibi.platform.rewards.training import LabelledKeys

_MOST_CLASS_WEIGHT = 10.0


@dataclass(frozen=True)
class Items:
    """Labels (``second`` is empty) or pairs, by key index."""

    first: NDArray[np.int64]
    """[n]"""
    second: NDArray[np.int64]
    """[n], or [0] for labels."""
    target: NDArray[np.float32]
    """[n], label or preference."""
    arrival: NDArray[np.float64]
    """[n], rises with the time at which the label or preference came."""

    def __len__(self) -> int:
        return len(self.first)

    @property
    def keys(self) -> int:
        """Distinct keys in them."""
        return len(np.unique(np.concatenate([self.first, self.second])))

    def chosen(self, which: NDArray[np.bool_] | NDArray[np.int64]) -> Items:
        """Some of them."""
        second = self.second[which] if len(self.second) else self.second
        return Items(self.first[which], second, self.target[which], self.arrival[which])

    def newest(self, count: int) -> Items:
        """Those that came last, in the order that they have here."""
        return self.chosen(np.sort(np.argsort(self.arrival, kind="stable")[-count:]))

    def hashes(self, key_hashes: NDArray[np.uint64]) -> NDArray[np.uint64]:
        """[n], one for each."""
        first = key_hashes[self.first]
        return pair_hashes(first, key_hashes[self.second]) if len(self.second) else first


def items_of(data: LabelledKeys, kind: str, *, soft_labels: bool) -> Items:
    """Labels of a classification, pairs of a ranking; keys that are never asked are left out."""
    if kind == "ranking":
        first, second = data.pair_first.astype(np.int64), data.pair_second.astype(np.int64)
        # Pairs come in the order in which they were judged.
        pairs = Items(first, second, data.pair_preference.astype(np.float32), np.arange(len(first), dtype=np.float64))
        return pairs.chosen(data.askable[first] & data.askable[second])
    keys, score = data.label_key.astype(np.int64), data.label_score.astype(np.float32)
    label = score if soft_labels else (score >= HELPFUL_SCORE).astype(np.float32)
    arrival = np.arange(len(keys), dtype=np.float64) if data.label_seconds is None else data.label_seconds
    return Items(keys, np.zeros(0, np.int64), label, arrival).chosen(data.askable[keys])


def split(items: Items, key_hashes: NDArray[np.uint64], settings: RewardModelSettings) -> tuple[Items, Items]:
    """(what trains, what does not). A pair with one held-out key or two trains nothing."""
    away = is_held_out(key_hashes, settings.held_out_share)
    measures = away[items.first]
    if len(items.second):
        measures = measures | away[items.second]
    training = items.chosen(~measures)
    if settings.training_items is not None:
        training = training.newest(settings.training_items)
    return training, items.chosen(measures)


def class_weights(items: Items, *, balance: bool) -> NDArray[np.float32]:
    """[n]: n / (2 · n_class) of a label's class, at most 10, so that both classes count alike as a whole; else ones."""
    weight = np.ones(len(items), np.float32)
    if not balance or len(items.second):
        return weight
    helpful = float(items.target.sum())
    unhelpful = len(items) - helpful
    if helpful > 0 and unhelpful > 0:
        each = [min(len(items) / (2 * count), _MOST_CLASS_WEIGHT) for count in (unhelpful, helpful)]
        weight = (each[0] + (each[1] - each[0]) * items.target).astype(np.float32)
    return weight


class MemberDraws:
    """Batches of items for each member out of its own bootstrap; the same ones for the same seed and step.

    Args:
        items: what trains.
        key_hashes: [keys].
        members: N; with one member there is no bootstrap.
        seed: of bootstraps and draws.
    """

    def __init__(self, items: Items, key_hashes: NDArray[np.uint64], members: int, seed: int) -> None:
        everything = np.arange(len(items))
        hashes = items.hashes(key_hashes)
        self._pools = [everything] if members == 1 else []
        for member in range(members if members > 1 else 0):
            pool = np.repeat(everything, bootstrap_copies(hashes, member, seed))
            self._pools.append(pool if len(pool) else everything)
        self._seed = seed

    def draw(self, step: int, batch_size: int) -> NDArray[np.int64]:
        """[N, batch_size] item numbers."""
        drawn = []
        for member, pool in enumerate(self._pools):
            rng = np.random.default_rng([self._seed, member, step])
            drawn.append(pool[rng.integers(len(pool), size=batch_size)])
        return np.stack(drawn)
