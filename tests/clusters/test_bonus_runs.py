"""Whole runs with every kind of bonus: paid, learnt from, kept in checkpoints, the same twice."""

from __future__ import annotations

import numpy as np
import pytest

from onibi.clusters.run_plan import plan_run
from onibi.clusters.run_settings import RunSettings
from onibi.platform.checkpoint import load_checkpoint
from onibi.platform.config import read_settings
from onibi.platform.errors import CheckpointError, ConfigError

BONUSES = {
    "heard": {"kind": "key_counts"},
    "heard_in_run": {"kind": "key_counts", "scope": "global"},
    "seen": {"kind": "observation_counts", "power": 1.0, "episode_cap": 2.0},
    "seen_in_run": {"kind": "observation_counts", "scope": "global"},
    "rnd": {"kind": "rnd", "train_rows": 32, "coefficient": {"start": 0.1, "end": 0.0, "env_steps": 400}},
    "noveld": {"kind": "noveld", "train_rows": 32},
    "e3b": {"kind": "e3b", "train_rows": 32, "features": 8},
}
REWARDS = {
    "extrinsic": {"coefficient": 1.0, "episode_low": 0.0, "episode_high": 1.0},
    "intrinsic": {"kind": "retrieval", "coefficient": 0.1, "episode_high": 3.0, "episode_cap": 1.5},
    "bonuses": BONUSES,
    "products": [["intrinsic", "rnd"]],
}
LEARNERS = {
    "dqn": {"kind": "dqn", "batch_size": 16, "metrics_period_updates": 5, "support": {"low": -0.5, "high": 9.0}},
    "r2d2": {
        "kind": "r2d2",
        "metrics_period_updates": 1,
        "batch_size": 4,
        "burn_in": 2,
        "length": 6,
        "period": 3,
        "support": {"low": -0.5, "high": 9.0},
    },
    "appo": {"kind": "appo", "rows": 8, "batch_lanes": 2, "value_loss": "mse", "metrics_period_updates": 1},
}


def tensors_of(workshop, name="run"):
    checkpoint = load_checkpoint(workshop.runs / name / "checkpoints", "last")
    return {group: checkpoint.tensors[group] for group in ("learner", "bonuses")}


def assert_equal(first, second):
    assert first.keys() == second.keys()
    for group in first:
        assert first[group].keys() == second[group].keys()
        for name, array in first[group].items():
            if not name.endswith("intake.ring"):  # the ring's birthday
                np.testing.assert_array_equal(array, second[group][name], err_msg=f"{group} {name}")


def figures(workshop, name="run"):
    """The newest value of each metric."""
    return {key: value for row in workshop.history(name) for key, value in row.items()}


def highest_figures(workshop, name="run"):
    """The highest value of each metric."""
    rows = workshop.history(name)
    return {key: max(row[key] for row in rows if key in row) for key in {key for row in rows for key in row}}


@pytest.mark.parametrize(
    "learner", ["dqn", pytest.param("r2d2", marks=pytest.mark.slow), pytest.param("appo", marks=pytest.mark.slow)]
)
def test_a_run_with_every_bonus_pays_and_learns_and_repeats_bit_for_bit(workshop, learner):
    names = ("run", "again") if learner == "dqn" else ("run",)
    for name in names:
        limiter = {"replay__limiter": {"samples_per_insert": 1}} if learner == "appo" else {}
        workshop.train(name, rewards=REWARDS, learner=LEARNERS[learner], budget__max_env_steps=400, **limiter)
    assert_equal(tensors_of(workshop), tensors_of(workshop, names[-1]))
    last, highest = figures(workshop), highest_figures(workshop)
    for name in BONUSES:
        assert highest[f"learner/reward_{name}"] > 0.0, name
        assert 0.0 <= last[f"learner/reward_clipped_share/{name}"] <= 1.0
    assert highest["learner/reward_product/intrinsic-rnd"] > 0.0
    assert last["learner/coefficient/rnd"] < 0.1
    assert last["bonus/rnd_steps"] >= 400 // 32 - 2
    assert last["bonus/e3b_lost_rows"] == 0
    assert 0 < last["actors/return_seen"] <= 2.0
    assert last["actors/return_heard"] > 0


def test_what_actors_pay_by_the_encoder_comes_with_the_weights(workshop):
    workshop.train(rewards=REWARDS, budget__max_env_steps=700, learner=LEARNERS["dqn"])
    last = figures(workshop)
    assert last["learner/reward_missing_share/e3b"] < 0.9, "episodes that began after the first weights are paid"
    assert last["actors/return_e3b"] > 0
    told = workshop.evaluations()[-1]
    assert told["return_e3b"] > 0
    assert 0 < told["return_seen"] <= 2.0
    assert "return_rnd" not in told


