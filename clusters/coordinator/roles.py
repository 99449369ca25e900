"""What role processes run at their start: picklable makers that the coordinator hands to the Ray shells."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from onibi.clusters.bonus_plan import make_sources
from onibi.clusters.run_plan import RunPlan
from onibi.clusters.run_state import (
    feed_state_of,
    newest_caption,
    open_feed,
    open_shard,
    replaces_another,
    restore_bonuses,
    restore_learner,
    ring_path,
)
from onibi.clusters.shard_plan import plan_of_shard
from onibi.learners.learner_actor import LearnerParts
from onibi.learners.learner_loop import LearnerLoop
from onibi.platform.checkpoint import Checkpoint
from onibi.platform.fragment import CaptionText
from onibi.platform.policy import Weights
from onibi.platform.replay.prefetched_feed import PrefetchedFeed
from onibi.platform.replay.ring.file import meeting_path
from onibi.platform.replay.shard import Resolve, Shard
from onibi.platform.rewards.table_log import TableLog


def open_run_shard(
    plan: RunPlan, run_id: str, captions: Sequence[CaptionText] | None, resolve: Resolve
) -> tuple[Shard, bool, int]:
    """The run's shard on this node, whether its ring is of an earlier session, and the ring's highest caption id."""
    path = ring_path(plan, run_id)
    _forget_meetings(path)
    shard, kept = open_shard(plan, run_id, resolve, captions)
    return shard, kept, 0 if captions is None else newest_caption(path)  # in a run's first ring there are none


def _forget_meetings(ring: Path) -> None:
    """Remove the files by which learners of earlier sessions found each other. One that was killed before its first
    checkpoint leaves its session's number to the next, whose learners would wait in vain for those that the file names.
    """
    any_incarnation = meeting_path(ring, 0).name.removesuffix("0") + "*"
    for meeting in ring.parent.glob(any_incarnation):
        meeting.unlink(missing_ok=True)


def build_learner(
    plan: RunPlan,
    ring: str,
    incarnation: int,
    checkpoint: Checkpoint | None,
    number: int,
    publish: Callable[[Weights], None],
    meeting: str | None = None,
) -> LearnerParts:
    """Learner, feed and loop in this process, restored from ``checkpoint`` where there is one.

    Of several learners that of ``number`` 0 publishes. All of them must be built at the same time, and meet at
    ``meeting``, as ``join_group`` takes it; None: at a file beside their ring.
    """
    # Here, as the shard's process imports this module, too, and has no need of torch.
    import torch

    from onibi.learners.device_copies import DeviceCopies
    from onibi.learners.worker_group import join_group

    path, learners = Path(ring), plan.settings.placement.learners
    group = None
    if learners > 1:
        group = join_group(number, learners, meeting or meeting_path(path, incarnation).absolute().as_uri())
    has_own_ring = plan.settings.placement.shards > 1
    plan, drawing = plan_of_shard(plan, number), 0 if has_own_ring else number
    learner = plan.make_learner()
    copies = getattr(learner, "copies", None) or DeviceCopies(torch.device("cpu"))
    ahead = plan.settings.learner.acceleration.prefetch_batches  # type: ignore[attr-defined]
    buffers = PrefetchedFeed.buffers_for(ahead)
    feed = open_feed(plan, path, plan.session, learner=drawing, buffers=buffers, empty=copies.empty)
    sources = make_sources(plan, path, drawing)
    if checkpoint is not None:
        restore_learner(learner, checkpoint)
        restore_bonuses(sources, checkpoint)
        state = feed_state_of(checkpoint, number)
        if state is not None:
            feed.restore(state)
        if drawing == 0 and not feed.begins_together:
            feed.rebase()
    if group is not None and feed.begins_together:
        begin = torch.from_numpy(feed.common_begin())
        group.copy_from_first([begin])
        feed.begin_at(begin.numpy())
    drawn_at_start = feed.drawn_rows
    if group is not None:
        group.all_agree()  # none draws before the first one has set the limiter's count
    source = PrefetchedFeed(feed, ahead, copies.send) if ahead else feed
    loop = LearnerLoop(
        learner,
        source,
        plan.make_mixer(),
        incarnation,
        publish if number == 0 else None,
        plan.settings.learner.publish_period_updates,  # type: ignore[attr-defined]
        faults=None if plan.faults is None else Path(plan.faults),
        sources=sources,
        replaces=replaces_another(incarnation),
    )
    table_log = None if number or plan.table_log is None else TableLog(Path(plan.table_log), incarnation)
    return LearnerParts(learner, source, loop, drawn_at_start, group, sources, table_log)
