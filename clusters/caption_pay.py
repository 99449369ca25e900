"""The book of what captions are paid: made for a run, kept in its checkpoints."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from onibi.clusters.run_plan import RunPlan
from onibi.clusters.run_state import state_of
from onibi.platform.checkpoint import Checkpoint
from onibi.platform.rewards.episode_ledger import EpisodeLedger
from onibi.platform.rewards.pay_watch import PayWatch

PAID = "paid"
"""The table of a checkpoint with what each key was paid, by key index."""


def make_ledger(plan: RunPlan, checkpoint: Checkpoint | None) -> EpisodeLedger:
    """The ledger of a session, going on from a checkpoint's; watched where captions are paid at all."""
    settings = plan.settings
    intrinsic = settings.rewards.intrinsic
    if intrinsic is None:
        return EpisodeLedger(0.0)
    discount: float = settings.learner.discount  # type: ignore[attr-defined]
    env_steps = 0 if checkpoint is None else state_of(checkpoint).env_steps
    watch = PayWatch(
        settings.rewards,
        discount,
        settings.alarms.half_life_steps,
        env_steps=env_steps,
        steps_per_row=settings.placement.shards,
    )
    ledger = EpisodeLedger(intrinsic.count_power, watch)
    if checkpoint is not None and PAID in checkpoint.tables and plan.shard == 0:  # the first one's: they are summed
        ledger.restore(checkpoint.tables[PAID]["paid"].to_numpy())
    return ledger


def with_pay(tables: Mapping[str, pa.Table], paid_by_key: NDArray[np.float64]) -> dict[str, pa.Table]:
    """A checkpoint's tables, with what each key was paid so far."""
    return {**tables, PAID: pa.table({"paid": paid_by_key})}
