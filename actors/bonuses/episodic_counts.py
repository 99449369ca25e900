"""Bonuses for what is rare in this episode: caption keys, observations, and NovelD's first visits."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onibi.actors.bonuses.row_bonus import Arrival, RowBonusPlace
from onibi.platform.rewards.bonus_settings import KeyCountsSettings, NovelDSettings, ObservationCountsSettings
from onibi.platform.spec import ArraySpec

_DIGEST_BYTES = 16


class VisitCounts:
    """How often each lane has seen an observation in its episode; two are the same where all bytes are.

    Args:
        leaves: observation columns that make two observations the same.
        envs: E.
    """

    def __init__(self, leaves: Sequence[ArraySpec], envs: int) -> None:
        self._leaves = tuple(leaf.name for leaf in leaves)
        self._seen: list[dict[bytes, int]] = [{} for _ in range(envs)]

    def begin(self, observation: Mapping[str, NDArray[Any]], lanes: NDArray[np.bool_]) -> None:
        """Forget what ``lanes`` [E] have seen, and count their first observation."""
        for lane in np.flatnonzero(lanes).tolist():
            self._seen[lane] = {}
        self.count(observation, lanes)

    def count(self, observation: Mapping[str, NDArray[Any]], lanes: NDArray[np.bool_]) -> NDArray[np.int64]:
        """[E] N of each lane's observation, this time included; 0 elsewhere."""
        counts: NDArray[np.int64] = np.zeros(len(lanes), np.int64)
        columns = [np.ascontiguousarray(observation[name]) for name in self._leaves]
        for lane in np.flatnonzero(lanes).tolist():
            digest = hashlib.blake2b(digest_size=_DIGEST_BYTES)
            for column in columns:
                digest.update(column[lane].tobytes())
            seen, name = self._seen[lane], digest.digest()
            counts[lane] = seen[name] = seen.get(name, 0) + 1
        return counts


class KeyCountsBonus:
    """maxⱼ 1 / N(keyⱼ)^power over the keys of a caption that somebody may be asked about; 0 for the empty caption.

    Args:
        settings: the power.
        place: E; no leaf is read.
    """

    def __init__(self, settings: KeyCountsSettings, place: RowBonusPlace) -> None:
        self._power, self._envs = settings.power, place.envs

    def begin(self, arrival: Arrival, lanes: NDArray[np.bool_]) -> None:
        """See ``RowBonus``; the counts are the rollout's."""

    def pay(self, arrival: Arrival, lanes: NDArray[np.bool_]) -> NDArray[np.float32]:
        """See ``RowBonus``."""
        paid: NDArray[np.float32] = np.zeros(self._envs, np.float32)
        if arrival.captions is None or arrival.caption_count is None:
            return paid
        for lane in np.flatnonzero(lanes).tolist():
            counts = arrival.caption_count[lane].tolist()
            keys = arrival.captions[lane].keys
            askable = [count for key, count in zip(keys, counts, strict=False) if key.askable and count]
            if askable:
                paid[lane] = min(askable) ** -self._power
        return paid

    def load(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        """See ``RowBonus``; there is nothing to load."""


class ObservationCountsBonus:
    """1 / N(o′)^power.

    Args:
        settings: the power.
        place: E, and the observation columns that make two observations the same.
    """

    def __init__(self, settings: ObservationCountsSettings, place: RowBonusPlace) -> None:
        self._power, self._visits = settings.power, VisitCounts(place.leaves, place.envs)

    def begin(self, arrival: Arrival, lanes: NDArray[np.bool_]) -> None:
        """See ``RowBonus``."""
        self._visits.begin(arrival.observation, lanes)

    def pay(self, arrival: Arrival, lanes: NDArray[np.bool_]) -> NDArray[np.float32]:
        """See ``RowBonus``."""
        counts = self._visits.count(arrival.observation, lanes)
        paid: NDArray[np.float32] = (np.maximum(counts, 1).astype(np.float64) ** -self._power).astype(np.float32)
        return paid

    def load(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        """See ``RowBonus``; there is nothing to load."""


class FirstVisits:
    """1 where o′ is met for the first time in the episode, else 0: the indicator of NovelD (Zhang et al. 2021).

    Args:
        _settings: of the bonus; what they say is the learner's business.
        place: E, and the observation columns that make two observations the same.
    """

    def __init__(self, _settings: NovelDSettings, place: RowBonusPlace) -> None:
        self._visits = VisitCounts(place.leaves, place.envs)

    def begin(self, arrival: Arrival, lanes: NDArray[np.bool_]) -> None:
        """See ``RowBonus``."""
        self._visits.begin(arrival.observation, lanes)

    def pay(self, arrival: Arrival, lanes: NDArray[np.bool_]) -> NDArray[np.uint8]:
        """See ``RowBonus``."""
        first: NDArray[np.uint8] = (self._visits.count(arrival.observation, lanes) == 1).astype(np.uint8)
        return first

    def load(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        """See ``RowBonus``; there is nothing to load."""
