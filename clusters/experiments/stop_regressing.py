"""`onibi experiment stop-regressing`: the claim of "Stop Regressing" (arXiv 2403.03950), re-made small.

Stated before the first run:

* Control. Q-learning on a chain of sixteen cells and on FrozenLake, noise U(0, η) on the rewards, η 0.1, 0.3 and 1:
  hl_gauss is expected **better** than mse, by the greedy policy's exact return, averaged over 20 evaluations on the
  way: so speed counts as well as the end.
* Evaluation of a fixed policy under η 0.3: a **tie** is expected, by the error of the values.

Equal terms: the same network (two hidden layers, widths 64 and 1,024), batches, number of updates (600); for each loss
the learning rate that is its best of five on three other seeds. The support holds every target plus 3 σ on either side.
Ten seeds, paired: both losses see the same transitions and noise. Either outcome is told; there is no threshold.

Added after width 64 had come out against hl_gauss, and to be read so: control once more at width 64 with 3,000 updates,
as three seeds of one case had shown the order turn with longer training.

Differences from the paper: tables of states instead of Atari, two layers instead of a CNN, uniform states and actions
instead of replay, tasks without ends (see ``tabular.TabularTask.continuing``).
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

from onibi.clusters.experiments.declaration import Arm, CalledTrial, Comparison, Experiment, ShortForm, Tuning

LOSSES = ("hl_gauss", "mse")
_TASKS = ("chain", "frozen_lake")
_CONTROL_NOISES, _EVALUATION_NOISE = (0.1, 0.3, 1.0), 0.3
_LEARNING_RATES = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2)
_TUNING_SEEDS = (1001, 1002, 1003)
_SEEDS = tuple(range(1, 11))
_UPDATES, _MANY_UPDATES = 600, 3_000
_UPDATE_SECONDS = {64: 0.001, 1024: 0.005}  # guessed, on one core


@dataclass(frozen=True)
class _Case:
    """What both losses have in common."""

    mode: str
    task: str
    noise: float
    width: int
    updates: int = _UPDATES

    @property
    def name(self) -> str:
        longer = f"-updates{self.updates}" if self.updates != _UPDATES else ""
        return f"{self.mode}-{self.task}-noise{self.noise:g}-width{self.width}{longer}"

    def arm(self, loss: str) -> Arm:
        is_control = self.mode == "control"
        longer = f" updates {self.updates}" if self.updates != _UPDATES else ""
        arguments = {
            "mode": self.mode,
            "task": self.task,
            "noise": self.noise,
            "width": self.width,
            "value_loss": loss,
            "updates": self.updates,
        }
        return Arm(
            name=f"{self.name}-{loss}",
            task=f"{self.mode} {self.task} noise {self.noise:g} width {self.width}{longer}",
            group=loss,
            trial=CalledTrial(function="onibi.clusters.experiments.value_regression:run", arguments=arguments),
            guess_seconds=0.3 + self.updates * _UPDATE_SECONDS[self.width],
            figure="return" if is_control else "value_error",
            higher_is_better=is_control,
            score_range=(0.0, 1.0) if is_control else (1.0, 0.0),
            tuning=Tuning(name="learning_rate", values=_LEARNING_RATES, seeds=_TUNING_SEEDS),
        )


_CASES = (
    *(_Case("control", task, noise, width) for width in (64, 1024) for task in _TASKS for noise in _CONTROL_NOISES),
    *(_Case("evaluation", task, _EVALUATION_NOISE, width) for width, task in product((64, 1024), _TASKS)),
    *(_Case("control", task, noise, 64, _MANY_UPDATES) for task in _TASKS for noise in _CONTROL_NOISES),
)

EXPERIMENT = Experiment(
    name="stop-regressing",
    summary="is a value learnt better by classification than by regression where rewards are noisy?",
    seeds=_SEEDS,
    arms=tuple(case.arm(loss) for case in _CASES for loss in LOSSES),
    comparisons=tuple(
        Comparison(
            arm=f"{case.name}-hl_gauss",
            other=f"{case.name}-mse",
            expected="above" if case.mode == "control" else "tie",
            paired=True,
            claimed=False,
        )
        for case in _CASES
    ),
    short=ShortForm(arguments={"updates": 40}),
)
