"""`onibi experiment stop-regressing`: the claim of "Stop Regressing" (arXiv 2403.03950), re-made small.

Stated before the first run:

* Control. Q-learning on a chain of sixteen cells and on FrozenLake, noise U(0, η) on the rewards, η 0.1, 0.3
  and 1: hl_gauss is expected **better** than mse, by the greedy policy's exact return, averaged
  over 20 evaluations on the way: so speed counts as well as the end.
* Evaluation of a fixed policy under η 0.3: a **tie** is expected, by the error of the values.

Equal terms: the same network (two hidden layers, widths 64 and 1,024), batches, number of updates; for each loss the
learning rate that is its best of five on three other seeds. The support holds every target plus 3 σ on either side.
Ten seeds, paired: both losses see the same transitions and noise. Either outcome is told; there is no threshold.

Differences from the paper: tables of states instead of Atari, two layers instead of a CNN, uniform states and actions
instead of replay, tasks without ends (see ``tabular.TabularTask.continuing``).
"""

from __future__ import annotations

from itertools import product

from onibi.clusters.experiments.declaration import Arm, CalledTrial, Comparison, Experiment, Tuning

LOSSES = ("hl_gauss", "mse")
_TASKS, _WIDTHS = ("chain", "frozen_lake"), (64, 1024)
_NOISES = {"control": (0.1, 0.3, 1.0), "evaluation": (0.3,)}
_LEARNING_RATES = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2)
_TUNING_SEEDS = (1001, 1002, 1003)
_SEEDS = tuple(range(1, 11))
_UPDATES = 600
_GUESS_SECONDS = {64: 1.0, 1024: 4.0}
_CASES = [
    (mode, task, noise, width)
    for mode, noises in _NOISES.items()
    for task, noise, width in product(_TASKS, noises, _WIDTHS)
]


def _name(mode: str, task: str, noise: float, width: int, loss: str) -> str:
    return f"{mode}-{task}-noise{noise:g}-width{width}-{loss}"


def _arm(mode: str, task: str, noise: float, width: int, loss: str) -> Arm:
    is_control = mode == "control"
    arguments = {"mode": mode, "task": task, "noise": noise, "width": width, "value_loss": loss, "updates": _UPDATES}
    return Arm(
        name=_name(mode, task, noise, width, loss),
        task=f"{mode} {task} noise {noise:g} width {width}",
        group=loss,
        trial=CalledTrial(function="onibi.clusters.experiments.value_regression:run", arguments=arguments),
        guess_seconds=_GUESS_SECONDS[width],
        figure="return" if is_control else "value_error",
        higher_is_better=is_control,
        score_range=(0.0, 1.0) if is_control else (1.0, 0.0),
        tuning=Tuning(name="learning_rate", values=_LEARNING_RATES, seeds=_TUNING_SEEDS),
    )


EXPERIMENT = Experiment(
    name="stop-regressing",
    summary="is a value learnt better by classification than by regression where rewards are noisy?",
    seeds=_SEEDS,
    arms=tuple(_arm(*case, loss) for case in _CASES for loss in LOSSES),
    comparisons=tuple(
        Comparison(
            arm=_name(*case, "hl_gauss"),
            other=_name(*case, "mse"),
            expected="above" if case[0] == "control" else "tie",
            paired=True,
            claimed=False,
        )
        for case in _CASES
    ),
    short={"updates": 40},
)
