"""Sums of a reward component over episodes that are spread over many fragments."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from onibi.platform.fragment import Fragment
from onibi.platform.reward_table import RewardTable, caption_rewards, rewards_by_key
from onibi.platform.spec import ROLE_STEP

_OPEN_EPISODES_MAX = 1 << 16


class EpisodeLedger:
    """Undiscounted caption reward of each open episode, before its coefficient; each step is paid by its time's table.

    Episodes that never end (their actor died) are forgotten, oldest first, past 65,536 open ones.
    """

    def __init__(self, count_power: float) -> None:
        self._count_power = count_power
        self._totals: dict[int, float] = {}
        self._paid: NDArray[np.float64] = np.zeros(0, np.float64)

    @property
    def paid_by_key(self) -> NDArray[np.float64]:
        """[keys] reward that each key has brought so far; keys newer than the last table are left out. A copy."""
        return self._paid.copy()

    def add(self, fragment: Fragment, caption_id: NDArray[Any], table: RewardTable) -> dict[int, float]:
        """Book a fragment's steps.

        Args:
            fragment: its ``episodes`` are closed by this call.
            caption_id: [E, R] uint32, the dense caption of each row.
            table: the newest one.
        Returns: for each episode of ``fragment.episodes``, by episode id, its total.
        """
        if len(self._paid) < len(table.value):
            self._paid = np.concatenate([self._paid, np.zeros(len(table.value) - len(self._paid))])
        if caption_id.any():  # else nobody was paid: a run without captions pays nothing for this book either
            self._book(fragment, caption_id, table)
        closed = {episode.episode_id: self._totals.pop(episode.episode_id, 0.0) for episode in fragment.episodes}
        while len(self._totals) > _OPEN_EPISODES_MAX:
            self._totals.pop(next(iter(self._totals)))
        return closed

    def _book(self, fragment: Fragment, caption_id: NDArray[Any], table: RewardTable) -> None:
        columns = fragment.columns
        roles = columns["role"]
        steps = (np.arange(roles.shape[1]) < fragment.rows_per_lane[:, None]) & (roles == ROLE_STEP)
        paid, _ = caption_rewards(table, caption_id[steps], columns["caption_count"][steps], self._count_power)
        by_key = rewards_by_key(table, caption_id[steps], columns["caption_count"][steps], self._count_power)
        self._paid[: len(by_key)] += by_key
        ids, places = np.unique(columns["episode_id"][steps], return_inverse=True)
        sums = np.bincount(places, weights=paid, minlength=len(ids))
        for episode_id, total in zip(ids.tolist(), sums.tolist(), strict=True):
            self._totals[episode_id] = self._totals.get(episode_id, 0.0) + total
