"""Fragments on their way through Ray to the shard: every one arrives in its turn."""

from __future__ import annotations

import functools
import time

import ray

from onibi.actors.rollout_actor import ROLLOUT_OPTIONS, RolloutActor
from onibi.clusters.caption_pay import make_ledger
from onibi.clusters.hub_actor import HubActor
from onibi.clusters.roles import open_run_shard
from onibi.clusters.run_plan import plan_run
from onibi.clusters.run_settings import RunSettings
from onibi.clusters.run_state import make_desk
from onibi.platform.config import read_settings
from onibi.platform.replay.shard_actor import ShardActor

FRAGMENTS = 3_000
MANY_CALLS = {"max_concurrency": 10_000}  # as in a run


def test_no_fragment_is_lost_however_many_are_under_way(small_ray, workshop):
    """Of calls to an asyncio actor Ray keeps no order: with eight under way about one in thirty is overtaken."""
    settings = workshop.settings(
        actors__count=1,
        actors__rollout={"envs_per_actor": 1, "fragment_steps": 1, "fragment_steps_max": 1},
        replay__capacity_rows=100_000,
        replay__limiter={"samples_per_insert": 4, "minimum_rows": 50_000},  # no learner: until then all may come
    )
    plan = plan_run(read_settings(RunSettings, settings))
    stores = plan.for_stores()
    hub = HubActor.options(**MANY_CALLS).remote(
        functools.partial(make_desk, stores), stores.judges(), [], None, None, False
    )
    open_shard = functools.partial(open_run_shard, stores, "run", None)
    shard = ShardActor.options(**MANY_CALLS).remote(open_shard, hub, make_ledger(plan, None), 60.0)
    make_rollout = plan.for_actors().make_rollout
    rollout = RolloutActor.options(num_cpus=0, **ROLLOUT_OPTIONS).remote(make_rollout, 0, 1, 8)
    try:
        ray.get(shard.start.remote(ray.get(hub.table_after.remote(-1, 0.0))))
        ran = rollout.run.remote(shard, hub)
        deadline = time.monotonic() + 120
        while (look := ray.get(shard.look.remote()))["fragments"] < FRAGMENTS and time.monotonic() < deadline:
            time.sleep(0.1)
        ray.get(rollout.stop.remote())
        ray.get(ran)
        assert look["fragments"] >= FRAGMENTS
        assert (look["gaps"], look["repeated"], look["foreign_heads"]) == (0, 0, 0)
    finally:
        ray.get(shard.close.remote())
        for actor in (rollout, shard, hub):
            ray.kill(actor)
