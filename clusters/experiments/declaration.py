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
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

_EVALUATION_SEED = 424_242
_FIGURES = ("return", "success", "intrinsic", "episodes", "env_steps", "updates", "train_seconds", "wall_seconds")
_FIGURES_OF_SPAN = ("success_area", "steps_to_80")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
"""Of folders and files: a run's is its arm's with seed and hash, 100 characters at most."""


def evaluation_seed(seed: int) -> int:
    """Of the fresh episodes after the run of ``seed``: neither training nor its own evaluations play these games."""
    return _EVALUATION_SEED + seed


@dataclass(frozen=True, kw_only=True)
class ShortForm:
    """What `--short` runs: by default one run of each arm, as small as is told here. Nothing is claimed of it.

    Args:
        settings: of trained runs and of calls with a preset, by their dotted names, in place of the arms'.
        arguments: of called functions that have them.
        arms: names; none stands for all.
        seeds: how many, the first of each arm's.
        episodes: fresh ones after a trained run; 4 are enough to see that playing works.
        guess_seconds: of one run, most of it start-up where the budget is small; an arm's own guess is not exceeded.
    """

    settings: Mapping[str, Any] = field(default_factory=dict)
    arguments: Mapping[str, Any] = field(default_factory=dict)
    arms: tuple[str, ...] = ()
    seeds: int = 1
    episodes: int = 4
    guess_seconds: float = 20.0

    def __post_init__(self) -> None:
        """Refuse a form that would run nothing and tell that it ran."""
        if self.seeds < 1:
            raise ValueError(f"the short form has {self.seeds} seeds; allowed: 1 or more")


@dataclass(frozen=True, kw_only=True)
class TrainedTrial:
    """`onibi train PRESET --serial`, then fresh episodes, once, for the checkpoint that the run itself named best.

    Its figures are ``return``, ``success`` and ``intrinsic`` where the task tells them, each a mean over the
    episodes, ``env_steps``, ``updates``, ``train_seconds`` and the ``curve`` of the run's own evaluations; with a
    ``success_span`` also the ``success_area`` between these env steps and ``steps_to_80`` (see ``success_curve.py``).
    """

    preset: str
    overrides: tuple[str, ...] = ()
    episodes: int = 20
    checkpoint: str = "best"  # or "last"; best is the last one where the run named none
    revision: int = 1  # raise it when the code or a default changes what a run measures: old rows then no longer count
    success_span: tuple[int, int] | None = None  # env steps between which success is summed up

    def __post_init__(self) -> None:
        """Refuse what would be found wrong when a run has ended."""
        if self.episodes < 1:
            raise ValueError(f"a trial of {self.preset} has {self.episodes} episodes; allowed: 1 or more")
        if self.success_span is not None and not 0 <= self.success_span[0] < self.success_span[1]:
            first, last = self.success_span
            raise ValueError(
                f"a trial of {self.preset} has the success_span {first} to {last}; allowed: 0 ≤ first < last, "
                "also where the short form ends it with its budget.max_env_steps"
            )

    @property
    def figures(self) -> tuple[str, ...]:
        """Names of the numbers that a run may give: ``success`` and ``intrinsic`` where the task tells them."""
        return _FIGURES if self.success_span is None else (*_FIGURES, *_FIGURES_OF_SPAN)

    def changed(self, name: str, value: Any) -> TrainedTrial:
        """The same with one more setting."""
        return dataclasses.replace(self, overrides=(*self.overrides, f"{name}={value}"))

    def shortened(self, form: ShortForm) -> TrainedTrial:
        """The same with the form's settings; success is summed up to the end of its budget at most."""
        short = self
        for name, value in form.settings.items():
            short = short.changed(name, value)
        span, budget = self.success_span, form.settings.get("budget.max_env_steps")
        if span is not None and budget is not None:
            span = (span[0], min(span[1], int(budget)))
        return dataclasses.replace(short, episodes=form.episodes, success_span=span)


@dataclass(frozen=True, kw_only=True)
class CalledTrial:
    """``function(seed=…, **arguments) -> {figure: number}`` in a process of the runner's.

    Args:
        function: ``"module:name"``.
        arguments: of the call, plain values.
        revision: raise it when the function's code measures something else than before: old rows then no longer count.
        preset: of the run that the function makes; it is called with ``preset=…, overrides=…`` too. Named here and not
            among the arguments, its settings count as those of a trained run do: a changed preset makes other rows.
        overrides: of the preset.
    """

    function: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    revision: int = 1
    preset: str | None = None
    overrides: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Refuse overrides of nothing, and arguments that another process cannot be told."""
        try:
            json.dumps(dict(self.arguments))
        except (TypeError, ValueError) as error:
            raise ValueError(f"the call of {self.function} has arguments that are no plain values: {error}") from error
        if self.overrides and self.preset is None:
            raise ValueError(f"the call of {self.function} has overrides {self.overrides}, but no preset to change")

    def changed(self, name: str, value: Any) -> CalledTrial:
        """The same with one argument set."""
        return dataclasses.replace(self, arguments={**self.arguments, name: value})

    def shortened(self, form: ShortForm) -> CalledTrial:
        """The same with the form's arguments that it has, and with the form's settings where it has a preset."""
        known = {name: value for name, value in form.arguments.items() if name in self.arguments}
        told = () if self.preset is None else tuple(f"{name}={value}" for name, value in form.settings.items())
        return dataclasses.replace(self, arguments={**self.arguments, **known}, overrides=(*self.overrides, *told))


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

    def __post_init__(self) -> None:
        """Refuse a choice of nothing, or by nothing."""
        if not self.values or not self.seeds:
            raise ValueError(
                f"the tuning of {self.name} has values {self.values} and seeds {self.seeds}: none is empty"
            )


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

    def __post_init__(self) -> None:
        """Refuse a score that no run of a trained trial gives, what a called function returns is seen when it does; a
        range without width; and a name that the runs' folders cannot have.
        """
        if self.score_range is not None and self.score_range[0] == self.score_range[1]:
            raise ValueError(f"arm {self.name}: score_range {self.score_range}: both ends are one; allowed: two scores")
        if isinstance(self.trial, TrainedTrial) and not _NAME.fullmatch(self.name):
            raise ValueError(_misnamed("arm", self.name))
        if not isinstance(self.trial, TrainedTrial) or self.figure in self.trial.figures:
            return
        why = " (it takes the trial's success_span)" if self.figure in _FIGURES_OF_SPAN else ""
        raise ValueError(
            f"arm {self.name}: no trained run gives a figure {self.figure!r}{why}. "
            f"Allowed: {', '.join(self.trial.figures)}."
        )

    @property
    def claim(self) -> str:
        """What every seed's score has to reach, in words; empty where nothing is claimed."""
        if self.at_least is not None and self.at_most is not None:
            return f"{self.at_least:g} to {self.at_most:g}"
        if self.at_least is not None:
            return f"≥ {self.at_least:g}"
        return "" if self.at_most is None else f"≤ {self.at_most:g}"


