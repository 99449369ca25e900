"""What a run needs to go on: opened stores, restored learner and desk, counters. Shared by both run loops."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from onibi.clusters.run_plan import ROLE_ANNOTATION, ROLE_SAMPLER, RunPlan, role_seed
from onibi.learners.learner import Learner
from onibi.platform.annotation.captions import CaptionTable, lost_caption
from onibi.platform.annotation.desk import AnnotationDesk
from onibi.platform.checkpoint import Checkpoint, CheckpointParts
from onibi.platform.counted import counted
from onibi.platform.errors import OnibiError, ReplayError
from onibi.platform.fragment import CaptionText
from onibi.platform.replay.datasets.ring_filling import RingFilling
from onibi.platform.replay.feed import ReplayFeed
from onibi.platform.replay.feed_state import FeedState
from onibi.platform.replay.limiter import Limiter
from onibi.platform.replay.log.log_files import open_files
from onibi.platform.replay.log.log_reader import ReplayLog
from onibi.platform.replay.log.log_writer import LogWriter
from onibi.platform.replay.ring.file import RING_SUFFIX, may_lack_rows, orphans, remove_orphan, remove_ring
from onibi.platform.replay.ring.folder import available_memory_bytes, free_bytes, in_memory
from onibi.platform.replay.ring.layout import RingLayout, lane_slots, read_header
from onibi.platform.replay.ring.reader import RingReader
from onibi.platform.replay.ring.writer import RingWriter
from onibi.platform.replay.samplers.draws import SlabDraws
from onibi.platform.replay.samplers.window_gather import Empty
from onibi.platform.replay.shard import Resolve, Shard

if TYPE_CHECKING:
    from onibi.learners.bonuses.reward_sources import RewardSources

log = logging.getLogger(__name__)

_RING_PREFIX = "onibi-"
_INCARNATIONS_PER_SESSION = 1_000  # of learners: the first one, and those that replace it
_BONUSES = "bonuses"  # tensors of a checkpoint


@dataclass(frozen=True, kw_only=True)
class RunState:
    """The counters in a checkpoint. ``inserted_base`` are env steps that were made before the ring began to count."""

    env_steps: int = 0
    inserted_base: int = 0
    updates: int = 0
    seconds: float = 0.0  # of training, over all sessions
    drawn_rows: int = 0  # over all sessions
    session: int = 0  # how often the run was resumed
    next_evaluation: int = 0  # env steps

    def resumed(self, inserted: int, ring_kept: bool) -> RunState:
        """The state to go on with: with the ring of the last session its younger rows count, a new one counts anew.

        One that has counted nothing was left by a session that was killed before it wrote down that it began it. Where
        one of several is new, ``ring_kept`` is False, and rows of the others that are younger do not count.
        """
        base = self.inserted_base if ring_kept and inserted else self.env_steps - inserted
        return replace(self, session=self.session + 1, inserted_base=base, env_steps=base + inserted)

    def rows_until(self, max_env_steps: int | None) -> float:
        """How many step rows the ring has taken in all when the budget is used up; infinite without one."""
        return math.inf if max_env_steps is None else max_env_steps - self.inserted_base

    def evaluated(self, period: int | None) -> RunState:
        """The state after an evaluation, with the env steps of the next one; None has none at fixed steps."""
        return self if period is None else replace(self, next_evaluation=(self.env_steps // period + 1) * period)

    @property
    def learner_incarnation(self) -> int:
        """The first incarnation of a learner in this session; later ones in it add 1."""
        return self.session * _INCARNATIONS_PER_SESSION


def replaces_another(incarnation: int) -> bool:
    """Whether a learner of this incarnation stands in for one of the same session that died."""
    return incarnation % _INCARNATIONS_PER_SESSION > 0


def state_of(checkpoint: Checkpoint) -> RunState:
    """The counters of a checkpoint."""
    return RunState(**checkpoint.state["run"])


def with_unplayed_evaluation(
    checkpoint: Checkpoint, evaluations: Sequence[Mapping[str, Any]], period: int | None
) -> Checkpoint:
    """The checkpoint with its last evaluation due again where that was begun, so counted, and never booked: the session
    ended meanwhile.

    Args:
        checkpoint: to go on from.
        evaluations: booked up to it.
        period: of evaluations, in env steps.
    """
    state = state_of(checkpoint)
    if period is None or any(row["env_steps"] >= state.next_evaluation - period for row in evaluations):
        return checkpoint
    return replace(checkpoint, state={**checkpoint.state, "run": asdict(replace(state, next_evaluation=0))})


def checkpoint_parts(
    state: RunState,
    learner_state: Mapping[str, Any],
    desk_state: Mapping[str, pa.Table],
    feed_state: FeedState,
    other_feeds: Sequence[FeedState] = (),
    bonus_state: Mapping[str, Any] | None = None,
) -> CheckpointParts:
    """Everything that a checkpoint holds: learner and optimizer, annotation tables, counters, random states.

    ``other_feeds`` are those of the learners after the first, ``bonus_state`` that of the bonuses' modules.
    """
    tensors: dict[str, Mapping[str, Any]] = {"learner": learner_state}
    if bonus_state:
        tensors[_BONUSES] = bonus_state
    plain: dict[str, Any] = {"run": asdict(state)}
    for number, feed in enumerate((feed_state, *other_feeds)):
        plain[_feed_name(number)] = dict(feed.plain)
        if feed.arrays:
            tensors[_feed_name(number)] = feed.arrays
    return CheckpointParts(tensors=tensors, tables=desk_state, state=plain)


def feed_state_of(checkpoint: Checkpoint, learner: int = 0) -> FeedState | None:
    """What the feed of a learner goes on from; None where the checkpoint is of fewer learners."""
    name = _feed_name(learner)
    if name not in checkpoint.state:
        return None
    return FeedState(plain=checkpoint.state[name], arrays=checkpoint.tensors.get(name, {}))


def _feed_name(learner: int) -> str:
    return "feed" if learner == 0 else f"feed-{learner}"


def renewed_parts(checkpoint: Checkpoint, state: RunState) -> CheckpointParts:
    """The checkpoint that a session resumed from, with the counters that it goes on with.

    Saved before anything else: whoever resumes after a kill must have a session number of its own, and know which env
    steps a new ring leaves out.
    """
    return CheckpointParts(
        tensors=checkpoint.tensors, tables=checkpoint.tables, state={**checkpoint.state, "run": asdict(state)}
    )


def restore_learner(learner: Learner, checkpoint: Checkpoint) -> None:
    """Take the learner's tensors from a checkpoint."""
    import torch

    learner.load_state_dict({name: torch.from_numpy(array) for name, array in checkpoint.tensors["learner"].items()})


