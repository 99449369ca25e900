"""``onibi evaluate`` over seeds: scores of several runs, or of an experiment's CSV, with the statistics of few runs."""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain, combinations, count
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

from onibi.clusters.experiments.report import estimate_text
from onibi.clusters.experiments.result_table import ResultRow, config_hash, read_rows
from onibi.clusters.judgement import FIGURES, evaluate
from onibi.clusters.reports import seed_statistics
from onibi.clusters.reports.seed_statistics import Estimate, Scores
from onibi.platform.errors import ConfigError
from onibi.platform.history import read_history, series
from onibi.platform.run_folder import RunFolder, find_run

log = logging.getLogger(__name__)

_BOOTSTRAP_SEED = 0
_ANY_WIDTH = 4_096  # characters: more than any table here has
_COMMON_TASKS = "tasks of both, normalized"
_NEEDED = ("arm", "task", "group", "score", "normalized")


_Run: TypeAlias = tuple[RunFolder, dict[str, Any]]
"""A folder and the settings in it."""


@dataclass(frozen=True)
class SeedScore:
    """One run of one group on one task.

    Args:
        group: what is compared, as the learner.
        task: scores of one task are on one scale.
        run: name or seed.
        score: in the task's own units.
        normalized: 0 and 1 mean the same on every task; None where that is not known.
        is_higher_better: direction of the score.
        curve: (env steps, figure) of the run's own evaluations.
        figure: what the curve is of.
    """

    group: str
    task: str
    run: str
    score: float
    normalized: float | None
    is_higher_better: bool = True
    curve: tuple[tuple[float, float], ...] = ()
    figure: str = "evaluated"


@dataclass(frozen=True)
class GroupReport:
    """One group on one task, or on all of them; ``gap`` where a target is known, ``median`` over tasks."""

    task: str
    group: str
    runs: int
    iqm: Estimate
    mean: Estimate
    median: Estimate
    gap: Estimate | None


@dataclass(frozen=True)
class Improvement:
    """How likely a run of ``group`` is better than one of ``other``."""

    task: str
    group: str
    other: str
    probability: Estimate


@dataclass(frozen=True)
class SeedReport:
    """Everything told."""

    groups: list[GroupReport]
    improvements: list[Improvement]
    notes: list[str] = field(default_factory=list)  # which comparisons could not be made, and why

    def tables(self, width: int) -> list[Table]:
        """For a terminal of ``width`` characters: all groups in one table, or where that breaks, one for each task."""
        whole = self._whole_table()
        fits = Console(width=_ANY_WIDTH).measure(whole).maximum <= width
        tables = [whole] if fits or not self.groups else self._tables_of_tasks()
        if self.notes:
            tables[-1].caption, tables[-1].caption_justify = Text("\n".join(self.notes), "italic dim"), "left"
        if self.improvements:
            tables.append(_table("Probability of improvement", ["task", "group", "over", "probability (95%)"]))
            for better in self.improvements:
                tables[-1].add_row(
                    *map(Text, (better.task, better.group, better.other)), estimate_text(better.probability)
                )
        return tables

    def _whole_table(self) -> Table:
        """A row for each task and group."""
        has_gap = any(each.gap is not None for each in self.groups)
        names = ["task", "group", "runs", "IQM (95%)", "mean (95%)", "median (95%)", *["gap (95%)"] * has_gap]
        table = _table("Over seeds", names)
        for each in self.groups:
            figures = (each.iqm, each.mean, each.median, *[each.gap] * has_gap)
            table.add_row(Text(each.task), Text(each.group), str(each.runs), *map(estimate_text, figures))
        return table

    def _tables_of_tasks(self) -> list[Table]:
        """For each task a row for each figure and group, those that are compared one below the other."""
        tables = []
        for task in dict.fromkeys(each.task for each in self.groups):
            groups = [each for each in self.groups if each.task == task]
            tables.append(_table(f"Over seeds: {task}", ["figure", "group", "runs", "value (95%)"]))
            for name in ("iqm", "mean", "median", "gap"):
                figures = [(each, getattr(each, name)) for each in groups if getattr(each, name) is not None]
                for place, (each, figure) in enumerate(figures):
                    label = "" if place else {"iqm": "IQM"}.get(name, name)
                    tables[-1].add_row(label, Text(each.group), str(each.runs), estimate_text(figure))
        return tables


