"""What the annotation desk knows of its keys, as the columns of a reward table."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from onibi.platform.annotation.key_labels import KeyLabels
from onibi.platform.annotation.labels import HELPFUL_SCORE
from onibi.platform.rewards.table import LABELLED, NEVER_ASKED
from onibi.platform.rewards.table_chain import KeyFacts, RetrievalChain, TableColumns, build_values
from onibi.platform.rewards.table_component import RetrievalSettings, SimilaritySettings, TableComponentSettings
from onibi.platform.rewards.training import MemberScores

_NO_REWARD = RetrievalSettings()  # a run that pays no caption still tells which are labelled


def reward_columns(
    reward: TableComponentSettings | None,
    keys: KeyLabels,
    rows: NDArray[np.int64],
    scores: MemberScores | None,
    *,
    held_back: bool,
    seed: int,
) -> TableColumns:
    """Columns of the newest table.

    Args:
        reward: the run's table component; None pays nothing that counts.
        keys: their labels. For retrieval a score of ½ or more is helpful; similarity pays by the score itself.
        rows: [keys], how often each was met.
        scores: of the reward model; None before it has any.
        held_back: no label counts yet, nor what was learnt from one.
        seed: of the control ``permuted``.
    """
    reward = _NO_REWARD if reward is None else reward
    is_labelled = (keys.status == LABELLED) & (not held_back)
    given = keys.score if isinstance(reward, SimilaritySettings) else (keys.score >= HELPFUL_SCORE).astype(np.float32)
    scores = None if held_back else scores
    facts = KeyFacts(
        askable=keys.status != NEVER_ASKED,
        rows=rows,
        label=np.where(is_labelled, given, np.float32(np.nan)).astype(np.float32),
        compared=None if scores is None else _grown(scores.compared, len(keys)),
        pairs=0 if scores is None else scores.pairs,
        members=None if scores is None else scores.members,
        reference=None if scores is None else scores.reference,
        is_fitted=scores is not None and scores.is_fitted,
    )
    if held_back:
        return build_values(RetrievalChain(), facts)
    return build_values(reward, facts, control=reward.control, seed=seed)


def _grown(column: NDArray[np.bool_] | None, keys: int) -> NDArray[np.bool_] | None:
    if column is None:
        return None
    grown = np.zeros(keys, bool)
    grown[: len(column)] = column
    return grown
