"""A hub that cannot be reached for a moment ends neither the shard's background work nor a learner."""

from __future__ import annotations

import asyncio
import functools
import time
from concurrent.futures import Future
from types import SimpleNamespace

import numpy as np
import pytest
import ray

from onibi.actors.rollout_actor import ROLLOUT_OPTIONS, RolloutActor
from onibi.clusters.caption_pay import make_ledger
from onibi.clusters.coordinator.roles import open_run_shard
from onibi.clusters.run_plan import plan_run
from onibi.clusters.run_settings import RunSettings
from onibi.learners import learner_actor
from onibi.learners.learner_actor import LearnerActor, LearnerParts
from onibi.learners.learner_loop import LearnerReport
from onibi.platform.config import read_settings
from onibi.platform.errors import CaptionError
from onibi.platform.replay.shard_actor import ShardActor
from onibi.platform.rewards.table import RewardTable

GONE = ray.exceptions.ActorUnavailableError("the network was gone for a moment", None)


def table_of(version):
    """A table of the empty caption alone."""
    return RewardTable(version, np.full((1, 1), -1, np.int32), np.zeros(0, np.float32), np.zeros(0, np.uint8))


@ray.remote
class Hub:
    """Numbers captions in their order. Its ``failing``-th question for a table and its first sightings fail."""

    def __init__(self, failures, failing):
        (self._failure,), self._failing = failures, failing  # in a list: an argument that is an error Ray takes for one
        self.asked, self.captions, self.sightings, self._notes = 0, {}, [], []

    async def table_after(self, version, _wait_seconds):
        self.asked += 1
        if self.asked == self._failing:
            raise self._failure
        await asyncio.sleep(0.1)
        return table_of(version + 1)

    async def see(self, captions, rows):
        self.sightings.append(dict(zip(captions.tolist(), rows.tolist(), strict=True)))
        if len(self.sightings) == 1:
            raise self._failure

    async def intern(self, captions):
        return np.array([self.captions.setdefault(each.text, len(self.captions) + 1) for each in captions], np.uint32)

    async def is_untrained(self):
        return True

    async def weights_after(self, _version, wait_seconds):
        await asyncio.sleep(wait_seconds)
        return []

    async def note(self, notes):
        self._notes += notes

    async def told(self):
        return SimpleNamespace(asked=self.asked, sightings=self.sightings, notes=self._notes)


class Stage:
    """A shard of one environment that asks such a hub."""

    def __init__(self, settings, failure, failing):
        self.plan = plan_run(read_settings(RunSettings, settings))
        self.hub = Hub.options(max_concurrency=100, num_cpus=0).remote([failure], failing)
        open_shard = functools.partial(open_run_shard, self.plan.for_stores(), "run", None)
        self.shard = ShardActor.options(max_concurrency=1_000).remote(
            open_shard, self.hub, make_ledger(self.plan, None), 60.0
        )
        ray.get(self.shard.start.remote(table_of(1)))
        self.actors = [self.hub, self.shard]

    def play(self, fragments):
        """The captions of so many fragments, at least, reach the shard."""
        make_rollout = self.plan.for_actors().make_rollout
        rollout = RolloutActor.options(num_cpus=0, **ROLLOUT_OPTIONS).remote(make_rollout, 0, 1, 2)
        self.actors.append(rollout)
        ran = rollout.run.remote(self.shard, self.hub)
        wait_for(lambda: ray.get(self.shard.inserted_rows.remote()) >= fragments * 8)
        ray.get(rollout.stop.remote())
        ray.get(ran)

    def told(self):
        return ray.get(self.hub.told.remote())


@pytest.fixture
def make_stage(small_ray, workshop):
    stages = []
    settings = workshop.settings(
        actors__count=1,
        actors__rollout={"envs_per_actor": 1, "fragment_steps": 8, "fragment_steps_max": 8},
        replay__capacity_rows=100_000,
        replay__limiter={"samples_per_insert": 4, "minimum_rows": 50_000},
    )

    def make(failure, failing=2):
        stages.append(Stage(settings, failure, failing))
        return stages[-1]

    yield make
    for stage in stages:
        for actor in stage.actors:
            ray.kill(actor)


def wait_for(what, seconds=60.0):
    deadline = time.monotonic() + seconds
    while not (found := what()) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert found
    return found


