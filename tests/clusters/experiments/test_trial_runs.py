"""One run of an experiment: what a called function is told, and which trained runs are whole."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from onibi.clusters.experiments.declaration import Arm, CalledTrial, Experiment
from onibi.clusters.experiments.schedule import Job, job_message
from onibi.clusters.experiments.trial_runs import check_whole, run_trial
from onibi.clusters.run_journal import RunResult
from onibi.platform.errors import TrainingError


@pytest.mark.parametrize(
    ("result", "told"),
    [
        ({}, None),
        ({"status": "interrupted"}, "ended as interrupted"),
        ({"env_steps": 599}, "ended by the clock after 599 of 600 env steps"),
        ({"evaluations": [{"env_steps": 400.0}]}, "last evaluation is of env step 400, and it took 608"),
        ({"evaluations": []}, "last evaluation is of env step 0, and it took 608"),
    ],
    ids=["whole", "interrupted", "by the clock", "last evaluation left out", "none at all"],
)
def test_a_run_that_is_not_whole_gives_no_row_that_counts(result, told):
    whole = {"status": "finished", "env_steps": 608, "evaluations": [{"env_steps": 400.0}, {"env_steps": 608.0}]}
    ended = RunResult(folder=Path("a"), updates=9, seconds=1.0, **(whole | result))
    if told is None:
        check_whole(ended, 600, "a")
        check_whole(ended, None, "a")
    else:
        with pytest.raises(TrainingError, match=told):
            check_whole(ended, 600, "a")


def test_a_call_with_a_preset_is_told_it_and_all_overrides_of_its_experiment():
    trial = CalledTrial(function=f"{__name__}:told_back", preset="cartpole-dqn", overrides=("a=1",))
    experiment = Experiment(
        name="e",
        summary="s",
        seeds=(1,),
        arms=(Arm(name="a", task="t", group="g", trial=trial, guess_seconds=1.0),),
        overrides=("b=2",),
    )
    (arm,) = experiment.arms
    job = Job(arm, experiment.trial_of(arm, short=False), 3, "ab", "final")
    message = json.loads(json.dumps(job_message(job, Path("runs"))))
    figures = run_trial(message)
    assert figures.pop("wall_seconds") >= 0
    assert figures == {"seed": 3, "preset": "cartpole-dqn", "overrides": ("b=2", "a=1")}


def told_back(**told):
    return told
