"""What role processes run at their start: picklable makers that the coordinator hands to the Ray shells."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from onibi.clusters.run_plan import RunPlan
from onibi.clusters.run_state import (
    feed_state_of,
    newest_caption,
    open_feed,
    open_shard,
    remove_stale_rings,
    restore_learner,
    ring_path,
)
from onibi.learners.learner_actor import LearnerParts
from onibi.learners.learner_loop import LearnerLoop
from onibi.platform.checkpoint import Checkpoint
from onibi.platform.fragment import CaptionText
from onibi.platform.policy import Weights
from onibi.platform.replay.shard import Resolve, Shard


def open_run_shard(
    plan: RunPlan, run_id: str, captions: Sequence[CaptionText] | None, resolve: Resolve
) -> tuple[Shard, bool, int]:
    """The run's shard on this node, whether its ring is of an earlier session, and the ring's highest caption id."""
    path = ring_path(plan, run_id)
    remove_stale_rings(plan.settings.replay.folder, keep=path)
    shard, kept = open_shard(plan, run_id, resolve, captions)
    return shard, kept, newest_caption(path) if kept else 0


def build_learner(
    plan: RunPlan,
    ring: str,
    session: int,
    incarnation: int,
    checkpoint: Checkpoint | None,
    publish: Callable[[Weights], None],
) -> LearnerParts:
    """Learner, feed and loop in this process, restored from ``checkpoint`` where there is one."""
    feed = open_feed(plan, Path(ring), session)
    learner = plan.make_learner()
    if checkpoint is not None:
        restore_learner(learner, checkpoint)
        feed.restore(feed_state_of(checkpoint))
        feed.rebase()
    loop = LearnerLoop(
        learner,
        feed,
        plan.make_mixer(),
        incarnation,
        publish,
        plan.settings.learner.publish_period_updates,  # type: ignore[attr-defined]
    )
    return LearnerParts(learner, feed, loop)
