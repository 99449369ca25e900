"""The shipped presets learn what the documentation says, and a learner that cannot learn is seen not to.

With budgets in steps and generous limits in seconds; `tests/benchmarks/first_light.py` measures them as shipped.
"""

from __future__ import annotations

import pytest

from onibi.clusters import evaluate, train

CARTPOLE_RETURN = 475.0
"""What Gymnasium calls CartPole-v1 solved."""
KEYROOM_SUCCESS = 0.8

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1_800)]


def played(preset: str, folder, seed: int, episodes: int, overrides=()):
    """The policy named best by its run's own evaluations, in fresh episodes."""
    result = train(
        preset,
        overrides=[f"seed={seed}", "budget.max_seconds=900", "tracking.enabled=false", *overrides],
        runs_folder=folder,
        display=False,
    )
    return evaluate(result.folder.name, episodes=episodes, seed=999_000 + seed, runs_folder=folder).players[0]


@pytest.mark.parametrize("seed", [1, 2, 3, 4, 5])
def test_cartpole_is_solved(tmp_path, seed):
    assert played("cartpole-dqn", tmp_path, seed, 20).episode_return.mean >= CARTPOLE_RETURN


def test_cartpole_is_not_solved_without_learning(tmp_path):
    changes = ("learner.learning_rate=0.0", "budget.max_env_steps=30000")
    assert played("cartpole-dqn", tmp_path, 1, 20, changes).episode_return.mean < CARTPOLE_RETURN / 2


@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.parametrize("preset", ["cartpole-pqn", "cartpole-rainbow"])
def test_cartpole_is_solved_by_other_learners_too(tmp_path, preset, seed):
    assert played(preset, tmp_path, seed, 20).episode_return.mean >= CARTPOLE_RETURN


@pytest.mark.parametrize("preset", ["cartpole-pqn", "cartpole-rainbow"])
def test_cartpole_is_not_solved_by_them_without_learning(tmp_path, preset):
    changes = ("learner.learning_rate=0.0", "budget.max_env_steps=30000")
    assert played(preset, tmp_path, 1, 20, changes).episode_return.mean < CARTPOLE_RETURN / 2


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_the_key_room_is_solved(tmp_path, seed):
    success = played("minihack-oni", tmp_path, seed, 104, ("budget.max_env_steps=250000",)).success
    assert success.mean >= KEYROOM_SUCCESS


def test_the_key_room_is_not_solved_without_learning(tmp_path):
    changes = ("learner.learning_rate=0.0", "budget.max_env_steps=30000")
    assert played("minihack-oni", tmp_path, 1, 104, changes).success.mean < KEYROOM_SUCCESS / 2