def test_a_shard_goes_on_following_tables_and_brings_the_sightings_that_did_not_arrive(make_stage):
    stage = make_stage(GONE)
    stage.play(fragments=20)
    told = wait_for(lambda: told if len((told := stage.told()).sightings) >= 2 and told.asked >= 4 else None)
    failed, *arrived = told.sightings
    assert failed, "captions were met"
    assert all(sum(each.get(caption, 0) for each in arrived) >= rows for caption, rows in failed.items())
    ray.get(stage.shard.look.remote())
    assert sum("does not answer" in note for note in told.notes) <= 2, "once of each piece of work"


def test_what_else_a_shards_background_work_fails_of_is_raised_by_its_next_look(make_stage):
    stage = make_stage(CaptionError("made to fail"))
    with pytest.raises(CaptionError, match="made to fail"):
        wait_for(lambda: ray.get(stage.shard.look.remote()) is None)
    assert stage.told().asked == 2, "and that work is not done any more"


def test_a_shard_asks_for_a_few_tables_a_second_however_often_there_are_new_ones(make_stage):
    stage = make_stage(GONE, failing=-1)
    before = wait_for(lambda: stage.told().asked)
    time.sleep(2.0)
    # The hub above takes 0.1 s for each and the shard pauses 0.1 s: 10 in 2 s, not 20.
    assert 1 <= stage.told().asked - before <= 12


class TableHub:
    """A hub's handle whose answers to ``table_after`` are given one by one."""

    def __init__(self, *answers):
        self._answers, self.asked = list(answers), []
        self.table_after = SimpleNamespace(remote=self._table_after)
        self.note = SimpleNamespace(remote=lambda _notes: None)

    def _table_after(self, version, _wait_seconds):
        self.asked.append(version)
        answer = Future()
        given = self._answers.pop(0) if self._answers else None
        if isinstance(given, Exception):
            answer.set_exception(given)
        elif given is not None:
            answer.set_result(given)
        return SimpleNamespace(future=lambda: answer)


class Loop:
    """A learner's loop that may always update, and remembers by which table it did."""

    def __init__(self):
        self.table_version, self.paid_by = -1, []

    def ready(self):
        return True

    def set_table(self, table):
        self.table_version = table.version

    def update(self):
        self.paid_by.append(self.table_version)
        time.sleep(0.01)

    def report(self):
        return LearnerReport(len(self.paid_by), {})


def learner_of(hub):
    loop = Loop()
    actor = LearnerActor.__ray_actor_class__(hub, 1)
    actor.build(lambda _publish: LearnerParts(None, SimpleNamespace(drawn_rows=0, figures=dict), loop))
    return actor, loop


def test_a_learner_makes_no_update_before_it_has_a_reward_table():
    actor, loop = learner_of(TableHub())
    actor.train(0.2)
    assert loop.paid_by == []
    actor, loop = learner_of(TableHub(table_of(5)))
    actor.train(0.2)
    assert loop.paid_by and set(loop.paid_by) == {5}


def test_a_hub_out_of_reach_is_no_table_yet_and_no_learners_death(monkeypatch):
    monkeypatch.setattr(learner_actor, "_HUB_RETRY_SECONDS", 0.1)
    hub = TableHub(GONE, table_of(7))
    actor, loop = learner_of(hub)
    actor.train(0.5)
    assert set(loop.paid_by) == {7}
    assert hub.asked == [-1, -1, 7]


def test_what_the_hub_itself_raised_about_a_table_ends_the_learner():
    fault = CaptionError("made to fail")
    actor, _ = learner_of(TableHub(ray.exceptions.RayTaskError("table_after", "traceback", fault)))
    with pytest.raises(CaptionError, match="made to fail"):
        actor.train(0.2)


def test_a_learner_takes_a_table_as_soon_as_it_is_there(monkeypatch):
    """The next one is asked for after a pause, which here is longer than the slice."""
    monkeypatch.setattr(learner_actor, "_TABLE_PAUSE_SECONDS", 0.1)
    hub = TableHub(*(table_of(version) for version in range(1, 100)))
    actor, loop = learner_of(hub)
    actor.train(0.35)
    assert loop.paid_by[0] == 1
    assert 2 <= len(hub.asked) <= 5, "at 0, 0.1, 0.2 and 0.3 s"