def seed_report(scores: Sequence[SeedScore], target: float | None, baseline: str | None) -> SeedReport:
    """Statistics of each group on each task, and over all tasks where every score of the group is normalized.

    Args:
        scores: all runs.
        target: of the optimality gap in the units of the scores; over all tasks it is 1.
        baseline: the group that the others are compared with; None: every pair where there are two groups.
    Raises: ConfigError where the baseline is no group, or a score is not finite.
    """
    groups = list(dict.fromkeys(each.group for each in scores))
    if baseline is not None and baseline not in groups:
        raise ConfigError(f"--baseline {baseline!r} is no group. Allowed: {', '.join(groups)}.")
    pairs = list(combinations(groups, 2)) if len(groups) == 2 else []
    if baseline is not None:
        pairs = [(group, baseline) for group in groups if group != baseline]
    tasks = list(dict.fromkeys(each.task for each in scores))
    reports: list[GroupReport] = []
    improvements: list[Improvement] = []
    try:
        for task in tasks:
            by_group = {group: _scores(scores, group, [task], kind="score") for group in groups}
            directed = {group: _scores(scores, group, [task], kind="directed") for group in groups}
            aim = _directed_target(scores, task, target)
            reports += [
                _group_report(task, group, each, directed[group], aim) for group, each in by_group.items() if each
            ]
            improvements += _improvements(task, pairs, directed)
        if len(tasks) > 1:
            by_group = {group: _scores(scores, group, tasks, kind="normalized") for group in groups}
            wide = {group: each for group, each in by_group.items() if len(each) > 1}
            reports += [
                _group_report(f"its {len(each)} tasks, normalized", group, each, each, 1.0)
                for group, each in wide.items()
            ]
            improvements += _improvements(_COMMON_TASKS, pairs, wide)
    except ValueError as error:
        raise ConfigError(f"no statistics: {error}") from error
    return SeedReport(reports, improvements, _not_compared(groups, pairs, improvements, baseline))


def scores_of_table(path: Path) -> list[SeedScore]:
    """Final rows of an experiment's CSV; of an arm whose settings changed on the way those of the newest alone.

    Of a CSV that several experiments wrote, each has its own tasks: one may train longer than another on the same.
    Raises: ConfigError where the file is not there, is no experiment's, or holds no score.
    """
    if not path.is_file():
        raise ConfigError(f"{path}: not there. Name an experiment's CSV (`onibi experiment NAME` tells where it is).")
    rows = [row for row in read_rows(path) if row.get("status") == "ok" and row.get("stage") == "final"]
    lacking = sorted({name for row in rows for name in _NEEDED if name not in row})
    if not rows or lacking:
        reason = f"its rows lack {', '.join(lacking)}" if lacking else "it holds no score of a run that ended well"
        raise ConfigError(f"{path}: {reason}. Name an experiment's CSV.")
    newest = {_arm_of(row): row["config_hash"] for row in rows}
    kept = [row for row in rows if row["config_hash"] == newest[_arm_of(row)]]
    if len(kept) < len(rows):
        log.warning("%s: rows of older settings left out: %d", path, len(rows) - len(kept))
    has_several = len({row.get("experiment") for row in kept}) > 1
    scores = []
    for row in kept:
        try:
            scores.append(_score_of_row(row, f" ({row.get('experiment')})" if has_several else ""))
        except ValueError as error:
            raise ConfigError(
                f"{path}: the row of arm {row['arm']}, seed {row.get('seed')} is damaged: {error}. Mend or remove it; "
                "`onibi experiment` runs again what is not there."
            ) from error
    return scores


