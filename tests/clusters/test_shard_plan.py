"""What each of several replay shards has its share of, and which settings cannot be shared."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from onibi.clusters.run_plan import plan_run
from onibi.clusters.run_settings import RunSettings
from onibi.clusters.run_state import make_limiter, ring_path
from onibi.clusters.shard_plan import check_shards, plan_of_shard
from onibi.platform.config import read_settings
from onibi.platform.errors import ConfigError

SLABS = {
    "learner": {"kind": "appo", "rows": 4, "batch_lanes": 2, "value_loss": "mse"},
    "replay__limiter": {"samples_per_insert": 1},
}


def plan_of(workshop, shards=2, **changes):
    placement = {"shards": shards, "learners": changes.pop("learners", shards)}
    return plan_run(read_settings(RunSettings, workshop.settings(placement=placement, **changes)))


def test_each_shard_has_an_equal_part_of_actors_rows_draws_and_log(workshop):
    retention = {"rows": 1_001, "bytes": 4_000, "age_seconds": 60.0}
    plan = plan_of(
        workshop,
        actors__count=6,
        replay__max_actors=4,
        replay__limiter__tolerance_rows=4_000.0,
        replay__log={"retention": retention},
    )
    check_shards(plan)
    for number in (0, 1):
        share = plan_of_shard(plan, number)
        settings = share.settings
        assert (share.shard, settings.actors.count, settings.placement.learners) == (number, 3, 1)
        assert (settings.replay.capacity_rows, settings.replay.max_actors, share.groups) == (1_000, 2, 2)
        limiter = make_limiter(share)
        assert (limiter.minimum_rows, limiter.tolerance_rows, limiter.largest_batch_rows) == (50, 2_000, 16)
        kept = settings.replay.log.retention
        assert (kept.rows, kept.bytes, kept.age_seconds) == (500, 2_000, 60.0)
    assert plan.settings.actors.count == 6, "the run's own plan is left as it is"


def test_the_default_of_minimum_rows_is_shared_too_but_not_for_rows_that_are_drawn_once(workshop):
    changes = {"replay__limiter": {"samples_per_insert": 4}, "replay__capacity_rows": 8_000}
    assert make_limiter(plan_of_shard(plan_of(workshop, **changes), 1)).minimum_rows == 500
    assert make_limiter(plan_of_shard(plan_of(workshop, **SLABS), 1)).minimum_rows == 0


def test_a_run_with_one_shard_is_that_shards_plan(workshop):
    plan = plan_of(workshop, 1, learners=2)
    check_shards(plan)
    assert plan_of_shard(plan, 0) is plan


def test_rings_have_names_of_their_own_and_the_first_one_that_of_a_run_with_one(workshop):
    plan = plan_of(workshop)
    names = [ring_path(plan_of_shard(plan, number), "id").name for number in (0, 1)]
    assert names == ["onibi-id.ring", "onibi-id-1.ring"]


def test_actors_of_all_shards_have_seeds_lanes_and_episodes_of_their_own(workshop, monkeypatch):
    plan = plan_of(workshop, actors__count=4)
    acting = plan.for_actors()
    ranges = []

    def remembered(lanes):
        ranges.append(lanes)
        return plan.policy_factory(lanes)

    acting = dataclasses.replace(acting, policy_factory=remembered)
    seeds, episodes = set(), []
    for number in (0, 1):
        share = plan_of_shard(acting, number)
        for group in range(share.groups):
            rollout = share.make_rollout(group, 1, 0)
            try:
                fragment = rollout.collect(lambda _: None)
            finally:
                rollout.close()
            assert fragment.actor == group, "of its shard"
            seeds.add(rollout._identity.seed)
            episodes.append(set(np.unique(fragment.columns["episode_id"]).tolist()))
    assert len(seeds) == 4
    assert sum(map(len, episodes)) == len(set.union(*episodes))
    assert [(lanes.first, lanes.count, lanes.total) for lanes in ranges] == [(2 * n, 2, 8) for n in range(4)]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"shards": 2, "learners": 1}, r"placement.shards is 2, placement.learners 1.*Set shards to 1"),
        ({"shards": 2, "learners": 4, "actors__count": 4}, r"placement.shards is 2, placement.learners 4"),
        ({"actors__count": 3}, r"actors.count is 3, placement.shards 2.*a multiple of 2"),
        ({"actors__count": 4, "replay__max_actors": 3}, r"replay.max_actors is 3, placement.shards 2"),
        ({"actors__count": 1}, r"actors.count is 1, placement.shards 2"),
        (
            {"replay__limiter": {"minimum_rows": 1_200}},
            r"minimum_rows is 600, more than half of the ring's 1000 rows.*of one of 2 shards.* 2 times as many rows",
        ),
    ],
)
def test_what_cannot_be_shared_is_refused_before_anything_starts(workshop, changes, said):
    with pytest.raises(ConfigError, match=said):
        check_shards(plan_of(workshop, **changes))
    placement = {"shards": changes.pop("shards", 2), "learners": changes.pop("learners", 2)}
    with pytest.raises(ConfigError, match=said):
        workshop.train(serial=False, placement=placement, **changes)
    assert not workshop.runs.exists() or not list(workshop.runs.glob("run*"))


def test_learners_with_rings_of_their_own_need_no_shares_of_an_actors_environments(workshop):
    from onibi.clusters.plan_checks import check_learner

    one = {"actors__rollout": {"envs_per_actor": 1, "fragment_steps": 8, "fragment_steps_max": 8}}
    check_learner(plan_of(workshop, **one))
    with pytest.raises(ConfigError, match="each learner draws from environments of its own"):
        check_learner(plan_of(workshop, 1, learners=2, **one))
