"""The small tasks with known values, and the trials of experiments that learn on them."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from onibi.clusters.experiments import exact_values, value_regression
from onibi.clusters.experiments.declaration import CalledTrial
from onibi.clusters.experiments.stop_regressing import EXPERIMENT
from onibi.clusters.experiments.tabular import (
    chain,
    frozen_lake,
    greedy,
    make_task,
    optimal_values,
    policy_values,
    start_value,
)

torch.set_num_threads(1)  # small networks: on busy cores torch's own threads wait for each other

RUN = {"mode": "control", "task": "chain", "noise": 0.1, "width": 32, "value_loss": "hl_gauss", "updates": 300}


def test_a_chain_without_slipping_is_worth_the_discount_to_the_steps_that_are_left():
    values = optimal_values(chain(5, slip=0.0), 0.9)
    np.testing.assert_allclose(values[:, 1], [0.9**3, 0.9**2, 0.9, 1.0, 0.0])
    np.testing.assert_allclose(values[:, 0], [0.9**4, 0.9**4, 0.9**3, 0.9**2, 0.0])


def test_a_bonus_with_every_step_is_worth_its_own_sum():
    np.testing.assert_allclose(optimal_values(chain(3, slip=0.0), 0.5, bonus=1.0)[1, 1], 2.0)  # 1 + 1, then the end


@pytest.mark.parametrize("task", ["chain", "frozen_lake"])
def test_the_greedy_policy_of_the_best_values_has_these_values(task):
    process = make_task(task)
    values = optimal_values(process, 0.9)
    np.testing.assert_allclose(policy_values(process, greedy(values), 0.9), values, atol=1e-9)


def test_frozen_lake_is_won_as_often_as_known():
    """At γ → 1 the best policy of the slippery 4 × 4 map wins 14 games of 17 = 0.824, without a limit of steps."""
    lake = frozen_lake()
    best = greedy(optimal_values(lake, 0.99999))
    assert start_value(lake, best, 1.0 - 1e-9) == pytest.approx(14 / 17, abs=1e-3)


@pytest.mark.parametrize("task", ["chain", "frozen_lake"])
def test_without_ends_a_bonus_moves_all_values_by_the_same(task):
    process = make_task(task).continuing()
    np.testing.assert_allclose(process.transition.sum(axis=2), 1.0)
    moved = optimal_values(process, 0.9, bonus=0.5) - optimal_values(process, 0.9)
    np.testing.assert_allclose(moved, 0.5 / (1 - 0.9), atol=1e-9)


def test_with_ends_the_same_bonus_changes_what_is_best():
    process = make_task("chain")
    without, with_bonus = (greedy(optimal_values(process, 0.95, bonus=bonus)) for bonus in (0.0, 1.0))
    assert (without[:-1] != with_bonus[:-1]).any()


def test_draws_follow_the_transition_probabilities():
    lake, rng = frozen_lake(), np.random.default_rng(0)
    following, _ = lake.draw(np.full(30_000, 14), np.full(30_000, 2), rng)
    shares = np.bincount(following, minlength=16) / 30_000
    np.testing.assert_allclose(shares, lake.transition[14, 2], atol=0.015)
    assert shares[lake.transition[14, 2] == 0].sum() == 0


def test_a_trial_finds_the_best_policy_of_the_chain():
    figures = value_regression.run(seed=1, learning_rate=3e-3, **RUN)
    assert figures["final_return"] == pytest.approx(1.0)
    assert figures["clipped_share"] == 0.0


def test_the_same_trial_finds_nothing_without_a_learning_rate():
    assert value_regression.run(seed=1, learning_rate=0.0, **RUN)["final_return"] < 0.5


def test_trials_repeat_under_a_seed_and_differ_between_seeds():
    short = RUN | {"updates": 60}
    first, again, other = (value_regression.run(seed=seed, learning_rate=1e-3, **short) for seed in (3, 3, 4))
    assert first == again
    assert first != other


@pytest.mark.parametrize("loss", ["hl_gauss", "mse"])
def test_evaluation_learns_the_values_of_the_policy(loss):
    figures = value_regression.run(
        seed=1, learning_rate=3e-3, **(RUN | {"mode": "evaluation", "value_loss": loss, "updates": 500})
    )
    assert figures["value_error"] < 0.35


def test_every_arm_of_stop_regressing_has_its_rival_with_all_else_equal():
    arms = {arm.name: arm for arm in EXPERIMENT.arms}
    assert len(EXPERIMENT.comparisons) * 2 == len(arms)
    for comparison in EXPERIMENT.comparisons:
        one, two = arms[comparison.arm], arms[comparison.other]
        assert isinstance(one.trial, CalledTrial)
        differing = {name for name in one.trial.arguments if one.trial.arguments[name] != two.trial.arguments[name]}
        assert differing == {"value_loss"}
        assert (one.tuning, one.task) == (two.tuning, two.task)


@pytest.mark.slow
@pytest.mark.parametrize("task", ["chain", "frozen_lake"])
def test_dqn_learns_the_exact_values_to_two_per_cent_and_not_at_all_without_learning(task):
    from onibi.clusters.experiments.learners import EXPERIMENT as LEARNERS

    arm = next(each for each in LEARNERS.arms if each.name == f"exact-{task.replace('_', '-')}-hl_gauss")
    assert exact_values.learn(seed=1, **arm.trial.arguments)["value_error"] <= arm.at_most
    stuck = dict(arm.trial.arguments) | {"learning_rate": 0.0, "updates": 100}
    assert exact_values.learn(seed=1, **stuck)["value_error"] > 0.5