def _arm_of(row: ResultRow) -> tuple[str, str]:
    """What is unique in a CSV that several experiments wrote."""
    return row.get("experiment", ""), row["arm"]


def scores_of_runs(
    names: Sequence[str], runs_folder: Path, checkpoint: str, episodes: int, seed: int
) -> list[SeedScore]:
    """Play each run's policy in fresh episodes; its score is the mean of what its evaluations judge by.

    Runs whose settings differ in nothing but the seed are one group, named after the first of them.
    Raises: ConfigError for an unknown run, one that is named twice, and runs of one task that are judged by different
        figures; CheckpointError where one has no checkpoint.
    """
    runs = _named_runs(names, runs_folder)
    groups = _groups(runs)
    scores = []
    for index, (folder, settings) in enumerate(runs):
        report = evaluate(str(folder.path), runs_folder, checkpoint, episodes, seed + 1_000 * index, None)
        figure = settings["evaluation"]["judge"]
        interval = getattr(report.players[0], figure)
        if interval is None:
            raise ConfigError(f"{folder.name}: the task tells no {FIGURES[figure]}, by which its run is judged.")
        task = _task_label(settings)
        curve, shown = _curve(folder), _evaluated(figure)
        scores.append(SeedScore(groups[index], task, folder.name, interval.mean, None, curve=curve, figure=shown))
    return scores


def _evaluated(judge: str) -> str:
    """What a curve of evaluations is of; rows of earlier versions do not tell."""
    return f"{FIGURES[judge]}, evaluated" if judge in FIGURES else "evaluated"


def _named_runs(names: Sequence[str], runs_folder: Path) -> list[_Run]:
    """Every run once, and all of a task judged by one figure, which is seen before the first of them is played."""
    named: dict[Path, str] = {}
    judges: dict[str, tuple[str, str]] = {}
    runs: list[_Run] = []
    for name in names:
        folder = find_run(runs_folder, name)
        before = named.setdefault(folder.path.resolve(), name)
        if len(named) == len(runs):
            also = "twice" if before == name else f"as {before!r} and as {name!r}"
            raise ConfigError(f"evaluate: the run {folder.path} is named {also}; it counts once. Name each run once.")
        settings = folder.read_config()
        task, judge = _task_label(settings), settings["evaluation"]["judge"]
        other, its_judge = judges.setdefault(task, (folder.name, judge))
        if judge != its_judge:
            raise ConfigError(
                f"evaluate: on {task} the run {other} is judged by {FIGURES[its_judge]} and {folder.name} by "
                f"{FIGURES[judge]} (evaluation.judge): scores on two scales. Evaluate them apart."
            )
        runs.append((folder, settings))
    return runs


def _groups(runs: Sequence[_Run]) -> list[str]:
    """The group of each run: those whose settings differ in the seed alone, named after the first of them."""
    labels: dict[str, str] = {}
    seeds: dict[tuple[str, int], str] = {}
    found = []
    for folder, settings in runs:
        key = config_hash({name: value for name, value in settings.items() if name != "seed"})
        if key not in labels:
            labels[key] = _free_label(folder.name, set(labels.values()))
        found.append(labels[key])
        first = seeds.setdefault((key, settings["seed"]), folder.name)
        if first != folder.name:
            log.warning(
                "%s and %s have the same settings and seed %d: they say less than two seeds do, so intervals come out "
                "too narrow; leave one out",
                first,
                folder.name,
                settings["seed"],
            )
    return found


def _free_label(run: str, taken: Collection[str]) -> str:
    """The run's name without its number, else with it, else counted up: other groups' labels are not for this one."""
    labels = chain((re.sub(r"-\d+$", "", run), run), (f"{run} ({number})" for number in count(2)))
    return next(label for label in labels if label not in taken)


def _task_label(settings: Mapping[str, Any]) -> str:
    environment = settings["environment"]
    options = ", ".join(f"{name}={value}" for name, value in environment["kwargs"].items())
    return f"{environment['id']} ({options})" if options else str(environment["id"])


