"""The declarations of `it-helps` and `relabelling`: arms of a task differ in what they say they differ in, alone."""

from __future__ import annotations

import pytest

from onibi.clusters.experiments import it_helps, relabelling
from onibi.clusters.experiments.schedule import trial_hash
from onibi.clusters.sessions import read_run_settings
from onibi.platform.config import to_mapping

EXPERIMENT = it_helps.EXPERIMENT
TASKS = sorted({arm.task for arm in EXPERIMENT.arms})


def resolved(arm):
    trial = EXPERIMENT.trial_of(arm, short=False)
    return to_mapping(read_run_settings(trial.preset, trial.overrides))


@pytest.mark.parametrize("task", TASKS)
def test_arms_of_a_task_differ_in_judge_and_reward_alone(task):
    arms = [arm for arm in EXPERIMENT.arms if arm.task == task]
    found = []
    for arm in arms:
        settings = resolved(arm)
        intrinsic = settings["rewards"]["intrinsic"]
        assert intrinsic is None or (intrinsic["coefficient"], intrinsic["count_power"]) == (0.1, 3.0)
        found.append({name: value for name, value in settings.items() if name not in ("annotator", "rewards")})
        assert settings["rewards"]["extrinsic"] == resolved(arms[0])["rewards"]["extrinsic"]
        assert settings["evaluation"]["judge"] == "success"
        assert settings["evaluation"]["epsilon"] == 0.0
        assert settings["environment"]["kwargs"].get("penalty_step", 0) == 0
        assert len({arm.seeds, arms[0].seeds}) == 1
        assert arm.tuning is None
    assert all(each == found[0] for each in found)
    assert len({trial_hash(EXPERIMENT.trial_of(arm, short=False)) for arm in arms}) == len(arms)


def test_the_issues_tasks_steps_and_arms_are_all_there():
    steps = {arm.name: resolved(arm)["budget"]["max_env_steps"] for arm in EXPERIMENT.arms}
    by_task = {"keyroom": 500_000, "river": 350_000, "doorkey": 450_000}
    for task, budget in by_task.items():
        for group in ("extrinsic", "embedding", "lexicon", "all-ones"):
            assert steps[f"{task}-{group}"] == budget
    for group in ("permuted", "classification", "ranking", "rnd"):
        assert steps[f"keyroom-{group}"] == 500_000
    corridor = [arm for arm in EXPERIMENT.arms if arm.name.startswith("corridor")]
    assert {len(EXPERIMENT.seeds_of(arm)) for arm in corridor} == {10}
    assert len(EXPERIMENT.seeds) == 5
    short = EXPERIMENT.arms_of(short=True)
    assert ({arm.task for arm in short}, len(short), EXPERIMENT.short.seeds) == ({"KeyRoom-S5"}, 4, 3)


def test_every_judge_is_compared_with_the_reward_alone_and_with_paying_for_everything():
    compared = {(each.arm, each.other) for each in EXPERIMENT.comparisons}
    assert all(each.test == "permutation" for each in EXPERIMENT.comparisons)
    for arm in EXPERIMENT.arms:
        task, _, group = arm.name.partition("-")
        if group not in ("extrinsic", "all-ones"):
            assert {(arm.name, f"{task}-extrinsic"), (arm.name, f"{task}-all-ones")} <= compared


def test_the_arms_of_relabelling_release_the_same_labels_at_150_000_steps_and_hold_every_row():
    trials = [arm.trial for arm in relabelling.EXPERIMENT.arms]
    assert [trial.arguments["mode"] for trial in trials] == ["gather", "frozen", "frozen_labelled"]
    for trial in trials:
        assert trial.overrides == trials[0].overrides
        settings = read_run_settings(trial.preset, trial.overrides)
        assert settings.annotation.delay_steps == 150_000
        assert settings.replay.capacity_rows >= 400_000
        assert settings.learner.value_loss == "hl_gauss"
        assert settings.budget.max_env_steps == 400_000
        assert trial.arguments["span"] == (150_000, 400_000)
