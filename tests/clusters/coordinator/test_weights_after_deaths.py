"""Learner and actors that die together: who takes their place gets weights, and asks for them with patience."""

from __future__ import annotations

import asyncio
import functools
import time
from pathlib import Path

import pytest
import ray

from onibi.actors.inference_actor import INFERENCE_OPTIONS, InferenceActor
from onibi.actors.joined_inference import InferenceSettings
from onibi.actors.rollout_actor import WeightsPoll
from onibi.clusters.caption_pay import make_ledger
from onibi.clusters.coordinator.hub_actor import HubActor
from onibi.clusters.coordinator.roles import build_learner, open_run_shard
from onibi.clusters.run_plan import plan_run
from onibi.clusters.run_settings import RunSettings
from onibi.clusters.run_state import make_desk, replaces_another
from onibi.learners.learner_actor import LearnerActor
from onibi.platform.config import read_settings
from onibi.platform.policy import NO_WEIGHTS, Weights, weights_version
from onibi.platform.remote_policy import halves_of
from onibi.platform.replay.ring.file import meeting_path
from onibi.platform.replay.shard_actor import ShardActor

MANY_CALLS = {"max_concurrency": 1_000}


@ray.remote(num_cpus=0)
class Owner:
    """Publishes weights that die with it."""

    def __init__(self, hub):
        self._reference = ray.put(Weights(weights_version(0, 7), {}))
        ray.get(hub.publish_weights.remote(int(weights_version(0, 7)), [self._reference]))

    def live(self):
        return True


def publish_and_die(hub):
    """Leave the hub with weights whose owner is gone."""
    owner = Owner.remote(hub)
    assert ray.get(owner.live.remote())
    ray.kill(owner)
    while can_be_fetched(*ray.get(hub.weights_after.remote(0, 0.0))):  # it takes Ray a moment to forget them
        time.sleep(0.1)


def can_be_fetched(reference):
    try:
        return bool(ray.get(reference))
    except ray.exceptions.RayError:
        return False


@ray.remote
class DeadWeightsHub:
    """Has weights of a dead owner, and nothing else."""

    def __init__(self):
        self.asked, self._weights = 0, []

    async def publish_weights(self, _version, reference):
        self._weights = reference

    async def is_untrained(self):
        return False

    async def note(self, notes):
        pass

    async def weights_after(self, _version, _wait_seconds):
        self.asked += 1
        await asyncio.sleep(0)
        return self._weights

    async def times_asked(self):
        return self.asked

    async def count_anew(self):
        self.asked = 0


@pytest.fixture
def actors(small_ray):
    """What is put in here is killed at the end."""
    made = []
    yield made
    for actor in made:
        ray.kill(actor)


@pytest.fixture
def dead_weights(actors):
    hub = DeadWeightsHub.options(num_cpus=0, **MANY_CALLS).remote()
    actors.append(hub)
    publish_and_die(hub)
    ray.get(hub.count_anew.remote())
    return hub


@pytest.fixture
def plan(workshop):
    return plan_run(read_settings(RunSettings, workshop.settings()))


def open_ring(plan, hub, actors, captions=None):
    open_shard = functools.partial(open_run_shard, plan.for_stores(), "run", captions)
    shard = ShardActor.options(**MANY_CALLS).remote(open_shard, hub, make_ledger(plan, None), 60.0)
    actors.append(shard)
    return shard, ray.get(shard.start.remote(ray.get(hub.table_after.remote(-1, 0.0)))).ring


def make_hub(plan, actors):
    stores = plan.for_stores()
    hub = HubActor.options(**MANY_CALLS).remote(
        functools.partial(make_desk, stores), stores.judges(), [], None, None, False
    )
    actors.append(hub)
    return hub


@pytest.mark.parametrize(("incarnation", "expected"), [(0, False), (1, True), (2_000, False), (2_003, True)])
def test_only_the_first_learner_of_a_session_stands_in_for_nobody(incarnation, expected):
    assert replaces_another(incarnation) is expected


def test_a_learner_that_stands_in_for_a_dead_one_has_weights_for_actors_that_began_anew(plan, actors):
    """Neither waits for the other: the learner has made no update, as there was no checkpoint yet."""
    hub = make_hub(plan, actors)
    publish_and_die(hub)
    assert not ray.get(hub.is_untrained.remote())
    _, ring = open_ring(plan, hub, actors)
    learner = LearnerActor.options(num_cpus=0).remote(hub, 1)
    actors.append(learner)
    ray.get(learner.build.remote(functools.partial(build_learner, plan, ring, 1, None, 0)))
    deadline = time.monotonic() + 30
    weights = WeightsPoll(hub, lambda: time.monotonic() > deadline)(NO_WEIGHTS)
    assert weights is not None and weights.version == weights_version(1, 0)


def test_the_first_learner_of_a_run_publishes_nothing_untrained(plan, actors):
    hub = make_hub(plan, actors)
    _, ring = open_ring(plan, hub, actors)
    learner = LearnerActor.options(num_cpus=0).remote(hub, 1)
    actors.append(learner)
    ray.get(learner.build.remote(functools.partial(build_learner, plan, ring, 0, None, 0)))
    ray.get(learner.train.remote(0.2))
    assert ray.get(hub.is_untrained.remote())


def test_an_inference_process_asks_for_weights_of_a_dead_learner_a_few_times_a_second(plan, dead_weights, actors):
    forward = halves_of(plan.for_actors().policy_factory).forward
    inference = InferenceActor.options(num_cpus=0, **INFERENCE_OPTIONS).remote(forward, InferenceSettings())
    actors.append(inference)
    inference.run.remote(dead_weights)
    assert asked_in(1.0, dead_weights) <= 10


def test_an_actor_asks_for_weights_of_a_dead_learner_a_few_times_a_second(dead_weights):
    poll = WeightsPoll(dead_weights, lambda: True)
    deadline = time.monotonic() + 1.5
    while time.monotonic() < deadline:
        assert poll(NO_WEIGHTS) is None
        time.sleep(0.001)
    assert 2 <= ray.get(dead_weights.times_asked.remote()) <= 10


def asked_in(seconds, hub):
    """How often the hub is asked in so many seconds, from its first answer on."""
    deadline = time.monotonic() + 60
    while not (before := ray.get(hub.times_asked.remote())) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert before
    time.sleep(seconds)
    return ray.get(hub.times_asked.remote()) - before


def test_learners_of_a_session_meet_by_no_file_of_an_earlier_one(plan, actors):
    """A session that was killed before its first checkpoint leaves its number, and with it the file's name, to the
    next one; by what stands in it torch would look for dead processes, for two minutes.
    """
    hub = make_hub(plan, actors)
    shard, ring = open_ring(plan, hub, actors)
    ray.kill(shard)
    stale = meeting_path(Path(ring), 1_000)
    stale.write_bytes(b"addresses of processes that are gone")
    _, again = open_ring(plan, hub, actors, captions=())
    assert again == ring
    assert not stale.exists()
