"""Several shards asked as one: their looks, and how the budget of env steps is shared out among them."""

from __future__ import annotations

import numpy as np
import pytest

from onibi.clusters.coordinator.shard_looks import merged_look
from onibi.clusters.coordinator.shard_team import ShardTeam
from onibi.clusters.run_state import RunState
from onibi.platform.replay.shard_actor import OpenedShard
from onibi.platform.rewards.pay_watch import EpisodePay, PayFigures


class Called:
    """Stands for a method of a handle."""

    def __init__(self, call):
        self.remote = call


class Ring:
    """Stands for a shard's handle: rows come in by hand, up to its limit and as many in one go as its actors send."""

    def __init__(self, rows=0, fragment=10):
        self.rows, self.fragment, self.limit = rows, fragment, 0.0
        self.insert_up_to = Called(self._insert_up_to)
        self.look, self.inserted_rows = Called(self._look), Called(lambda: self.rows)
        self.paid = np.zeros(0)
        self.paid_by_key = Called(lambda: self.paid)

    def _insert_up_to(self, limit):
        self.limit = limit
        return self.rows

    def _look(self):
        return look(inserted_rows=self.rows)

    def play(self, fragments):
        for _ in range(fragments):
            if self.rows < self.limit:
                self.rows += self.fragment


def look(**changes):
    told = {
        "inserted_rows": 100,
        "readable_rows": 90,
        "drawn_rows": 800,
        "gaps": 0,
        "first_insertion_age_seconds": 2.0,
        "waited_seconds": 1.5,
        "pacing": {"replay/actors_stalled": 1.0, "replay/lanes_with_rows": 4.0, "replay/row_age_oldest_seconds": 3.0},
        "held_back": "",
        "log": {"replay/log_rows": 90.0, "replay/log_lag_seconds": 1.0, "replay/log_failed": 0.0},
        "log_failure": "",
        "log_waited_seconds": 0.25,
        "policy_updates": [3],
        "episodes": [("an episode", 1.0)],
        "pay": PayFigures((4, 2), (3.0, 1.0), 5.0, (EpisodePay(True, 1.0, 2),)),
    }
    return {**told, **changes}


def team_of(*rings):
    team = ShardTeam.__new__(ShardTeam)
    team._answer = lambda reference, _: reference
    team.handles = {"shard" if number == 0 else f"shard {number}": ring for number, ring in enumerate(rings)}
    return team


def test_looks_of_several_shards_are_one():
    other = look(
        inserted_rows=50,
        first_insertion_age_seconds=5.0,
        pacing={
            "replay/actors_stalled": 0.0,
            "replay/lanes_with_rows": 3.0,
            "replay/row_age_oldest_seconds": 5.0,
            "replay/row_age_oldest_seconds_worst_lane": 7.0,
        },
        held_back="learner held back: after 16 more draws it would be 5 ahead",
        log={"replay/log_rows": 10.0, "replay/log_lag_seconds": 9.0, "replay/log_failed": 1.0},
        log_failure="the disk is full",
        policy_updates=[7],
        pay=PayFigures((2, 9), (2.5, 1.0), 4.0, ()),
    )
    merged = merged_look([look(), other])
    assert (merged["inserted_rows"], merged["drawn_rows"], merged["waited_seconds"]) == (150, 1_600, 3.0)
    assert merged["first_insertion_age_seconds"] == 5.0, "of whoever was first"
    assert merged["pacing"] == {
        "replay/actors_stalled": 0.5,
        "replay/lanes_with_rows": 7.0,
        "replay/row_age_oldest_seconds": 4.0,
        "replay/row_age_oldest_seconds_worst_lane": 7.0,
    }
    assert merged["log"] == {"replay/log_rows": 100.0, "replay/log_lag_seconds": 9.0, "replay/log_failed": 1.0}
    assert merged["held_back"] == "learner held back by shard 1: after 16 more draws it would be 5 ahead"
    assert merged["log_failure"] == "shard 1: the disk is full"
    assert (merged["policy_updates"], len(merged["episodes"])) == ([3, 7], 2)
    pay = merged["pay"]
    assert (pay.best_keys, pay.best_pay, pay.total_pay) == ((2, 4, 9), (3.5, 3.0, 1.0), 9.0)
    assert len(pay.episodes) == 1
    assert merged_look([other]) == other


def test_names_of_a_look_are_those_of_one_shard():
    assert set(merged_look([look(), look()])) == set(look())


@pytest.mark.parametrize("others_wait", [False, True])
def test_all_together_take_as_many_rows_as_the_budget_has_and_none_is_held_for_ever(others_wait):
    fast, slow = Ring(rows=40), Ring(rows=10)
    team = team_of(fast, slow)
    team.insert_up_to(250.0)
    assert (fast.limit, slow.limit) == (140.0, 110.0), "what is left, in equal parts"
    slow.play(1)
    for _ in range(20):
        fast.play(100)
        if not others_wait:
            slow.play(2)
        told = team.look()
        if told["inserted_rows"] >= 250:
            break
    else:
        pytest.fail("they wait for ever")
    assert 250 <= fast.rows + slow.rows <= 250 + fast.fragment + slow.fragment
    fast.play(1)
    slow.play(1)
    team.look()
    assert fast.rows + slow.rows <= 250 + fast.fragment + slow.fragment, "the end is the end"


def test_one_shard_and_runs_without_a_budget_have_no_shares():
    one = Ring()
    team_of(one).insert_up_to(70.0)
    assert one.limit == 70.0
    rings = Ring(5), Ring(90)
    team = team_of(*rings)
    team.insert_up_to(float("inf"))
    team.look()
    assert [ring.limit for ring in rings] == [float("inf")] * 2


def test_pay_of_keys_is_the_sum_though_one_shard_knows_fewer():
    rings = Ring(), Ring()
    rings[0].paid, rings[1].paid = np.array([1.0, 2.0, 0.5]), np.array([4.0])
    np.testing.assert_array_equal(team_of(*rings).paid_by_key(), [5.0, 2.0, 0.5])


def test_actors_and_learners_go_to_the_shards_in_turn_and_messages_name_them():
    rings = Ring(), Ring()
    team = team_of(*rings)
    assert [team.of(number) for number in range(4)] == [*rings, *rings]
    assert list(team.named) == ["the replay shard", "the replay shard 1"]


def opened(inserted, kept):
    return OpenedShard(
        ring="a ring",
        ring_kept=kept,
        newest_caption=0,
        inserted_rows=inserted,
        readable_rows=inserted,
        logged_captions={},
    )


@pytest.mark.parametrize(
    ("rings", "env_steps"),
    [
        ([opened(600, True), opened(500, True)], 1_100),  # a hundred are younger than the checkpoint
        ([opened(600, True), opened(0, False)], 1_000),
        ([opened(600, True), opened(0, True)], 1_000),  # made by a session that was killed before it had begun
        ([opened(0, False), opened(0, False)], 1_000),
    ],
)
def test_a_run_goes_on_with_its_env_steps_whichever_rings_are_left_and_every_learner_reckons_with_them(
    rings, env_steps
):
    team = team_of(Ring(), Ring())
    team.opened = rings
    state = RunState(env_steps=1_000).resumed(team.inserted_rows_at_start, team.rings_kept)
    assert state.env_steps == env_steps
    assert state.inserted_base + team.inserted_rows_at_start == env_steps
    before = team.steps_before(state.env_steps)
    assert [base + 2 * each.inserted_rows for base, each in zip(before, rings, strict=True)] == [env_steps] * 2
