"""Sums of a reward component over episodes that are spread over many fragments."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from onibi.platform.fragment import Fragment
from onibi.platform.rewards.pay_watch import NO_PAY, PaidRows, PayFigures, PayWatch
from onibi.platform.rewards.table import RewardTable, caption_rewards, first_paid_keys, rewards_by_key
from onibi.platform.spec import ROLE_STEP

_OPEN_EPISODES_MAX = 1 << 16


class EpisodeLedger:
    """Undiscounted caption reward of each open episode, before its coefficient; each step is paid by its time's table.

    Episodes that never end (their actor died) are forgotten, oldest first, past 65,536 open ones.

    Args:
        count_power: β.
        watch: books the same rows for the alarms; None where nobody watches.
    """

    def __init__(self, count_power: float, watch: PayWatch | None = None) -> None:
        self._count_power = count_power
        self._watch = watch
        self._totals: dict[int, float] = {}
        self._paid: NDArray[np.float64] = np.zeros(0, np.float64)

    @property
    def paid_by_key(self) -> NDArray[np.float64]:
        """[keys] reward that each key has brought so far; keys newer than the last table are left out. A copy."""
        return self._paid.copy()

    def restore(self, paid_by_key: NDArray[np.float64]) -> None:
        """Go on counting from ``paid_by_key``, [keys], of an earlier session of the run."""
        self._paid = np.array(paid_by_key, np.float64)

    def take_pay(self) -> PayFigures:
        """What the watch has to tell since the last time."""
        return NO_PAY if self._watch is None else self._watch.take()

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
        heard = bool(caption_id.any())  # else nobody was paid: a run without captions pays nothing for this book either
        if heard or self._watch is not None:
            self._book(fragment, caption_id, table, heard)
        if self._watch is not None:
            self._watch.close(fragment.episodes)
        closed = {episode.episode_id: self._totals.pop(episode.episode_id, 0.0) for episode in fragment.episodes}
        while len(self._totals) > _OPEN_EPISODES_MAX:
            self._totals.pop(next(iter(self._totals)))
        return closed

    def _book(self, fragment: Fragment, caption_id: NDArray[Any], table: RewardTable, heard: bool) -> None:
        columns = fragment.columns
        roles = columns["role"]
        steps = (np.arange(roles.shape[1]) < fragment.rows_per_lane[:, None]) & (roles == ROLE_STEP)
        episode_id = columns["episode_id"][steps]
        paid = by_key = new_keys = None
        if heard:
            captions, counts = caption_id[steps], columns["caption_count"][steps]
            paid, _ = caption_rewards(table, captions, counts, self._count_power)
            by_key = rewards_by_key(table, captions, counts, self._count_power)
            self._paid[: len(by_key)] += by_key
            ids, places = np.unique(episode_id, return_inverse=True)
            sums = np.bincount(places, weights=paid, minlength=len(ids))
            for each, total in zip(ids.tolist(), sums.tolist(), strict=True):
                self._totals[each] = self._totals.get(each, 0.0) + total
            new_keys = None if self._watch is None else first_paid_keys(table, captions, counts)
        if self._watch is not None:
            rows = PaidRows(episode_id, columns["step"][steps], columns["reward"][steps], paid, new_keys, by_key)
            self._watch.book(rows)
