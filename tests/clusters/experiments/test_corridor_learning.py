"""Labels lead through the corridor where listening is always new, and paying for all that is new does not.

A short corridor; that of the preset `corridor-oni`, ten seeds an arm, is part of `onibi experiment it-helps`. Seen here
on seeds 1 to 10: success 1.00 in every run with labels, 0.00 in every run of both other arms.
"""

from __future__ import annotations

import pytest

from onibi.clusters import train

SHORT = (
    "environment.kwargs={rooms: 8, room_length: 2}",
    "environment.max_episode_steps=100",
    "budget.max_env_steps=8000",
    "budget.max_seconds=null",
    "evaluation.period_env_steps=null",
    "evaluation.episodes=16",
    # It explores more and follows faster than the preset, and sees its cell alone: to be there in seconds.
    "actors.rollout.caption_counts=false",
    "replay.limiter.minimum_rows=500",
    "learner.target.rate=0.02",
    "learner.exploration.base=0.6",
    "learner.exploration.alpha=1.0",
    "tracking.enabled=false",
    "replay.log.enabled=false",
)
LABELS_SUCCEED, ALL_ONES_FAIL = 0.9, 0.2
"""The issue's figures."""


def last_evaluation(folder, seed, *changes):
    result = train(
        "corridor-oni",
        overrides=[*SHORT, f"seed={seed}", *changes],
        serial=True,
        runs_folder=folder,
        display=False,
    )
    return result.evaluations[-1]


@pytest.mark.parametrize("seed", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_labels_lead_to_the_end_of_the_corridor(tmp_path, seed):
    found = last_evaluation(tmp_path, seed)
    assert found["success_rate"] > LABELS_SUCCEED
    assert found["intrinsic_return_mean"] < 10  # eight rooms and the end, hardly anything twice


@pytest.mark.parametrize("seed", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_paying_for_all_that_is_heard_leads_to_listening_for_ever(tmp_path, seed):
    found = last_evaluation(tmp_path, seed, "annotator.lexicon=all_ones")
    assert found["success_rate"] < ALL_ONES_FAIL
    assert found["intrinsic_return_mean"] > 60  # of 100 steps, most bring a text that is new
    assert found["length_mean"] == 100


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2])
def test_the_reward_at_the_end_alone_is_not_found(tmp_path, seed):
    assert last_evaluation(tmp_path, seed, "rewards.intrinsic=null")["success_rate"] < ALL_ONES_FAIL
