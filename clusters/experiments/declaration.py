"""What an experiment is: arms, seeds, and what is claimed of their scores. Data only; nothing heavy is imported here.

    EXPERIMENT = Experiment(
        name="it-helps",
        summary="Do labels help?",
        seeds=(1, 2, 3, 4, 5),
        arms=(
            Arm(name="with", task="KeyRoom", group="oni", trial=TrainedTrial(preset="minihack-oni"), at_least=0.8,
                figure="success", guess_seconds=120),
            Arm(name="without", task="KeyRoom", group="extrinsic", trial=TrainedTrial(preset="minihack-oni",
                overrides=("rewards.intrinsic=null",)), figure="success", guess_seconds=120),
        ),
        comparisons=(Comparison(arm="with", other="without", expected="above"),),
    )

One line in ``registry.py`` makes it `onibi experiment it-helps`; one of your own is named by its import path,
`onibi experiment my_package.my_module:EXPERIMENT`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

SHORT_EPISODES = 4
"""Played after a shortened run: enough to see that playing works."""

_EVALUATION_SEED = 424_242


def evaluation_seed(seed: int) -> int:
    """Of the fresh episodes after the run of ``seed``: neither training nor its own evaluations play these games."""
    return _EVALUATION_SEED + seed


@dataclass(frozen=True, kw_only=True)
class TrainedTrial:
    """`onibi train PRESET --serial`, then fresh episodes, once, for the checkpoint that the run itself named best.

    Its figures are ``return``, ``success`` and ``intrinsic`` where the task tells them, each a mean over the
    episodes, ``env_steps``, ``updates``, ``train_seconds`` and the ``curve`` of the run's own evaluations.
    """

    preset: str
    overrides: tuple[str, ...] = ()
    episodes: int = 20
    checkpoint: str = "best"  # or "last"; best is the last one where the run named none
    revision: int = 1  # raise it when the code or a default changes what a run measures: old rows then no longer count

    def changed(self, name: str, value: Any) -> TrainedTrial:
        """The same with one more setting."""
        return dataclasses.replace(self, overrides=(*self.overrides, f"{name}={value}"))

    def shortened(self, changes: Mapping[str, Any]) -> TrainedTrial:
        """The same with a small budget."""
        short = self
        for name, value in changes.items():
            short = short.changed(name, value)
        return dataclasses.replace(short, episodes=SHORT_EPISODES)


@dataclass(frozen=True, kw_only=True)
class CalledTrial:
    """``function(seed=…, **arguments) -> {figure: number}`` in a process of the runner's.

    Args:
        function: ``"module:name"``.
        arguments: of the call, plain values.
        revision: raise it when the function's code measures something else than before: old rows then no longer count.
    """

    function: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    revision: int = 1

    def changed(self, name: str, value: Any) -> CalledTrial:
        """The same with one argument set."""
        return dataclasses.replace(self, arguments={**self.arguments, name: value})

    def shortened(self, changes: Mapping[str, Any]) -> CalledTrial:
        """The same with the arguments replaced that it has."""
        known = {name: value for name, value in changes.items() if name in self.arguments}
        return dataclasses.replace(self, arguments={**self.arguments, **known})


Trial: TypeAlias = TrainedTrial | CalledTrial


@dataclass(frozen=True, kw_only=True)
class Tuning:
    """One value chosen from a grid by the arm's score, on seeds that the result never sees.

    Args:
        name: the setting or argument.
        values: the grid.
        seeds: none of those that the arm is then judged on.
    """

    name: str
    values: tuple[float, ...]
    seeds: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One thing that is run over seeds.

    Args:
        name: unique in its experiment.
        task: what is played; arms of one task have scores on one scale.
        group: what is compared over tasks, as the learner.
        trial: what one run is.
        guess_seconds: of one run on one core, until a run was measured.
        figure: which of the trial's figures is the score.
        higher_is_better: direction of the score.
        at_least, at_most: what every seed's score has to reach; None where nothing is claimed of this arm alone.
        score_range: scores that count as 0 and 1 where tasks are averaged; None: the arm is left out there.
        seeds: None: the experiment's.
        tuning: what is chosen first, on other seeds.
    """

    name: str
    task: str
    group: str
    trial: Trial
    guess_seconds: float
    figure: str = "return"
    higher_is_better: bool = True
    at_least: float | None = None
    at_most: float | None = None
    score_range: tuple[float, float] | None = None
    seeds: tuple[int, ...] | None = None
    tuning: Tuning | None = None


Expectation: TypeAlias = Literal["above", "not below", "tie"]


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """What is expected of two arms' scores; told beside what was found.

    Args:
        arm, other: names; the difference is of ``arm`` over ``other``, better counting as positive.
        expected: ``above``: the difference's 95% interval lies above 0. ``not below``: it reaches 0 or lies above.
            ``tie``: it holds 0.
        paired: differences are taken seed by seed.
        claimed: a claim that fails fails the experiment; else either outcome is only told.
    """

    arm: str
    other: str
    expected: Expectation
    paired: bool = False
    claimed: bool = True


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """Arms, seeds and claims.

    Args:
        name: in commands and tables.
        summary: one line: the question.
        seeds: of the claims.
        reference_seeds: of `--thresholds`.
        arms: in the table's order.
        comparisons: between arms.
        overrides: of every trained run.
        short: settings and arguments of `--short`.
    """

    name: str
    summary: str
    seeds: tuple[int, ...]
    arms: tuple[Arm, ...]
    comparisons: tuple[Comparison, ...] = ()
    reference_seeds: tuple[int, ...] = tuple(range(101, 111))
    overrides: tuple[str, ...] = ()
    short: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuse names that are not unique, claims about arms that are not there, and tuning on seeds judged on."""
        names = [arm.name for arm in self.arms]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"experiment {self.name}: arms named twice: {', '.join(twice)}")
        for comparison in self.comparisons:
            for name in (comparison.arm, comparison.other):
                if name not in names:
                    raise ValueError(f"experiment {self.name}: a comparison names {name!r}, which is no arm")
        for arm in self.arms:
            seeds = set(arm.seeds or self.seeds) | set(self.reference_seeds)
            if arm.tuning is not None and seeds & set(arm.tuning.seeds):
                raise ValueError(f"experiment {self.name}: arm {arm.name} is tuned on seeds that it is judged on")

    def seeds_of(self, arm: Arm) -> tuple[int, ...]:
        """The arm's own seeds, or the experiment's."""
        return self.seeds if arm.seeds is None else arm.seeds

    def trial_of(self, arm: Arm, *, short: bool) -> Trial:
        """The arm's trial with the experiment's overrides, shortened where asked."""
        trial = arm.trial
        if isinstance(trial, TrainedTrial):
            trial = dataclasses.replace(trial, overrides=(*self.overrides, *trial.overrides))
            changes = {name: value for name, value in self.short.items() if "." in name}
        else:
            changes = {name: value for name, value in self.short.items() if "." not in name}
        return trial.shortened(changes) if short else trial