def restore_bonuses(sources: RewardSources | None, checkpoint: Checkpoint) -> None:
    """Take the bonuses' state from a checkpoint. Raises: CheckpointError where it does not fit."""
    if sources is not None:
        sources.restore(checkpoint.tensors.get(_BONUSES, {}))


def ring_path(plan: RunPlan, run_id: str) -> Path:
    """Where the run's ring lies."""
    number = f"-{plan.shard}" if plan.shard else ""
    return Path(plan.settings.replay.folder) / f"{_RING_PREFIX}{run_id}{number}{RING_SUFFIX}"


def make_limiter(plan: RunPlan) -> Limiter:
    """The limiter, checked against the largest fragment and the batch. Raises: ConfigError, with the sum."""
    rollout, replay, draws = plan.settings.actors.rollout, plan.settings.replay, plan.needs.draws
    fragment_rows = rollout.envs_per_actor * rollout.fragment_steps_max
    if isinstance(draws, SlabDraws):
        return Limiter.for_slabs(
            replay.limiter,
            draws,
            lanes=plan.lanes,
            lanes_per_actor=rollout.envs_per_actor,
            fragment_rows=fragment_rows,
            slots=lane_slots(replay.capacity_rows, plan.lanes),
            learners=plan.settings.placement.learners,
        )
    return Limiter.from_settings(
        replay.limiter,
        fragment_rows=fragment_rows,
        batch_rows=draws.batch_rows * plan.settings.placement.learners,
        capacity_rows=replay.capacity_rows,
        # A ring may have room for more actors than the run has: what they would fill stays empty.
        reachable_rows=min(plan.settings.actors.count, plan.groups)
        * rollout.envs_per_actor
        * (lane_slots(replay.capacity_rows, plan.lanes) - 1),
    )


