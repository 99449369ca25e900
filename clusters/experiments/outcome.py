"""What the rows of an experiment say: a verdict for each arm and each comparison, thresholds from reference seeds."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from onibi.clusters.experiments.declaration import Arm, Comparison, TrainedTrial
from onibi.clusters.experiments.result_table import ResultRow
from onibi.clusters.experiments.schedule import Schedule, score_of
from onibi.clusters.reports.permutation_test import permutation_test, ways_of
from onibi.clusters.reports.seed_statistics import Estimate, difference_of_means, estimate, interquartile_mean
from onibi.platform.errors import ConfigError

_BOOTSTRAP_SEED = 0
_MARGIN_DEVIATIONS = 2.0  # below the worst of the reference seeds

TOO_FEW = "too few runs"
"""Found, where no interval can be given: so nothing is shown."""


@dataclass(frozen=True)
class ArmOutcome:
    """One arm. ``holds`` is None while runs are missing, or where nothing is claimed of it.

    Args:
        arm: the declaration.
        scores: seed → score of the runs that ended well.
        wanted: seeds that the arm is judged on.
        failed: seed → error.
        absent: why the arm cannot run at all; empty where it can.
        tuned: what tuning chose.
        middle: interquartile mean over the scores; None without any.
        short: shortened runs, of which nothing is claimed.
        arrivals: seed → env steps to 80% success, None for never; empty where the trial tells none.
        budget: env steps in which a run could arrive.
    """

    arm: Arm
    scores: dict[int, float]
    wanted: tuple[int, ...]
    failed: dict[int, str]
    absent: str
    tuned: float | None
    middle: Estimate | None
    short: bool
    arrivals: dict[int, float | None]
    budget: int | None

    @property
    def missed(self) -> list[int]:
        """Seeds whose score misses the claim."""
        low = -math.inf if self.arm.at_least is None else self.arm.at_least
        high = math.inf if self.arm.at_most is None else self.arm.at_most
        return [seed for seed, score in self.scores.items() if not low <= score <= high]

    @property
    def complete(self) -> bool:
        """Whether every seed has a score."""
        return len(self.scores) == len(self.wanted)

    @property
    def verdict(self) -> str:
        """In words."""
        if self.absent:
            return f"not there: {self.absent}"
        if self.failed:
            return f"FAILED: {len(self.failed)} of {len(self.wanted)} runs"
        if self.short:
            return "ran" if self.complete else "has not run"
        if self.missed:
            return f"DOES NOT HOLD: seed {', '.join(map(str, self.missed))}"
        if not self.complete:
            return f"{len(self.scores)} of {len(self.wanted)} runs"
        return "holds" if self.arm.claim else "told"

    @property
    def is_claim_met(self) -> bool:
        """Whether nothing speaks against the arm and nothing is missing."""
        return self.complete and not self.missed


@dataclass(frozen=True)
class ComparisonOutcome:
    """One comparison. ``difference`` counts what is better as positive; None while runs are missing.

    Args:
        comparison: the declaration.
        difference: with its interval, which is infinite where the runs are too few to say anything.
        wins, pairs: of paired comparisons.
        p_value: of the permutation test; None of a bootstrap.
        singles: what each run of the arm is over the mean of the others'; of pairs, over its partner.
    """

    comparison: Comparison
    difference: Estimate | None
    wins: int
    pairs: int
    p_value: float | None = None
    singles: tuple[float, ...] = ()

    @property
    def found(self) -> str:
        """What the interval of the difference says."""
        if self.difference is None:
            return "runs are missing"
        if not self.difference.is_known:
            return TOO_FEW
        if self.difference.low > 0:
            return "above"
        return "below" if self.difference.high < 0 else "tie"

    @property
    def as_expected(self) -> bool | None:
        """None while runs are missing, or too few to say."""
        if self.difference is None or self.found == TOO_FEW:
            return None
        expected = self.comparison.expected
        return self.found != "below" if expected == "not below" else self.found == expected


@dataclass(frozen=True)
class Threshold:
    """What reference seeds allow to be claimed: their worst less two standard deviations, against the direction."""

    arm: str
    seeds: int
    worst: float
    deviation: float
    threshold: float


def arm_outcomes(schedule: Schedule) -> list[ArmOutcome]:
    """Of the arms asked for, those that are not there included, in the experiment's order."""
    named = {arm.name for arm in schedule.arms} | set(schedule.missing)
    return [_arm_outcome(schedule, arm) for arm in schedule.experiment.arms if arm.name in named]


def comparison_outcomes(schedule: Schedule, outcomes: list[ArmOutcome]) -> list[ComparisonOutcome]:
    """Of the comparisons whose two arms were asked for."""
    by_name = {outcome.arm.name: outcome for outcome in outcomes}
    return [
        _comparison_outcome(each, by_name[each.arm], by_name[each.other])
        for each in schedule.experiment.comparisons
        if each.arm in by_name and each.other in by_name
    ]


