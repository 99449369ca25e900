"""Bonuses lead where chance does not: a corridor of 32 cells with its reward at the far end, 64 steps an episode."""

from __future__ import annotations

import pytest

ROOMS, STEPS = 8, 12_000
BONUSES = {
    "observation_counts": {"kind": "observation_counts", "scope": "global", "coefficient": 0.5},
    "rnd": {"kind": "rnd", "train_rows": 32, "learning_rate": 1e-3, "coefficient": 0.1},
}


def evaluated(workshop, name, seed, bonus):
    """The best mean return of 8 greedy episodes over the run's evaluations. The bonus falls to 0 over two thirds of it.

    The best, as one checkpoint in eight has a greedy policy that turns back at some cell for ever.
    """
    start = bonus["coefficient"]
    bonus = bonus | {"coefficient": {"start": start, "end": 0.0, "env_steps": STEPS * 2 // 3}}
    workshop.train(
        name,
        seed=seed,
        environment__kwargs={"rooms": ROOMS, "room_length": 4},
        environment__max_episode_steps=ROOMS * 8,
        captioner={"kind": "none"},
        rewards={"bonuses": {"new": bonus}},
        actors={"count": 1, "rollout": {"envs_per_actor": 4, "fragment_steps": 8, "fragment_steps_max": 8}},
        replay__capacity_rows=20_000,
        replay__limiter={"samples_per_insert": 8, "minimum_rows": 300},
        learner={
            "kind": "dqn",
            "batch_size": 64,
            "value_loss": "huber",
            "learning_rate": 1e-3,
            "discount": 0.97,
            "n_steps": 8,
            "network": {"kind": "mlp", "hidden": [64]},
            "target": {"rate": 0.02},
        },
        budget__max_env_steps=STEPS,
        evaluation={"period_env_steps": 2_000, "episodes": 8, "envs": 4},
    )
    return max(each["return_mean"] for each in workshop.evaluations(name))


@pytest.mark.slow
@pytest.mark.parametrize("kind", BONUSES)
def test_a_bonus_finds_the_far_end_in_every_seed(workshop, kind):
    assert [evaluated(workshop, f"seed-{seed}", seed, BONUSES[kind]) for seed in (1, 2, 3)] == [1.0, 1.0, 1.0]


@pytest.mark.slow
def test_the_same_run_with_a_coefficient_of_nothing_never_finds_it(workshop):
    bonus = BONUSES["observation_counts"] | {"coefficient": 0.0}
    assert [evaluated(workshop, f"seed-{seed}", seed, bonus) for seed in (1, 2, 3)] == [0.0, 0.0, 0.0]
