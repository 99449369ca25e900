"""`onibi experiment learners`: does every learner learn what it is said to?

Each claim over the declared seeds, serial, with its budget in env steps: the checkpoint that the run's own evaluations
named best, then 20 fresh episodes, once. The exact arms compare values with dynamic programming.
"""

from __future__ import annotations

from onibi.clusters.experiments.declaration import Arm, CalledTrial, Comparison, Experiment, ShortForm, TrainedTrial

_CARTPOLE_SCORES = (20.0, 500.0)  # random play's mean return, the most there can be
_LUNAR_LANDER_SCORES = (-180.0, 250.0)
_ACROBOT_SCORES = (-500.0, -80.0)
_VALUE_ERROR = 0.02  # as a share of the largest exact value
_CARTPOLE_LEARNERS = {  # with the guessed seconds of a run
    "dqn": 110.0,
    "rainbow": 250.0,
    "r2d2": 300.0,
    "impala": 60.0,
    "appo": 60.0,
    "pqn": 120.0,
}
_EXACT = {
    "chain": {"discount": 0.9, "updates": 4_500, "learning_rate": 1e-3},
    "frozen_lake": {"discount": 0.95, "updates": 12_000, "learning_rate": 2e-3},
}


def _cartpole(learner: str, seconds: float) -> Arm:
    return Arm(
        name=f"cartpole-{learner}",
        task="CartPole-v1",
        group=learner,
        trial=TrainedTrial(preset=f"cartpole-{learner}"),
        at_least=475.0,
        score_range=_CARTPOLE_SCORES,
        guess_seconds=seconds,
    )


def _hidden_velocities(learner: str, seconds: float, at_least: float | None) -> Arm:
    return Arm(
        name=f"cartpole-hidden-{learner}",
        task="CartPole-v1 without velocities",
        group=learner,
        trial=TrainedTrial(preset=f"cartpole-hidden-{learner}"),
        at_least=at_least,
        score_range=_CARTPOLE_SCORES,
        guess_seconds=seconds,
    )


def _exact(task: str, value_loss: str) -> Arm:
    return Arm(
        name=f"exact-{task.replace('_', '-')}-{value_loss}",
        task=f"{task} against dynamic programming",
        group=f"dqn {value_loss}",
        trial=CalledTrial(
            function="onibi.clusters.experiments.exact_values:learn",
            arguments={"task": task, "value_loss": value_loss, **_EXACT[task]},
        ),
        figure="value_error",
        higher_is_better=False,
        at_most=_VALUE_ERROR,
        guess_seconds=45.0,
    )


EXPERIMENT = Experiment(
    name="learners",
    summary="does every learner learn what it is said to?",
    seeds=(1, 2, 3, 4, 5),
    arms=(
        *(_cartpole(learner, seconds) for learner, seconds in _CARTPOLE_LEARNERS.items()),
        _hidden_velocities("r2d2", 600.0, 400.0),
        _hidden_velocities("dqn", 200.0, None),
        *(
            Arm(
                name=f"lunarlander-{learner}",
                task="LunarLander-v3",
                group=learner,
                trial=TrainedTrial(preset=f"lunarlander-{learner}"),
                at_least=200.0,
                score_range=_LUNAR_LANDER_SCORES,
                guess_seconds=400.0,
            )
            for learner in ("dqn", "appo")
        ),
        *(
            Arm(
                name=f"acrobot-{learner}",
                task="Acrobot-v1",
                group=learner,
                trial=TrainedTrial(preset=f"acrobot-{learner}"),
                at_least=-100.0,
                score_range=_ACROBOT_SCORES,
                guess_seconds=100.0,
            )
            for learner in ("dqn", "appo")
        ),
        *(
            Arm(
                name=f"minatar-{game}-dqn",
                task=f"MinAtar {game}",
                group="dqn",
                trial=TrainedTrial(preset=f"minatar-{game}-dqn"),
                seeds=(1, 2, 3),
                guess_seconds=1_500.0,
            )
            for game in ("breakout", "space-invaders")
        ),
        *(_exact(task, loss) for task in _EXACT for loss in ("hl_gauss", "mse")),
    ),
    comparisons=(Comparison(arm="cartpole-hidden-r2d2", other="cartpole-hidden-dqn", expected="above"),),
    # No clock decides how much is learnt; 80 runs need neither a tracker nor their replay logs.
    overrides=("tracking.enabled=false", "budget.max_seconds=null", "replay.log.enabled=false"),
    short=ShortForm(
        settings={"budget.max_env_steps": 4_000, "evaluation.period_env_steps": "null"}, arguments={"updates": 200}
    ),
)