def check_comparisons(schedule: Schedule) -> None:
    """Whether every comparison can be made, before anything runs for it.

    Raises: ConfigError where an exact test would have too many seeds to look at.
    """
    arms = {arm.name: arm for arm in schedule.arms}
    for each in schedule.experiment.comparisons:
        if each.test == "permutation" and each.arm in arms and each.other in arms:
            try:
                ways_of(*(len(schedule.seeds_of(arms[name])) for name in (each.arm, each.other)))
            except ValueError as error:
                raise ConfigError(f"{each.arm} against {each.other}: {error}. Ask for fewer --seeds.") from error


def thresholds(outcomes: list[ArmOutcome]) -> list[Threshold]:
    """Of the arms with two scores or more."""
    found = []
    for outcome in outcomes:
        scores = np.array(list(outcome.scores.values()))
        if len(scores) < 2:
            continue
        deviation = float(scores.std(ddof=1))
        worst = float(scores.min() if outcome.arm.higher_is_better else scores.max())
        margin = _MARGIN_DEVIATIONS * deviation
        limit = worst - margin if outcome.arm.higher_is_better else worst + margin
        found.append(Threshold(outcome.arm.name, len(scores), worst, deviation, limit))
    return found


def _arm_outcome(schedule: Schedule, arm: Arm) -> ArmOutcome:
    rows = schedule.final_rows(arm)
    scores = {int(row["seed"]): score_of(row, arm.figure) for row in rows if row.get("status") == "ok"}
    failed = {int(row["seed"]): row.get("error", "") for row in rows if row.get("status") != "ok"}
    for seed in [seed for seed, score in scores.items() if not math.isfinite(score)]:
        failed[seed] = f"{arm.figure} is {scores.pop(seed)}"
    middle = None
    if scores:
        rng = np.random.default_rng(_BOOTSTRAP_SEED)
        middle = estimate({arm.task: _array(scores)}, interquartile_mean, rng)
    absent = schedule.missing.get(arm.name, "")
    tuned = None if absent else schedule.tuned(arm)
    trial = schedule.experiment.trial_of(arm, short=schedule.short)
    span = trial.success_span if isinstance(trial, TrainedTrial) else None
    arrivals: dict[int, float | None] = {}
    if span is not None:
        arrivals = {int(row["seed"]): _arrival(row) for row in rows if row.get("status") == "ok"}
    return ArmOutcome(
        arm=arm,
        scores=scores,
        wanted=schedule.seeds_of(arm),
        failed=failed,
        absent=absent,
        tuned=tuned,
        middle=middle,
        short=schedule.short,
        arrivals=arrivals,
        budget=None if span is None else span[1],
    )


def _arrival(row: ResultRow) -> float | None:
    steps = score_of(row, "steps_to_80")
    return steps if math.isfinite(steps) else None


def _comparison_outcome(comparison: Comparison, arm: ArmOutcome, other: ArmOutcome) -> ComparisonOutcome:
    common = [seed for seed in arm.scores if seed in other.scores] if comparison.paired else []
    ready = arm.complete and other.complete and (len(common) == len(arm.wanted) or not comparison.paired)
    if not ready:
        return ComparisonOutcome(comparison, None, 0, 0)
    sign = 1.0 if arm.arm.higher_is_better else -1.0
    if comparison.paired:
        x, y = (sign * np.array([each.scores[seed] for seed in common]) for each in (arm, other))
    else:
        x, y = sign * _array(arm.scores), sign * _array(other.scores)
    p_value = None
    if comparison.test == "permutation":
        tested = permutation_test(x, y)
        difference, p_value = Estimate(tested.difference, tested.low, tested.high), tested.p_value
    else:
        difference = difference_of_means(x, y, np.random.default_rng(_BOOTSTRAP_SEED), paired=comparison.paired)
    wins = int((x > y).sum()) if comparison.paired else 0
    singles = x - (y if comparison.paired else y.mean())
    return ComparisonOutcome(comparison, difference, wins, len(common), p_value, tuple(singles.tolist()))


def _array(scores: dict[int, float]) -> NDArray[np.float64]:
    return np.array(list(scores.values()), dtype=np.float64)


def errors_of(schedule: Schedule, outcomes: list[ArmOutcome]) -> list[str]:
    """One line for each run that failed, tuning runs included; of settings that are no longer declared, none."""
    lines = [
        f"{outcome.arm.name}, seed {seed}: {error}" for outcome in outcomes for seed, error in outcome.failed.items()
    ]
    lines += [
        f"{outcome.arm.name}, seed {row['seed']}, {row.get('tuned', '')}: {row.get('error', '')}"
        for outcome in outcomes
        for row in schedule.tuning_rows(outcome.arm)
        if row.get("status") == "failed"
    ]
    return lines