def captions_of(checkpoint: Checkpoint) -> list[CaptionText]:
    """The captions that a checkpoint knows, by their id."""
    table = CaptionTable.from_arrow(dict(checkpoint.tables))
    return [table.caption(index) for index in range(len(table))]


def told_of_ring(rows: int, kept: bool) -> str:
    """What is told where a run is resumed: whose ring it goes on with, of so many readable rows."""
    if kept:
        return f"the replay ring of the killed session is there still, with {counted(rows, 'row')}"
    begin = f"begins with {counted(rows, 'row')} of the log" if rows else "fills from play before learning goes on"
    return f"the replay ring is new: it {begin}"


def open_shard(
    plan: RunPlan, run_id: str, resolve: Resolve, captions: Sequence[CaptionText] | None
) -> tuple[Shard, bool]:
    """The run's shard with its log, and whether its ring is that of an earlier session.

    Where that ring is gone, the new one begins with the newest rows of the log, for learners that draw rows again.

    Args:
        captions: those that the session resumes with, by id; None starts anew.
    Raises: ReplayError where the memory is not there, or the log's place cannot be written.
    """
    limiter = make_limiter(plan)  # refused before a ring is touched
    path = ring_path(plan, run_id)
    kept = captions is not None and path.exists()
    if kept and may_lack_rows(path):
        log.warning("%s: the machine was started anew since this ring was made; it is made again", path)
        remove_ring(path)
        kept = False
    if kept and (changes := _changes(read_header(path).layout, _layout(plan, run_id))):
        log.warning("%s: it was made with other settings (%s); it is made again", path, ", ".join(changes))
        remove_ring(path)
        kept = False
    if kept:
        shard = Shard.reopen(path, run_id=run_id, limiter=limiter, resolve=resolve)
    else:
        filling = None if captions is None else _filling(plan)
        shard = Shard(_create_ring(plan, path, run_id, filling), limiter, resolve)
    if plan.log_location is None:
        return shard, kept
    try:
        files = open_files(plan.log_location, create=True)
        settings = plan.settings.replay.log
        known = dict(enumerate(captions or ()))
        shard.attach_log(LogWriter(settings, files, path, run_id=run_id, shard=plan.shard, captions=known))
    except (OSError, ReplayError) as error:
        shard.close()
        if not kept:
            remove_ring(path)
        if isinstance(error, ReplayError):
            raise
        raise ReplayError(
            f"the replay log cannot be kept in {plan.log_location}: {error}. Set replay.log.url to a place that can be "
            "written, or replay.log.enabled to false"
        ) from error
    return shard, kept


def _filling(plan: RunPlan) -> RingFilling | None:
    """What puts the log's newest rows into a new ring; None where there are none, or its learner draws rows once."""
    if plan.log_location is None or isinstance(plan.needs.draws, SlabDraws):
        return None
    try:
        source = ReplayLog(plan.log_location)
    except (OnibiError, OSError, pa.ArrowException):
        return None  # it was off until now; or it cannot be read, which opening it for writing says
    return RingFilling(
        source,
        {(plan.shard, lane): lane for lane in range(plan.lanes)},
        counted=False,  # play goes on: what the limiter and the budget count begins with its rows
        on_damage=lambda error: log.warning("its rows are not in the new ring: %s", error),
    )


def _layout(plan: RunPlan, run_id: str) -> RingLayout:
    return RingLayout(
        spec=plan.spec,
        groups=plan.groups,
        lanes_per_group=plan.settings.actors.rollout.envs_per_actor,
        slots=lane_slots(plan.settings.replay.capacity_rows, plan.lanes),
        window_rows=plan.needs.draws.window_rows + (0 if plan.stack is None else plan.stack.look_back),
        run_id=run_id,
    )


def _changes(there: RingLayout, wanted: RingLayout) -> list[str]:
    """What keeps a ring from being gone on with, by name."""
    changes = [name for name in ("groups", "lanes_per_group", "slots") if getattr(there, name) != getattr(wanted, name)]
    if there.spec != wanted.spec:
        changes.append("columns")
    if there.window_rows < wanted.window_rows:
        changes.append("window_rows")
    return changes


