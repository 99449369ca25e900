"""The presets of impala and appo learn what the documentation says; with a learning rate of 0 they are seen not to."""

from __future__ import annotations

import pytest

from onibi.clusters import evaluate, train

REACHED = {
    "cartpole-appo": 475.0,
    "cartpole-impala": 475.0,
    "acrobot-appo": -100.0,
    "lunarlander-appo": 200.0,
    "pendulum-appo": -250.0,
}
UNTRAINED = {
    "cartpole-appo": 240.0,
    "cartpole-impala": 240.0,
    "acrobot-appo": -300.0,
    "lunarlander-appo": 0.0,
    "pendulum-appo": -800.0,
}

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1_800)]


def played(preset: str, folder, seed: int, *, serial: bool, overrides=()) -> float:
    """Mean return of 20 fresh episodes, likeliest actions, by the policy that its run's own evaluations name best."""
    if preset.startswith("lunarlander"):
        pytest.importorskip("Box2D")
    result = train(
        preset,
        overrides=[f"seed={seed}", "budget.max_seconds=1500", "tracking.enabled=false", *overrides],
        runs_folder=folder,
        display=False,
        serial=serial,
    )
    return (
        evaluate(result.folder.name, episodes=20, seed=999_000 + seed, runs_folder=folder)
        .players[0]
        .episode_return.mean
    )


@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.parametrize("preset", ["cartpole-appo", "cartpole-impala"])
def test_cartpole_is_solved_with_one_process_and_with_many(tmp_path, preset, seed):
    assert played(preset, tmp_path, seed, serial=seed != 1) >= REACHED[preset]


@pytest.mark.parametrize("preset", ["acrobot-appo", "lunarlander-appo", "pendulum-appo"])
def test_other_tasks_are_solved(tmp_path, preset):
    assert played(preset, tmp_path, 1, serial=True) >= REACHED[preset]


@pytest.mark.parametrize("preset", REACHED)
def test_nothing_is_solved_without_learning(tmp_path, preset):
    changes = ("learner.learning_rate=0.0", "budget.max_env_steps=30000")
    assert played(preset, tmp_path, 1, serial=True, overrides=changes) < UNTRAINED[preset]