def test_a_resumed_run_goes_on_with_the_bonuses_of_the_checkpoint(workshop):
    first = workshop.train(rewards=REWARDS, budget__max_env_steps=400)
    before = tensors_of(workshop)["bonuses"]
    assert before["rnd.gradient.counters.updates"] >= first.env_steps // 32 - 2
    workshop.resume(overrides=["budget.max_env_steps=600"])
    after = tensors_of(workshop)["bonuses"]
    assert after["rnd.gradient.counters.updates"] > before["rnd.gradient.counters.updates"]
    assert after["seen_in_run.counts"].sum() > before["seen_in_run.counts"].sum() + 100
    for name, array in before.items():
        if ".target." in name and "normalizer" not in name:
            np.testing.assert_array_equal(array, after[name], err_msg=name)
    with pytest.raises(CheckpointError, match=r"knows nothing of rewards\.bonuses\.other"):
        workshop.resume(overrides=["rewards.bonuses.other.kind=rnd", "budget.max_env_steps=800"])


def test_a_run_with_a_head_for_each_term_learns_and_names_must_be_the_terms(workshop):
    heads = {"extrinsic": {}, "seen": {"discount": 0.9}, "intrinsic-rnd": {"episodic": False}}
    rewards = {**REWARDS, "bonuses": {name: BONUSES[name] for name in ("seen", "rnd")}}
    learner = {**LEARNERS["dqn"], "value_loss": "mse", "support": {}, "heads": heads}
    workshop.train(rewards=rewards, learner=learner, budget__max_env_steps=300)
    assert {f"learner/q_mean/{name}" for name in heads} <= figures(workshop).keys()
    learner["heads"] = {"extrinsic": {}, "rnd": {}}
    with pytest.raises(
        ConfigError, match=r"learner\.heads values extrinsic, rnd, the terms of rewards are .*intrinsic-rnd"
    ):
        workshop.train("other", rewards=rewards, learner=learner)


@pytest.mark.slow
def test_roles_under_ray_pay_the_same_bonuses_and_resume_with_them(workshop):
    changes = {"budget__max_env_steps": 2_000, "learner": LEARNERS["dqn"], "actors__count": 1}
    workshop.train(rewards=REWARDS, serial=False, **changes)
    before, last = tensors_of(workshop)["bonuses"], figures(workshop)
    assert last["bonus/rnd_steps"] >= 1_500 // 32
    assert last["bonus/rnd_lost_rows"] == 0
    assert last["learner/reward_missing_share/e3b"] < 0.9
    assert last["actors/return_e3b"] > 0
    workshop.resume(overrides=["budget.max_env_steps=2500"], serial=False)
    assert tensors_of(workshop)["bonuses"]["rnd.gradient.counters.updates"] > before["rnd.gradient.counters.updates"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"placement__learners": 2, "actors__rollout__envs_per_actor": 2}, r"placement\.learners is 2"),
        ({"captioner": {"kind": "none"}, "rewards__intrinsic": None}, "no captions to count"),
        ({"rewards__bonuses": {"a": {"kind": "rnd", "leaves": ["observation.map"]}}}, r"a\.leaves names"),
    ],
)
def test_bonuses_that_a_run_cannot_pay_are_refused_before_it_starts(workshop, changes, message):
    settings = workshop.settings(**{"rewards": {**REWARDS, "products": []}, **changes})
    with pytest.raises(ConfigError, match=message):
        plan_run(read_settings(RunSettings, settings))


@pytest.mark.parametrize(
    ("rewards", "message"),
    [
        ({"bonuses": {"rnd": {"kind": "rnd", "episode_cap": 1.0}}}, "episode_cap"),
        ({"bonuses": {"extrinsic": {"kind": "rnd"}}}, "bonuses has the name"),
        ({"bonuses": {"a": {"kind": "rnd", "coefficient": -1.0}}}, "0 or more"),
        ({"products": [["extrinsic", "rnd"]]}, "products has"),
        ({"products": [[]]}, "products has"),
        ({"bonuses": {"a": {"kind": "e3c"}}}, "e3b"),
        ({"bonuses": {"a": {"kind": "rnd", "coefficient": {"start": 1.0, "end": 0.0, "env_steps": 0}}}}, "1 or more"),
    ],
)
def test_wrong_bonuses_are_refused_with_what_is_allowed(workshop, rewards, message):
    with pytest.raises(ConfigError, match=message):
        read_settings(RunSettings, workshop.settings(rewards=rewards))


@pytest.mark.parametrize("capacity_rows", [2_000, 300])
def test_rows_that_a_new_ring_has_from_the_log_are_not_counted_again(workshop, capacity_rows):
    bonuses = {
        "keys": {"kind": "key_counts", "scope": "global", "coefficient": 0.1},
        "seen": {"kind": "observation_counts", "scope": "global", "coefficient": 0.1},
        "rnd": {"kind": "rnd", "train_rows": 32, "coefficient": 0.1},
    }
    result = workshop.train(rewards__bonuses=bonuses, replay__capacity_rows=capacity_rows, budget__max_env_steps=500)
    for steps in (500, 550, 600):
        if steps > 500:
            result = workshop.resume(overrides=[f"budget.max_env_steps={steps}"])
        counts = load_checkpoint(workshop.runs / "run" / "checkpoints").tensors["bonuses"]
        assert result.env_steps - 32 <= counts["keys.rows"].sum() <= result.env_steps
        assert not any(counts[name].any() for name in counts if name.endswith("lost_rows"))
