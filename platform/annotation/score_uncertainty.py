"""How unsure a reward model is of each caption key: what is worth asking about."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from onibi.platform.rewards.training import MemberScores


def uncertainty(scores: MemberScores | None, keys: int) -> NDArray[np.float64]:
    """How unsure the newest reward model is of each key, higher is less sure; keys without a score are least sure.

        N ≥ 2 members:  the standard deviation of (sᵢ − mean sᵢ) / std sᵢ over members i
        one member:     −|p − ½|,  p = 1 / (1 + exp(−s)) where s are log-odds, of a ranking model
                                   p = 1 / (1 + exp(−(s − mean s) / std s))

    Members of a ranking model have no common scale, so each is normalised over the keys that it scored.

    Args:
        scores: None before the first training: all keys are equally unsure.
        keys: number of keys.
    Returns: [keys] float64, infinite where there is no score.
    """
    unsure = np.full(keys, np.inf)
    if scores is None or scores.members.shape[1] == 0:
        return unsure
    members = scores.members[:, :keys].astype(np.float64)
    spread = np.maximum(members.std(axis=1, keepdims=True), 1e-12)
    normal = (members - members.mean(axis=1, keepdims=True)) / spread
    if len(members) > 1:
        unsure[: members.shape[1]] = normal.std(axis=0)
    else:
        log_odds = members[0] if scores.compared is None else normal[0]
        p = 1 / (1 + np.exp(-np.clip(log_odds, -700.0, 700.0)))
        unsure[: members.shape[1]] = -np.abs(p - 0.5)
    return unsure