Expectation: TypeAlias = Literal["above", "not below", "tie"]


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """What is expected of two arms' scores; told beside what was found.

    Args:
        arm, other: names; the difference is of ``arm`` over ``other``, better counting as positive.
        expected: ``above``: the difference's 95% interval lies above 0. ``not below``: it reaches 0 or lies above.
            ``tie``: it holds 0.
        paired: differences are taken seed by seed.
        test: where the interval comes from: ``bootstrap`` over runs, or the exact ``permutation`` test of two groups of
            runs, inverted, with its p-value.
        claimed: a claim that fails fails the experiment; else either outcome is only told.
    """

    arm: str
    other: str
    expected: Expectation
    paired: bool = False
    test: Literal["bootstrap", "permutation"] = "bootstrap"
    claimed: bool = True

    def __post_init__(self) -> None:
        """Refuse a permutation test of pairs: it shares runs out over both groups."""
        if self.paired and self.test == "permutation":
            raise ValueError(
                f"comparison of {self.arm} with {self.other}: paired and test='permutation' exclude each other"
            )


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
        overrides: of every trained run, and of calls with a preset.
        short: what `--short` runs.
        picture: ``"module:function"`` that draws `--figure` as ``function(rows, path, title)`` from the final rows,
            false where there is nothing to draw; empty: the comparisons' differences.
    """

    name: str
    summary: str
    seeds: tuple[int, ...]
    arms: tuple[Arm, ...]
    comparisons: tuple[Comparison, ...] = ()
    reference_seeds: tuple[int, ...] = tuple(range(101, 111))
    overrides: tuple[str, ...] = ()
    short: ShortForm = field(default_factory=ShortForm)
    picture: str = ""

    def __post_init__(self) -> None:
        """Refuse names that are not unique, claims about arms that are not there, seeds named twice, tuning on seeds
        judged on, and a short form that no run can have.
        """
        if not _NAME.fullmatch(self.name):
            raise ValueError(_misnamed("experiment", self.name))
        names = [arm.name for arm in self.arms]
        if not names:
            raise ValueError(f"experiment {self.name}: has no arms, so there is nothing to run")
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"experiment {self.name}: arms named twice: {', '.join(twice)}")
        compared = {name for each in self.comparisons for name in (each.arm, each.other)}
        for place, named in (("a comparison", compared), ("the short form", set(self.short.arms))):
            for name in sorted(named - set(names)):
                raise ValueError(f"experiment {self.name}: {place} names {name!r}, which is no arm")
        for arm in self.arms:
            if not self.seeds_of(arm):  # a claim of every seed would hold without a run
                raise ValueError(f"experiment {self.name}: arm {arm.name} has no seeds; allowed: one or more")
            for judged in (self.seeds_of(arm), self.reference_seeds):
                if not all(type(seed) is int for seed in judged):
                    raise ValueError(
                        f"experiment {self.name}: arm {arm.name} has the seeds {judged}; allowed: integers"
                    )
                if len(set(judged)) < len(judged):
                    raise ValueError(f"experiment {self.name}: arm {arm.name} has a seed twice: it would be one run")
                if arm.tuning is not None and set(judged) & set(arm.tuning.seeds):
                    raise ValueError(f"experiment {self.name}: arm {arm.name} is tuned on seeds that it is judged on")
            self.trial_of(arm, short=True)

    def seeds_of(self, arm: Arm) -> tuple[int, ...]:
        """The arm's own seeds, or the experiment's."""
        return self.seeds if arm.seeds is None else arm.seeds

    def arms_of(self, *, short: bool) -> tuple[Arm, ...]:
        """All arms, or those of the short form."""
        named = self.short.arms if short and self.short.arms else tuple(arm.name for arm in self.arms)
        return tuple(arm for arm in self.arms if arm.name in named)

    def trial_of(self, arm: Arm, *, short: bool) -> Trial:
        """The arm's trial with the experiment's overrides, shortened where asked."""
        trial = arm.trial
        if trial.preset is not None:
            trial = dataclasses.replace(trial, overrides=(*self.overrides, *trial.overrides))
        return trial.shortened(self.short) if short else trial


def _misnamed(what: str, name: str) -> str:
    return (
        f"{what} {name!r}: its name is that of a folder; allowed: letters, digits, '.', '_' and '-', at most 64, the "
        "first a letter or digit"
    )
