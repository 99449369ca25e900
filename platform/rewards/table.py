"""Reward tables: what each caption key is worth now, and the reward of rows under it (docs/annotation.md).

A table is published like weights. A row's reward is computed when the row is trained on, so a label that comes late
re-labels every row that is already in replay.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onibi.platform.annotation.captions import NO_KEY
from onibi.platform.errors import CaptionError

UNLABELLED, LABELLED, NEVER_ASKED = 0, 1, 2
"""Values of ``RewardTable.labelled``: no label yet; a valid label; a bump or prompt, worth 0 without a question."""


@dataclass(frozen=True)
class RewardTable:
    """One version of what keys are worth; captions and keys that are newer count as unlabelled, worth 0."""

    version: int
    caption_keys: NDArray[np.int32]
    """[captions, K], key indices of each caption, ``NO_KEY`` pads."""
    value: NDArray[np.float32]
    """[keys], r_int of each key; 0 where unlabelled."""
    labelled: NDArray[np.uint8]
    """[keys], ``UNLABELLED``, ``LABELLED`` or ``NEVER_ASKED``."""
    columns: Mapping[str, NDArray[np.float32]] = field(default_factory=dict)
    """Each [keys]: what else is known of them, by name (deviation, members)."""

    def __post_init__(self) -> None:
        if self.caption_keys.ndim != 2 or self.value.shape != self.labelled.shape or self.value.ndim != 1:
            raise CaptionError(
                f"reward table {self.version}: caption_keys {self.caption_keys.shape}, value "
                f"{self.value.shape}, labelled {self.labelled.shape}; expected [captions, K], [keys], [keys]"
            )
        for name, column in self.columns.items():
            if column.shape != self.value.shape:
                raise CaptionError(
                    f"reward table {self.version}: column {name!r} has shape {column.shape}, expected "
                    f"{self.value.shape}: one number for each key"
                )

    @cached_property
    def caption_values(self) -> NDArray[np.float32]:
        """[captions + 1, K], value of each caption's keys, 0 for pads; the last row stands for unknown captions."""
        values = _known(self.value, self.caption_keys, np.float32(0))
        return np.concatenate([values, np.zeros((1, self.keys_per_caption), np.float32)])

    @cached_property
    def caption_status(self) -> NDArray[np.uint8]:
        """[captions + 1]: ``UNLABELLED`` where a key waits for its label, ``LABELLED`` where none does,
        ``NEVER_ASKED`` where there is nothing to ask (the empty caption, bumps, prompts). The last one is
        ``UNLABELLED``.
        """
        states = _known(self.labelled, self.caption_keys, np.uint8(UNLABELLED))
        present = self.caption_keys != NO_KEY
        status = np.where((states == LABELLED).any(1, where=present), LABELLED, NEVER_ASKED).astype(np.uint8)
        status[(states == UNLABELLED).any(1, where=present)] = UNLABELLED
        return np.append(status, np.uint8(UNLABELLED))

    @property
    def keys_per_caption(self) -> int:
        """K."""
        return int(self.caption_keys.shape[1])

    def caption_rows(self, caption_id: NDArray[Any]) -> NDArray[np.int64]:
        """Rows of ``caption_values`` and ``caption_status`` for ids of any shape; unknown ones get the last row."""
        rows: NDArray[np.int64] = np.minimum(caption_id, len(self.caption_keys)).astype(np.int64)
        return rows


def caption_rewards(
    table: RewardTable, caption_id: NDArray[Any], caption_count: NDArray[np.uint16], power: float
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Intrinsic reward of rows  r = maxⱼ value[keyⱼ] / Nⱼ^β  over a row's keys   (ONI, arXiv 2410.23022).

    Args:
        table: the version to use for all of them.
        caption_id: [...] unsigned; 0 is the empty caption, ids that are newer than the table are unlabelled.
        caption_count: [..., K] uint16, Nⱼ from 1; a key with N = 0 was not counted and pays nothing.
        power: β ≥ 0; 0 pays a key the same each time.
    Returns: reward [...] float32 and labelled [...] bool: False where the caption has a key that waits for its label.
        With values in [0, 1] rewards are in [0, 1]; a key pays at most Σ N^−β times its value in an episode,
        1.202 times for β = 3.
    Raises: CaptionError where shapes disagree.
    """
    rows = table.caption_rows(caption_id)
    paid = _key_rewards(table, rows, caption_count, power)
    return paid.max(axis=-1), table.caption_status[rows] != UNLABELLED


def rewards_by_key(
    table: RewardTable, caption_id: NDArray[Any], caption_count: NDArray[np.uint16], power: float
) -> NDArray[np.float64]:
    """What each key paid over rows: a row's reward belongs to the key that gave its maximum, to equals in equal parts.

    Args: as for ``caption_rewards``.
    Returns: [keys] float64, summing to the sum of ``caption_rewards``.
    """
    rows = table.caption_rows(caption_id).ravel()
    paid = _key_rewards(table, rows, caption_count.reshape(len(rows), -1), power)
    reward = paid.max(axis=1)
    pays = reward != 0
    best = paid[pays] == reward[pays, None]
    parts = best * (reward[pays] / best.sum(axis=1))[:, None]
    paid_by_key: NDArray[np.float64] = np.zeros(len(table.value), np.float64)
    np.add.at(paid_by_key, table.caption_keys[rows[pays]][best], parts[best])
    return paid_by_key


def first_paid_keys(
    table: RewardTable, caption_id: NDArray[Any], caption_count: NDArray[np.uint16]
) -> NDArray[np.int64]:
    """[...] how many of a row's keys are worth something and heard for the first time in their episode.

    Args: as for ``caption_rewards``.
    """
    values = table.caption_values[table.caption_rows(caption_id)]
    first: NDArray[np.int64] = ((values > 0) & (caption_count == 1)).sum(axis=-1)
    return first


def _key_rewards(
    table: RewardTable, rows: NDArray[np.int64], caption_count: NDArray[np.uint16], power: float
) -> NDArray[np.float32]:
    if caption_count.shape != (*rows.shape, table.keys_per_caption):
        raise CaptionError(
            f"caption_rewards: caption_count has shape {caption_count.shape}, expected "
            f"{(*rows.shape, table.keys_per_caption)}: one count for each of the K keys of a caption"
        )
    return table.caption_values[rows] * _inverse_powers(power)[caption_count]


@lru_cache(maxsize=8)
def _inverse_powers(power: float) -> NDArray[np.float32]:
    """[65536] N^−β for every uint16 N, and 0 for N = 0: a look-up is cheaper than a power per row."""
    if not power >= 0:
        raise CaptionError(
            f"count_power is {power}; it must be 0 or more, or hearing a caption again would pay more each time"
        )
    counts = np.arange(1, 1 << 16, dtype=np.float64)
    return np.concatenate([np.zeros(1), counts**-power]).astype(np.float32)


def _known(column: NDArray[Any], keys: NDArray[np.int32], otherwise: Any) -> NDArray[Any]:
    """``column[keys]``, and ``otherwise`` for pads and for keys that are newer than the column."""
    return np.append(column, otherwise)[np.where((keys < 0) | (keys >= len(column)), len(column), keys)]