def _curve(folder: RunFolder) -> tuple[tuple[float, float], ...]:
    steps, judged = series(read_history(folder.evaluations), "judged", "env_steps")
    return tuple(zip(steps.tolist(), judged.tolist(), strict=True))


def _score_of_row(row: ResultRow, of_experiment: str) -> SeedScore:
    points = [tuple(map(float, point.split(":"))) for point in row.get("curve", "").split()]
    curve = sorted((steps, judged) for steps, judged in points if math.isfinite(steps) and math.isfinite(judged))
    return SeedScore(
        group=row["group"],
        task=row["task"] + of_experiment,
        run=row["seed"],
        score=float(row["score"]),
        normalized=float(row["normalized"]) if row["normalized"] else None,
        is_higher_better=row.get("direction") != "lower",
        curve=tuple(curve),
        figure=_evaluated(row.get("judge", "")),
    )


_Kind: TypeAlias = Literal["score", "directed", "normalized"]


def _scores(scores: Sequence[SeedScore], group: str, tasks: Sequence[str], *, kind: _Kind) -> Scores:
    """Task → scores of one group; tasks of which it has none, or not all normalized where asked, are left out."""
    found = {}
    for task in tasks:
        runs = [each for each in scores if each.group == group and each.task == task]
        values = [_value(each, kind) for each in runs]
        if values and None not in values:
            found[task] = np.array(values, dtype=np.float64)
    return found


def _value(score: SeedScore, kind: _Kind) -> float | None:
    if kind == "normalized":
        return score.normalized
    return -score.score if kind == "directed" and not score.is_higher_better else score.score


def _directed_target(scores: Sequence[SeedScore], task: str, target: float | None) -> float | None:
    """The target on the scale of scores that count what is better as more.

    Raises: ConfigError where lower is better for some runs of the task and higher for others: it has no one target.
    """
    if target is None:
        return None
    directions = {each.is_higher_better for each in scores if each.task == task}
    if len(directions) > 1:
        raise ConfigError(f"--target: on {task} higher is better for some runs and lower for others; leave it out.")
    return target if directions == {True} else -target


def _group_report(task: str, group: str, scores: Scores, directed: Scores, target: float | None) -> GroupReport:
    """Args: ``directed`` and ``target``: of the gap, more being better."""

    def of(statistic: seed_statistics.Statistic, values: Scores = scores) -> Estimate:
        return seed_statistics.estimate(values, statistic, np.random.default_rng(_BOOTSTRAP_SEED))

    return GroupReport(
        task,
        group,
        sum(map(len, scores.values())),
        of(seed_statistics.interquartile_mean),
        of(seed_statistics.mean),
        of(seed_statistics.median),
        None if target is None else of(seed_statistics.optimality_gap(target), directed),
    )


def _improvements(task: str, pairs: Sequence[tuple[str, str]], by_group: Mapping[str, Scores]) -> list[Improvement]:
    found = []
    for group, other in pairs:
        one, two = by_group.get(group, {}), by_group.get(other, {})
        if set(one) & set(two):
            rng = np.random.default_rng(_BOOTSTRAP_SEED)
            found.append(Improvement(task, group, other, seed_statistics.probability_of_improvement(one, two, rng)))
    return found


def _not_compared(
    groups: Sequence[str], pairs: Sequence[tuple[str, str]], improvements: Sequence[Improvement], baseline: str | None
) -> list[str]:
    """A sentence for each comparison that was asked for and not made."""
    if baseline is not None and len(groups) == 1:
        return [f"nothing is compared with {baseline}: all runs are of this group (settings alike but for seeds)"]
    compared = {(each.group, each.other) for each in improvements}
    return [
        f"{group} and {other} are not compared: they have no task in common (environment.id and kwargs)"
        for group, other in pairs
        if (group, other) not in compared
    ]


def _table(title: str, columns: Sequence[str]) -> Table:
    table = Table(title=Text(title, "bold"), title_justify="left", box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for name in columns:
        table.add_column(name, justify="right" if name == "runs" else "left", overflow="fold")
    return table
