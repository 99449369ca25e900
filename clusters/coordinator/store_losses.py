"""Sessions under Ray, one after the other: where replay shard or hub dies, all roles begin anew by themselves."""

from __future__ import annotations

import logging
from collections.abc import Callable

from onibi.clusters.coordinator.ray_run import RayRun
from onibi.clusters.run_journal import RunJournal, RunResult, go_on_from
from onibi.clusters.run_plan import RunPlan
from onibi.platform.checkpoint import Checkpoint
from onibi.platform.counted import counted
from onibi.platform.errors import CheckpointError, StoreLostError

log = logging.getLogger(__name__)

_ALLOWED = 5
"""Losses without a new checkpoint between: what dies again and again, for lack of memory say, is no accident."""


def run_through_losses(
    plan: RunPlan,
    run_id: str,
    journal: RunJournal,
    should_stop: Callable[[], bool],
    checkpoint: Checkpoint | None,
) -> RunResult:
    """Train on the connected Ray cluster until the budget is used up, as ``onibi resume`` would after each loss of a
    store: from the last checkpoint, with the ring that is still in memory or the rows of the log.

    Args: as those of ``RayRun``.
    Raises: StoreLostError where there is no checkpoint yet, the end was asked for, or a sixth store died without a new
        checkpoint since the first; what ``RayRun.run`` raises.
    """
    losses = 0
    while True:
        run = RayRun(plan, run_id, journal, should_stop, checkpoint)
        try:
            return run.run()
        except StoreLostError as loss:
            try:
                newest = journal.last_checkpoint()
            except CheckpointError:
                raise loss from None
            saved = checkpoint is None or newest.step > checkpoint.step
            losses = 1 if saved else losses + 1
            if should_stop() or losses > _ALLOWED:
                raise
            log.warning(
                "%s; all roles begin anew from the checkpoint of %s",
                str(loss).partition(". ")[0],
                counted(newest.step, "env step"),
            )
            journal.note("a store died; all roles begin anew from the last checkpoint")
            checkpoint = go_on_from(journal, newest, plan.settings.evaluation.period_env_steps)
