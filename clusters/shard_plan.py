"""A run with several replay shards: what each of them has its share of, and which settings cannot be shared."""

from __future__ import annotations

from dataclasses import replace

from onibi.clusters.run_plan import RunPlan
from onibi.clusters.run_state import make_limiter
from onibi.platform.errors import ConfigError
from onibi.platform.replay.limiter import MINIMUM_ROWS, LimiterSettings
from onibi.platform.replay.log.segment_writer import RetentionSettings
from onibi.platform.replay.samplers.draws import SlabDraws


def plan_of_shard(plan: RunPlan, shard: int) -> RunPlan:
    """The plan as shard ``shard`` and its learner see it: as that of a run with one shard and one learner, of an equal
    part of the actors, of the ring's rows and of what the log keeps. With one shard it is the plan itself.
    """
    settings, shards = plan.settings, plan.settings.placement.shards
    if shards == 1:
        return plan
    replay = settings.replay
    share = replace(
        settings,
        actors=replace(settings.actors, count=settings.actors.count // shards),
        placement=replace(settings.placement, learners=1),
        replay=replace(
            replay,
            capacity_rows=max(1, replay.capacity_rows // shards),
            max_actors=None if replay.max_actors is None else replay.max_actors // shards,
            limiter=_limiter(replay.limiter, shards, once=isinstance(plan.needs.draws, SlabDraws)),
            log=replace(replay.log, retention=_retention(replay.log.retention, shards)),
        ),
    )
    return replace(plan, settings=share, shard=shard)


def check_shards(plan: RunPlan) -> None:
    """Whether actors and learners can be shared out evenly, and no shard's limiter could lock. Raises: ConfigError."""
    settings = plan.settings
    shards, learners = settings.placement.shards, settings.placement.learners
    if shards == 1:
        make_limiter(plan)
        return
    if shards != learners:
        raise ConfigError(
            f"placement.shards is {shards}, placement.learners {learners}: each shard feeds the learner beside it. Set "
            f"shards to {learners}, or to 1 for one that feeds them all from one node."
        )
    for name, actors in (("actors.count", settings.actors.count), ("replay.max_actors", settings.replay.max_actors)):
        if actors is not None and actors % shards:
            raise ConfigError(
                f"{name} is {actors}, placement.shards {shards}: learners update together, so each shard needs as many "
                f"actors. Set {name} to a multiple of {shards}."
            )
    try:
        make_limiter(plan_of_shard(plan, 0))
    except ConfigError as error:
        raise ConfigError(
            f"{error}. These are the figures of one of {shards} shards (placement.shards), which has its part of the "
            f"run's: {shards} times as many rows."
        ) from error


def _limiter(limiter: LimiterSettings, shards: int, *, once: bool) -> LimiterSettings:
    minimum = limiter.minimum_rows
    if minimum is None and not once:
        minimum = MINIMUM_ROWS
    return replace(
        limiter,
        minimum_rows=None if minimum is None else -(-minimum // shards),
        tolerance_rows=None if limiter.tolerance_rows is None else limiter.tolerance_rows / shards,
    )


def _retention(retention: RetentionSettings, shards: int) -> RetentionSettings:
    share = {
        name: None if (limit := getattr(retention, name)) is None else max(1, limit // shards)
        for name in ("rows", "bytes")
    }
    return replace(retention, **share)
