"""The shard as a Ray actor: every fragment arrives in its turn, and whose ring stays when it ends."""

from __future__ import annotations

import dataclasses
import functools
import time
from pathlib import Path

import pytest
import ray

from onibi.actors.rollout_actor import ROLLOUT_OPTIONS, RolloutActor
from onibi.clusters.caption_pay import make_ledger
from onibi.clusters.coordinator.hub_actor import HubActor
from onibi.clusters.coordinator.patient_calls import end_shard
from onibi.clusters.coordinator.roles import open_run_shard
from onibi.clusters.run_plan import plan_run
from onibi.clusters.run_settings import RunSettings
from onibi.clusters.run_state import make_desk
from onibi.platform.config import read_settings
from onibi.platform.replay.log.log_reader import ReplayLog
from onibi.platform.replay.ring.reader import RingReader
from onibi.platform.replay.shard_actor import ShardActor

MANY_CALLS = {"max_concurrency": 10_000}  # as in a run


class Stage:
    """Hub and shards of a small run in Ray actors, as a run makes them."""

    def __init__(self, settings):
        self.plan = plan_run(read_settings(RunSettings, settings))
        self.stores = self.plan.for_stores()
        make = functools.partial(make_desk, self.stores)
        self.hub = HubActor.options(**MANY_CALLS).remote(make, self.stores.judges(), [], None, None, False)
        self.actors = [self.hub]

    def shard(self, captions=None):
        """(handle, what it told when it started); with captions as for a session that goes on."""
        open_shard = functools.partial(open_run_shard, self.stores, "run", captions)
        shard = ShardActor.options(**MANY_CALLS).remote(open_shard, self.hub, make_ledger(self.plan, None), 60.0)
        self.actors.append(shard)
        return shard, ray.get(shard.start.remote(ray.get(self.hub.table_after.remote(-1, 0.0))))

    def rollout(self, in_flight):
        """The only rollout actor, of one environment."""
        make_rollout = self.plan.for_actors().make_rollout
        actor = RolloutActor.options(num_cpus=0, **ROLLOUT_OPTIONS).remote(make_rollout, 0, 1, in_flight)
        self.actors.append(actor)
        return actor


@pytest.fixture
def stage(small_ray, workshop):
    made = Stage(
        workshop.settings(
            actors__count=1,
            actors__rollout={"envs_per_actor": 1, "fragment_steps": 1, "fragment_steps_max": 1},
            replay__capacity_rows=100_000,
            replay__limiter={"samples_per_insert": 4, "minimum_rows": 50_000},  # no learner: until then all may come
        )
    )
    yield made
    for actor in made.actors:
        ray.kill(actor)


def play(stage, shard, *, fragments, in_flight):
    """What the shard tells once it has so many fragments; then the rollout has ended."""
    rollout = stage.rollout(in_flight)
    ran = rollout.run.remote(shard, stage.hub)
    deadline = time.monotonic() + 120
    while (look := ray.get(shard.look.remote()))["fragments"] < fragments and time.monotonic() < deadline:
        time.sleep(0.05)
    ray.get(rollout.stop.remote())
    ray.get(ran)
    assert look["fragments"] >= fragments
    return look


@pytest.mark.parametrize("fragments", [200, pytest.param(3_000, marks=pytest.mark.slow)])
def test_no_fragment_is_lost_however_many_are_under_way(stage, fragments):
    """Of calls to an asyncio actor Ray keeps no order: with eight under way one in twenty-four was overtaken."""
    shard, _ = stage.shard()
    look = play(stage, shard, fragments=fragments, in_flight=8)
    assert (look["gaps"], look["repeated"], look["foreign_heads"]) == (0, 0, 0)
    ray.get(shard.close.remote())


@pytest.mark.slow  # a shard's close is the next one's, too
def test_a_ring_that_a_failed_start_left_as_it_was_stays_for_another_attempt(stage):
    shard, opened = stage.shard()
    play(stage, shard, fragments=5, in_flight=2)
    ray.kill(shard)
    ring = Path(opened.ring)
    shard, opened = stage.shard(captions=())
    assert opened.ring_kept and opened.inserted_rows >= 5
    ray.get(shard.close.remote(failed=True))
    assert ring.exists()
    shard, again = stage.shard(captions=())
    assert (again.ring_kept, again.inserted_rows) == (True, opened.inserted_rows)
    play(stage, shard, fragments=1, in_flight=1)
    ray.get(shard.close.remote(failed=True))
    assert not ring.exists(), "what failed later leaves its rows in the log"


def test_a_ring_goes_with_a_session_that_ends_in_order_or_that_began_it(stage):
    shard, opened = stage.shard()
    ray.get(shard.close.remote(failed=True))
    assert not Path(opened.ring).exists()
    shard, _ = stage.shard()
    ray.kill(shard)
    shard, opened = stage.shard(captions=())
    assert opened.ring_kept
    ray.get(shard.close.remote())
    assert not Path(opened.ring).exists()


def test_a_shard_that_outlives_the_hub_seals_what_it_alone_knows_and_leaves_its_ring(stage, tmp_path):
    """Texts of captions that are younger than the checkpoint are in no other process."""
    stage.stores = dataclasses.replace(stage.stores, log_location=str(tmp_path / "log"))
    shard, opened = stage.shard()
    play(stage, shard, fragments=300, in_flight=2)
    ray.kill(stage.hub)
    end_shard(shard, True, True, 60.0)
    with pytest.raises(ray.exceptions.RayActorError):
        ray.get(shard.inserted_rows.remote())
    heard = {int(caption) for caption in RingReader(Path(opened.ring)).columns["caption_id"].ravel()} - {0}
    assert heard, "this environment speaks"
    told = ReplayLog(stage.stores.log_location).captions()
    assert heard <= set(told["caption_id"].to_pylist())
    assert all(told["text"].to_pylist())