def _create_ring(plan: RunPlan, path: Path, run_id: str, filling: RingFilling | None) -> RingWriter:
    layout = _layout(plan, run_id)
    if path.parent.is_dir():
        make_room(path.parent, layout.offsets().file_bytes)
    return RingWriter.of_layout(path, layout, None if filling is None else filling.fill)


def open_feed(
    plan: RunPlan,
    path: Path,
    session: int,
    *,
    learner: int = 0,
    buffers: int = 2,
    empty: Empty = np.empty,
) -> ReplayFeed:
    """The feed of a learner from the ring at ``path``; the last two arguments as those of ``ReplayFeed``."""
    learners = plan.settings.placement.learners
    lanes = None if learners == 1 else range(learner, plan.lanes, learners)
    numbers = [each for each in (learner or plan.shard,) if learners > 1 or plan.shard]  # each its own random numbers
    rng = np.random.default_rng(role_seed(plan.settings, ROLE_SAMPLER, session, *numbers))
    return ReplayFeed(
        RingReader(path),
        plan.needs.draws,
        make_limiter(plan),
        rng,
        lanes=lanes,
        buffers=buffers,
        empty=empty,
        gather_threads=plan.settings.learner.acceleration.gather_threads,  # type: ignore[attr-defined]
        stack=plan.stack,
        learner=learner,
        learners=learners,
    )


def newest_caption(ring: Path) -> int:
    """The highest caption id in a ring's rows."""
    reader = RingReader(ring)
    try:
        return int(reader.columns["caption_id"].max(initial=0))
    finally:
        reader.close()


def cover_lost_captions(desk: AnnotationDesk, newest: int, logged: Mapping[int, CaptionText]) -> int:
    """Give the caption ids that rows younger than the checkpoint have their texts back.

    Those in the log are read from it. Ids up to ``newest``, the highest in the ring, whose texts died with the process
    that knew them are reserved, so that no new caption gets them; such rows pay nothing for their caption.
    Returns: how many ids are lost.
    """
    younger = range(len(desk.captions), max(newest, *logged, 0) + 1)
    desk.intern([logged.get(index) or lost_caption(index) for index in younger])
    lost = [index for index in younger if index not in logged]
    if lost:
        log.warning("%d captions of rows younger than the checkpoint are lost; those rows pay nothing", len(lost))
    return len(lost)


def make_room(folder: Path, needed_bytes: int) -> list[Path]:
    """Remove rings of killed runs, the oldest first, until there is room; the others are left for `onibi resume`.

    What is no whole ring is removed in any case. Room in memory is half of what the machine could still give: a ring
    is not all that a run needs.

    Returns: what was removed.
    """
    left = [each for each in orphans(folder) if each.path.name.startswith(_RING_PREFIX)]
    left.sort(key=lambda ring: ring.created_unix_ns)
    removed = []
    while left and (left[0].run_id is None or _room_for_rings(folder) < needed_bytes):
        oldest = left.pop(0)
        if remove_orphan(oldest):
            log.warning("removed %s, which a killed run had left: room for another ring was needed", oldest.path)
            removed.append(oldest.path)
    if left:
        taken = sum(ring.bytes for ring in left) / 2**20
        rings = counted(len(left), "ring")
        log.warning("%s of killed runs in %s, %.0f MiB in all: see `onibi doctor`", rings, folder, taken)
    return removed


def _room_for_rings(folder: Path) -> int:
    free, memory = free_bytes(folder), available_memory_bytes()
    return min(free, memory // 2) if memory and in_memory(folder) else free


def make_desk(plan: RunPlan, clock: Callable[[], float]) -> AnnotationDesk:
    """An empty annotation desk for the run."""
    return AnnotationDesk(
        plan.settings.annotation,
        keys_per_caption=plan.spec.keys_per_caption,
        key_version=plan.key_version,
        judges=list(plan.judges().values()),
        clock=clock,
        asks="pairs" if getattr(plan.settings.rewards.intrinsic, "kind", None) == "ranking" else "keys",
        reward=plan.settings.rewards.intrinsic,
        window_rows=plan.settings.replay.capacity_rows,
        seed=role_seed(plan.settings, ROLE_ANNOTATION),
    )
