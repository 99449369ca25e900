"""Learning curves over seeds: the interquartile mean of a group's runs, from three on with its 95% band, by task."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter
from numpy.typing import NDArray

from onibi.clusters.reports.compare import LEAST_VALUES
from onibi.clusters.reports.figures import tick_text
from onibi.clusters.reports.picture import BLUE, GREEN, GREY, ORANGE, VIOLET, new_picture, plain_axes, write_png
from onibi.clusters.reports.seed_report import SeedScore
from onibi.clusters.reports.seed_statistics import pointwise_band
from onibi.platform.counted import counted

_COLORS = (BLUE, ORANGE, GREEN, VIOLET, GREY, "#B58900")
_LINES: tuple[str | tuple[int, tuple[float, ...]], ...] = ("-", (0, (5, 2)), (0, (1, 1.5)))  # from the seventh group on
_PANEL_INCHES, _MOST_COLUMNS = (5.4, 3.4), 3


def seed_curves_png(scores: Sequence[SeedScore], path: Path, title: str) -> bool:
    """Draw the runs' own evaluations over env steps into a PNG, replaced whole or not at all.

    Args:
        scores: runs with their curves; those with fewer than two points are left out.
        path: the file to write.
        title: over all panels.
    Returns: False, with no file written, where no run has a curve. Raises: OSError where the file cannot be written.
    """
    drawn = [each for each in scores if len(each.curve) > 1]
    tasks = list(dict.fromkeys(each.task for each in drawn))
    if not tasks:
        return False
    groups = list(dict.fromkeys(each.group for each in drawn))
    looks = {group: _look(index) for index, group in enumerate(groups)}
    columns = min(_MOST_COLUMNS, len(tasks))
    rows = math.ceil(len(tasks) / columns)
    figure = new_picture(columns * _PANEL_INCHES[0], rows * _PANEL_INCHES[1] + 0.5, title)
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for axis, task in zip(axes, tasks, strict=False):
        _draw(axis, task, [each for each in drawn if each.task == task], looks)
    for axis in axes[len(tasks) :]:
        axis.set_visible(False)
    write_png(figure, path)
    return True


def common_grid(curves: Sequence[Sequence[tuple[float, float]]]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Curves at the same env steps, which are all those of any of them that all of them reach, straight in between.

    Args:
        curves: (env steps, value) of each run, rising in env steps, n ≥ 2 points.
    Returns: env steps [P] and values [runs, P]; P = 0 where the curves do not overlap.
    """
    points = [np.array(curve) for curve in curves]
    first, last = max(each[0, 0] for each in points), min(each[-1, 0] for each in points)
    steps = np.unique(np.concatenate([each[:, 0] for each in points]))
    steps = steps[(steps >= first) & (steps <= last)]
    values = np.array([np.interp(steps, each[:, 0], each[:, 1]) for each in points])
    return steps, values


def _look(index: int) -> dict[str, Any]:
    """Color and line of a group: no two of eighteen are alike."""
    return {"color": _COLORS[index % len(_COLORS)], "linestyle": _LINES[index // len(_COLORS) % len(_LINES)]}


def _draw(axis: Axes, task: str, scores: Sequence[SeedScore], looks: Mapping[str, dict[str, Any]]) -> None:
    for group, look in looks.items():
        curves = [each.curve for each in scores if each.group == group]
        if not curves:
            continue
        for curve in curves:
            axis.plot(*zip(*curve, strict=True), **look, linewidth=0.6, alpha=0.3)
        steps, values = common_grid(curves)
        label = f"{group}, {counted(len(curves), 'run')}"
        if not len(steps):  # no env step that all of them reach
            axis.plot([], [], **look, linewidth=1.9, label=label)
            continue
        middle, low, high = pointwise_band(values, np.random.default_rng(0))  # the same runs give the same picture
        axis.plot(steps, middle, **look, linewidth=1.9, label=label)
        if len(curves) >= LEAST_VALUES:
            axis.fill_between(steps, low, high, color=look["color"], alpha=0.18, linewidth=0)
    figures = dict.fromkeys(each.figure for each in scores)
    plain_axes(axis, task, x="env steps", y=" or ".join(figures))
    axis.xaxis.set_major_formatter(FuncFormatter(tick_text))
    axis.margins(x=0.02)
    axis.set_xlim(left=0.0)
    told = "interquartile mean, 95% band" if axis.collections else "interquartile mean"
    axis.legend(fontsize=8, frameon=False, loc="best", title=told, title_fontsize=8, alignment="left")
