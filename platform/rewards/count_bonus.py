"""The bonus of caption keys by how often they were heard."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from onibi.platform.annotation.captions import NO_KEY
from onibi.platform.rewards.table import NEVER_ASKED, RewardTable


def key_count_bonus(
    table: RewardTable | None, caption_id: NDArray[Any], count: NDArray[Any], power: float
) -> NDArray[np.float32]:
    """maxⱼ 1 / Nⱼ^power over the keys of each row's caption that somebody may be asked about.

    Args:
        table: tells which keys are never asked about (bumps, prompts): they pay nothing. Of captions that it does not
            know yet, and without a table, every key counts.
        caption_id: [...] unsigned; 0, the empty caption, pays nothing.
        count: [..., K] Nⱼ; a key with N = 0 is not there.
        power: ≥ 0.
    Returns: [...] float32 in [0, 1].
    """
    asked = count > 0
    asked &= caption_id[..., None] != 0
    if table is not None and len(table.labelled):
        known = caption_id < len(table.caption_keys)
        keys = table.caption_keys[np.where(known, caption_id, 0).astype(np.int64)]
        never = (keys != NO_KEY) & (keys < len(table.labelled)) & known[..., None]
        never &= table.labelled[np.clip(keys, 0, len(table.labelled) - 1)] == NEVER_ASKED
        asked &= ~never
    least = np.where(asked, count, np.inf).min(axis=-1).astype(np.float64)
    paid: NDArray[np.float32] = np.where(asked.any(axis=-1), least**-power, 0.0).astype(np.float32)
    return paid
