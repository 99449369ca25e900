"""What the arms of a task came to, as a picture: each run's success over env steps, and differences of their scores.

A line of panels for each task. On the left every run's own evaluations, thin, and their mean over runs. On the right
each arm's score over that of the environment's reward alone and over all-ones: mean, exact 95% interval where the runs
are neither too few nor too many for one, every run of the arm a stroke above the line and every run of the other one
below it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from numpy.typing import NDArray

from onibi.clusters.experiments.result_table import ResultRow
from onibi.clusters.experiments.schedule import score_of
from onibi.clusters.reports.permutation_test import has_exact_test, permutation_test
from onibi.clusters.reports.picture import BLUE, GREEN, GREY, INK, ORANGE, new_picture, plain_axes, write_png

_BASELINES = {"extrinsic": "o", "all-ones": "s"}
_COLORS = (GREY, BLUE, GREEN, ORANGE, "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_WIDTH_INCHES, _PANEL_INCHES, _ROW_INCHES = 11.0, 2.6, 0.3
_POINTS = 200


def draw(rows: Sequence[ResultRow], path: Path, title: str) -> bool:
    """Draw the rows of runs that ended well into a PNG, replaced whole or not at all.

    Args:
        rows: of an experiment whose trials tell their success curve.
        path: the file to write.
        title: over the picture.
    Returns: False, with no file written, where no run is there. Raises: OSError where the file cannot be written.
    """
    tasks: dict[str, dict[str, list[ResultRow]]] = {}
    for row in rows:
        if row.get("curve") and math.isfinite(score_of(row, "score")):
            tasks.setdefault(row["task"], {}).setdefault(row["group"], []).append(row)
    if not tasks:
        return False
    heights = [max(_PANEL_INCHES, 0.9 + _ROW_INCHES * len(_pairs(groups))) for groups in tasks.values()]
    figure = new_picture(_WIDTH_INCHES, 0.5 + sum(heights), title)
    panels = figure.subplots(len(tasks), 2, squeeze=False, gridspec_kw={"height_ratios": heights})
    arms = dict.fromkeys(group for groups in tasks.values() for group in groups)
    colors = {arm: _COLORS[number % len(_COLORS)] for number, arm in enumerate(arms)}  # the same in every task
    for (task, groups), (left, right) in zip(tasks.items(), panels, strict=True):
        _curves(left, task, groups, colors)
        _differences(right, groups, colors)
    write_png(figure, path)
    return True


def _curves(axis: Axes, task: str, groups: dict[str, list[ResultRow]], colors: dict[str, str]) -> None:
    for group, runs in groups.items():
        curves = [_points(row) for row in runs]
        for steps, success in curves:
            axis.plot(steps / 1e3, success, color=colors[group], linewidth=0.7, alpha=0.35)
        along = np.linspace(0.0, max(steps[-1] for steps, _ in curves), _POINTS)
        middle = np.mean([np.interp(along, steps, success) for steps, success in curves], axis=0)
        axis.plot(along / 1e3, middle, color=colors[group], linewidth=2.0, label=f"{group} ({len(runs)})")
    plain_axes(axis, task, x="env steps, thousands", y="success, greedy episodes")
    axis.set_ylim(-0.03, 1.03)
    axis.legend(fontsize=7, framealpha=0.8, edgecolor="none", loc="best")  # where the fewest curves are


def _differences(axis: Axes, groups: dict[str, list[ResultRow]], colors: dict[str, str]) -> None:
    names = []
    for place, (group, other) in enumerate(_pairs(groups)):
        x, y = _scores(groups[group]), _scores(groups[other])
        difference = x.mean() - y.mean()
        found = permutation_test(x, y) if has_exact_test(len(x), len(y)) else None
        color = colors[group]
        axis.plot(x - y.mean(), np.full(len(x), place - 0.16), "|", color=color, markersize=7, alpha=0.7)
        axis.plot(x.mean() - y, np.full(len(y), place + 0.16), "|", color=colors[other], markersize=7, alpha=0.7)
        if found is not None and math.isfinite(found.high - found.low):
            axis.plot([found.low, found.high], [place, place], color=color, linewidth=1.5)
        axis.plot([difference], [place], _BASELINES.get(other, "D"), color=color, markersize=5)
        tested = "too many runs for p" if found is None else f"p = {found.p_value:.2g}"
        names.append(f"{group} over {other}, {tested}")
    plain_axes(axis, x="difference of scores, exact 95% interval")
    axis.axvline(0.0, color=INK, linewidth=0.9)
    axis.set_yticks(range(len(names)), names)
    axis.invert_yaxis()


def _pairs(groups: dict[str, list[ResultRow]]) -> list[tuple[str, str]]:
    """Each arm with each baseline that is there; without a baseline the first arm with each other one."""
    baselines = [other for other in _BASELINES if other in groups]
    if not baselines:
        first, *others = groups
        return [(first, other) for other in others]
    return [(group, other) for other in baselines for group in groups if group not in (other, "extrinsic")]


def _scores(rows: list[ResultRow]) -> NDArray[np.float64]:
    return np.array([float(row["score"]) for row in rows])


def _points(row: ResultRow) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Env steps and success of a run's evaluations, from nothing on."""
    told = [tuple(map(float, point.split(":"))) for point in row["curve"].split()]
    steps, success = np.array([(0.0, 0.0), *told]).T
    return steps, success
