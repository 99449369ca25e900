"""What a run pays, and for what: the figures by which reward hacks show (docs/annotation.md).

Beside the sum of each episode's caption reward this counts, while rows are inserted:

* what each key was paid lately: pay halves in weight every ``half_life_steps`` env steps;
* of every finished episode the discounted total  Σₜ γᵗ (a_ext · r_ext + a_int · r_int),  r_int up to ``episode_cap``,
  whether it succeeded, and how many keys it was paid for the first time in it.

Only what it is asked to sum: bonuses are paid in the learner and do not show here, nor do products with them, so a
component that only stands in products is left out of the total.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onibi.platform.fragment import EpisodeStatistics
from onibi.platform.rewards.coefficient import coefficient_at
from onibi.platform.rewards.settings import EXTRINSIC, INTRINSIC, RewardSettings

_OPEN_EPISODES_MAX = 1 << 16
BEST_KEYS = 1_024
"""How many of the best-paid keys are told."""


@dataclass(frozen=True)
class EpisodePay:
    """One finished episode."""

    succeeded: bool
    """By the task's figure ``success``; where it tells none, whether the environment's return is above 0."""
    discounted_total: float
    """All that it was paid by environment and captions, coefficients included."""
    new_keys: int
    """Keys that were paid, each counted when it was heard for the first time in the episode."""


@dataclass(frozen=True)
class PayFigures:
    """What was paid lately."""

    best_keys: tuple[int, ...]
    """Indices of the ``BEST_KEYS`` best-paid keys, the best first."""
    best_pay: tuple[float, ...]
    """What each of them was paid, r_int before its coefficient."""
    total_pay: float
    """What all keys were paid."""
    episodes: tuple[EpisodePay, ...]
    """Those that finished since the last time."""


NO_PAY = PayFigures((), (), 0.0, ())
"""Of a run that pays for no caption."""


def merged_pay(parts: Sequence[PayFigures]) -> PayFigures:
    """What several watches saw, each of other actors. A key that is among the best of one watch alone counts with what
    that one paid.
    """
    paid: dict[int, float] = defaultdict(float)
    for part in parts:
        for key, pay in zip(part.best_keys, part.best_pay, strict=True):
            paid[key] += pay
    best = sorted(paid.items(), key=lambda item: -item[1])[:BEST_KEYS]
    episodes = tuple(episode for part in parts for episode in part.episodes)
    return PayFigures(
        tuple(key for key, _ in best),
        tuple(pay for _, pay in best),
        sum(part.total_pay for part in parts),
        episodes,
    )


class PayWatch:
    """Books step rows as they are inserted.

    Args:
        settings: what the run pays.
        discount: γ of the learner.
        half_life_steps: env steps after which what was paid counts half.
        env_steps: that were made before, for coefficients that follow a schedule.
        steps_per_row: env steps of the run for each row booked here: others may book as many.
    """

    def __init__(
        self,
        settings: RewardSettings,
        discount: float,
        half_life_steps: int,
        *,
        env_steps: int,
        steps_per_row: int,
    ) -> None:
        self._settings, self._discount = settings, discount
        self._half_life_steps = half_life_steps
        self._env_steps, self._steps_per_row = env_steps, steps_per_row
        self._recent: NDArray[np.float64] = np.zeros(0)
        self._added = {term[0] for term in settings.terms if len(term) == 1}
        self._open: dict[int, list[float]] = {}  # episode id -> [discounted total, new keys, Σ r_int without a cap]
        self._finished: list[EpisodePay] = []
        self._tells_success = False

    def book(self, rows: PaidRows) -> None:
        """Book a fragment's step rows."""
        count = len(rows.reward)
        extrinsic, intrinsic = self._settings.extrinsic, self._settings.intrinsic
        reward = rows.reward.astype(np.float64) * extrinsic.scale
        if extrinsic.clip is not None:
            reward = np.clip(reward, -extrinsic.clip, extrinsic.clip)
        ids, places = np.unique(rows.episode_id, return_inverse=True)
        for episode_id in ids.tolist():
            self._open.setdefault(episode_id, [0.0, 0.0, 0.0])
        total: NDArray[np.float64] = np.zeros(count)
        if EXTRINSIC in self._added:
            total += coefficient_at(extrinsic.coefficient, self._env_steps) * reward
        if INTRINSIC in self._added and intrinsic is not None and rows.paid is not None:
            paid = rows.paid.astype(np.float64)
            if intrinsic.episode_cap is not None:
                paid = self._capped(paid, rows.step, ids.tolist(), places, intrinsic.episode_cap)
            total += coefficient_at(intrinsic.coefficient, self._env_steps) * paid
        self._env_steps += count * self._steps_per_row
        total *= self._discount ** rows.step.astype(np.float64)
        totals = np.bincount(places, weights=total, minlength=len(ids)).tolist()
        new_keys = [0.0] * len(ids)
        if rows.new_keys is not None:
            new_keys = np.bincount(places, weights=rows.new_keys, minlength=len(ids)).tolist()
        for episode_id, discounted, keys in zip(ids.tolist(), totals, new_keys, strict=True):
            entry = self._open[episode_id]
            entry[0] += discounted
            entry[1] += keys
        self._age(count * self._steps_per_row, rows.by_key)

    def close(self, episodes: list[EpisodeStatistics]) -> None:
        """Take episodes that ended; those that never do are forgotten, oldest first, past 65,536 open ones."""
        for episode in episodes:
            discounted, keys, _ = self._open.pop(episode.episode_id, (0.0, 0.0, 0.0))
            self._tells_success |= "success" in episode.extra  # many environments tell it of won episodes alone
            otherwise = 0.0 if self._tells_success else episode.episode_return
            succeeded = episode.extra.get("success", otherwise) > 0
            self._finished.append(EpisodePay(succeeded, discounted, round(keys)))
        while len(self._open) > _OPEN_EPISODES_MAX:
            self._open.pop(next(iter(self._open)))

    def take(self) -> PayFigures:
        """Figures of now; each finished episode is told once."""
        finished, self._finished = self._finished, []
        best = np.argsort(-self._recent, kind="stable")[:BEST_KEYS]
        best = best[self._recent[best] > 0]
        return PayFigures(
            tuple(best.tolist()), tuple(self._recent[best].tolist()), float(self._recent.sum()), tuple(finished)
        )

    def _capped(
        self, paid: NDArray[np.float64], step: NDArray[np.int32], ids: list[int], places: NDArray[np.intp], cap: float
    ) -> NDArray[np.float64]:
        """[rows] what the mixer leaves of ``paid``: min(p, max(0, cap − Σ of p before it in the episode))."""
        order = np.lexsort((step, places))
        inside = np.cumsum(paid[order])
        begins = np.searchsorted(places[order], np.arange(len(ids)))
        earlier = np.array([self._open[episode_id][2] for episode_id in ids])  # in fragments that were booked before
        before = np.empty(len(paid))
        before[order] = inside - paid[order] + (earlier - (inside - paid[order])[begins])[places[order]]
        sums = np.bincount(places, weights=paid, minlength=len(ids)).tolist()
        for episode_id, more in zip(ids, sums, strict=True):
            self._open[episode_id][2] += more
        left: NDArray[np.float64] = np.minimum(paid, np.maximum(cap - before, 0.0))
        return left

    def _age(self, steps: int, by_key: NDArray[np.float64] | None) -> None:
        self._recent *= 0.5 ** (steps / self._half_life_steps)
        if by_key is None:
            return
        if len(self._recent) < len(by_key):
            self._recent = np.concatenate([self._recent, np.zeros(len(by_key) - len(self._recent))])
        self._recent[: len(by_key)] += by_key


@dataclass(frozen=True)
class PaidRows:
    """Step rows of a fragment, in any order. The last three are None where no caption was heard in them."""

    episode_id: NDArray[np.int64]
    """[rows]"""
    step: NDArray[np.int32]
    """[rows], of the episode, from 0."""
    reward: NDArray[np.float32]
    """[rows], the environment's."""
    paid: NDArray[Any] | None
    """[rows], r_int before its coefficient."""
    new_keys: NDArray[Any] | None
    """[rows], paid keys heard for the first time in their episode."""
    by_key: NDArray[np.float64] | None
    """[keys], what each key was paid in these rows."""
