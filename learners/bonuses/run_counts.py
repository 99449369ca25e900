"""Bonuses for what is rare in the whole run: caption keys, and observations by a hash.

Each new row is counted once. A row drawn later is paid by the counts of that moment, so what has become common pays
less in all rows of replay. Counting by a hash: Tang et al. 2017, arXiv 1611.04717 (here of the stored bytes: two
observations share a count by chance alone).
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onibi.learners.bonuses.bonus_module import ModulePlace, State, part_of, prefixed
from onibi.platform.annotation.captions import NO_KEY
from onibi.platform.errors import CheckpointError
from onibi.platform.replay.row_view import RowView
from onibi.platform.replay.transition_intake import TransitionIntake
from onibi.platform.rewards.bonus_settings import KeyCountsSettings, ObservationCountsSettings
from onibi.platform.rewards.count_bonus import key_count_bonus
from onibi.platform.rewards.table import RewardTable
from onibi.platform.spec import ROLE_STEP

_ROWS_AT_ONCE = 4096
_HASH_SEED = 20_241_121  # of the multipliers: the same in every process and session
_MIX = np.uint64(0x9E3779B97F4A7C15)


class KeyRunCounts:
    """maxⱼ 1 / n(keyⱼ)^power, n the rows of the run in which a key was heard.

    Keys come from the reward table. A caption that it does not know yet is counted as a key of its own.

    Args:
        settings: the power.
        place: the ring.
    """

    def __init__(self, settings: KeyCountsSettings, place: ModulePlace) -> None:
        self._power = settings.power
        self._intake = TransitionIntake(place.reader, lanes=None, leaves=(), columns=("caption_id",))
        self._rows: NDArray[np.int64] = np.zeros(64, np.int64)  # by caption

    def learn(self) -> None:
        """See ``BonusModule``."""
        while (rows := self._intake.take(1, _ROWS_AT_ONCE)) is not None:
            counted = np.bincount(rows.columns["caption_id"][rows.role == ROLE_STEP])
            if len(counted) > len(self._rows):
                self._rows = np.concatenate([self._rows, np.zeros(len(counted), np.int64)])
            self._rows[: len(counted)] += counted

    def pay(self, view: RowView, table: RewardTable | None) -> NDArray[np.float32]:
        """See ``BonusModule``."""
        captions = view.batch.caption_id.astype(np.int64)
        own = self._rows[np.minimum(captions, len(self._rows) - 1)] * (captions < len(self._rows))
        counts = np.zeros((*captions.shape, view.batch.caption_count.shape[-1]), np.int64)
        counts[..., 0] = np.maximum(own, 1)
        if table is not None:
            known = captions < len(table.caption_keys)
            keys = table.caption_keys[np.where(known, captions, 0)]
            by_key = self.by_key(table)
            told = np.maximum(by_key[np.maximum(keys, 0)], 1) * (keys != NO_KEY)
            counts = np.where(known[..., None], told, counts)
        return key_count_bonus(table, captions, counts, self._power)

    def by_key(self, table: RewardTable) -> NDArray[np.int64]:
        """[keys, at least 1] rows in which each key of the table was heard."""
        captions = min(len(self._rows), len(table.caption_keys))
        keys, rows = table.caption_keys[:captions], np.repeat(self._rows[:captions, None], table.keys_per_caption, 1)
        there = keys != NO_KEY
        heard = np.bincount(keys[there], weights=rows[there], minlength=max(1, int(table.caption_keys.max()) + 1))
        return heard.astype(np.int64)

    def metrics(self) -> dict[str, float]:
        """See ``BonusModule``."""
        return {"captions": float(np.count_nonzero(self._rows[1:])), "lost_rows": float(self._intake.lost_rows)}

    def weights(self) -> dict[str, NDArray[Any]]:
        """See ``BonusModule``."""
        return {}

    def state(self) -> dict[str, NDArray[Any]]:
        """See ``BonusModule``."""
        return {"rows": self._rows.copy(), **prefixed("intake", self._intake.state())}

    def restore(self, state: State) -> None:
        """See ``BonusModule``."""
        self._rows = np.array(state["rows"], np.int64)
        self._intake.restore(part_of("intake", state))


class ObservationRunCounts:
    """1 / n(o′)^power, n the rows of the run with this observation.

    Args:
        settings: the power, and how many counts there are.
        place: the ring and the leaves.
    """

    def __init__(self, settings: ObservationCountsSettings, place: ModulePlace) -> None:
        self._power, self._leaves = settings.power, tuple(leaf.name for leaf in place.leaves)
        self._intake = TransitionIntake(place.reader, lanes=None, leaves=self._leaves)
        self._counts: NDArray[np.int64] = np.zeros(settings.table_rows, np.int64)

    def learn(self) -> None:
        """See ``BonusModule``."""
        while (rows := self._intake.take(1, _ROWS_AT_ONCE)) is not None:
            at = self._places([rows.observation[name] for name in self._leaves], len(rows))
            np.add.at(self._counts, at, 1)

    def pay(self, view: RowView, table: RewardTable | None) -> NDArray[np.float32]:  # noqa: ARG002 - of the contract
        """See ``BonusModule``."""
        shape = view.used.shape
        leaves = [view.after(name) for name in self._leaves]
        flat = [leaf.reshape(-1, *leaf.shape[2:]) for leaf in leaves]
        counts = np.maximum(self._counts[self._places(flat, int(np.prod(shape)))], 1)
        paid: NDArray[np.float32] = (counts.astype(np.float64) ** -self._power).astype(np.float32).reshape(shape)
        return paid

    def _places(self, leaves: list[NDArray[Any]], rows: int) -> NDArray[np.int64]:
        parts = [np.ascontiguousarray(leaf).view(np.uint8).reshape(rows, -1) for leaf in leaves]
        width = sum(part.shape[1] for part in parts)
        parts.append(np.zeros((rows, -width % 8), np.uint8))
        words = np.ascontiguousarray(np.concatenate(parts, axis=1)).view(np.uint64)
        return (hash_words(words) % np.uint64(len(self._counts))).astype(np.int64)

    def metrics(self) -> dict[str, float]:
        """See ``BonusModule``."""
        seen = np.count_nonzero(self._counts)
        return {
            "observations": float(seen),
            "table_share": float(seen) / len(self._counts),
            "lost_rows": float(self._intake.lost_rows),
        }

    def weights(self) -> dict[str, NDArray[Any]]:
        """See ``BonusModule``."""
        return {}

    def state(self) -> dict[str, NDArray[Any]]:
        """See ``BonusModule``."""
        at = np.flatnonzero(self._counts)  # most are 0: a checkpoint holds those that are not
        return {
            "size": np.array(len(self._counts), np.int64),
            "places": at,
            "counts": self._counts[at],
            **prefixed("intake", self._intake.state()),
        }

    def restore(self, state: State) -> None:
        """See ``BonusModule``."""
        if int(state["size"]) != len(self._counts):
            raise CheckpointError(
                f"the checkpoint's observation counts have {int(state['size'])} places, table_rows is "
                f"{len(self._counts)}: set it back, or start a new run."
            )
        self._counts[:] = 0
        self._counts[state["places"]] = state["counts"]
        self._intake.restore(part_of("intake", state))


def hash_words(words: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """A 64-bit hash of each row [m, W]: Σ wᵢ·mᵢ modulo 2⁶⁴ with random odd multipliers, its bits then mixed."""
    multipliers = _multipliers(words.shape[1])
    # Words are spread first: the bits of floats are mostly low zeros, which a product modulo 2⁶⁴ would keep.
    spread = words ^ (words >> np.uint64(32))
    total: NDArray[np.uint64] = (spread * multipliers).sum(axis=1, dtype=np.uint64)
    total ^= total >> np.uint64(32)
    total *= _MIX
    total ^= total >> np.uint64(29)
    return total


@lru_cache(maxsize=16)
def _multipliers(width: int) -> NDArray[np.uint64]:
    drawn: NDArray[np.uint64] = np.random.default_rng(_HASH_SEED).integers(0, 1 << 63, width, dtype=np.uint64)
    return drawn * np.uint64(2) + np.uint64(1)
