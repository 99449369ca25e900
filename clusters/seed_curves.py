"""Learning curves over seeds: the interquartile mean of a group's runs, from three on with its 95% band, by task."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import FuncFormatter
from numpy.typing import NDArray

from onibi.clusters.compare import LEAST_VALUES
from onibi.clusters.figures import tick_text
from onibi.clusters.seed_report import SeedScore
from onibi.clusters.seed_statistics import pointwise_band
from onibi.platform.durable import write_durably

_COLORS = ("#0072B2", "#D55E00", "#009E73", "#8E5A9B", "#5F6770", "#B58900")  # told apart by all eyes
_PANEL_INCHES, _MOST_COLUMNS, _DOTS_PER_INCH = (5.4, 3.4), 3, 130
_POINTS = 60


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
    colors = {group: _COLORS[index % len(_COLORS)] for index, group in enumerate(groups)}
    columns = min(_MOST_COLUMNS, len(tasks))
    rows = math.ceil(len(tasks) / columns)
    figure = Figure(
        figsize=(columns * _PANEL_INCHES[0], rows * _PANEL_INCHES[1] + 0.5),
        dpi=_DOTS_PER_INCH,
        layout=ConstrainedLayoutEngine(w_pad=0.1, h_pad=0.08),
    )
    FigureCanvasAgg(figure)  # not pyplot, which keeps global state and looks for a display
    figure.suptitle(title, fontsize=13, fontweight="bold", x=0.012, ha="left")
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for axis, task in zip(axes, tasks, strict=False):
        _draw(axis, task, [each for each in drawn if each.task == task], colors)
    for axis in axes[len(tasks) :]:
        axis.set_visible(False)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    write_durably(path, buffer.getvalue())
    return True


def common_grid(curves: Sequence[Sequence[tuple[float, float]]]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Curves at the same env steps: from the latest first point to the earliest last one, straight between points.

    Args:
        curves: (env steps, value) of each run, rising in env steps, n ≥ 2 points.
    Returns: env steps [P] and values [runs, P]; P = 1 where the curves do not overlap.
    """
    first = max(curve[0][0] for curve in curves)
    last = min(curve[-1][0] for curve in curves)
    steps = np.linspace(first, max(first, last), _POINTS if last > first else 1)
    points = [np.array(curve) for curve in curves]
    values = np.array([np.interp(steps, each[:, 0], each[:, 1]) for each in points])
    return steps, values


def _draw(axis: Axes, task: str, scores: Sequence[SeedScore], colors: dict[str, str]) -> None:
    axis.set_title(task, fontsize=10.5, loc="left", color="#202428")
    for group, color in colors.items():
        curves = [each.curve for each in scores if each.group == group]
        if not curves:
            continue
        for curve in curves:
            axis.plot(*zip(*curve, strict=True), color=color, linewidth=0.6, alpha=0.25)
        steps, values = common_grid(curves)
        middle, low, high = pointwise_band(values, np.random.default_rng(0))  # the same runs give the same picture
        runs = f"{len(curves)} run{'s' if len(curves) > 1 else ''}"
        axis.plot(steps, middle, color=color, linewidth=1.9, label=f"{group}, {runs}")
        if len(curves) >= LEAST_VALUES:
            axis.fill_between(steps, low, high, color=color, alpha=0.18, linewidth=0)
    axis.grid(visible=True, color="#E4E7EA", linewidth=0.7)
    axis.set_axisbelow(True)
    axis.spines[["top", "right"]].set_visible(False)
    axis.spines[["left", "bottom"]].set_color("#9AA2AA")
    axis.tick_params(labelsize=8, color="#9AA2AA", labelcolor="#3A4046")
    axis.xaxis.set_major_formatter(FuncFormatter(tick_text))
    axis.set_xlabel("env steps", fontsize=8.5, color="#3A4046")
    axis.margins(x=0.02)
    axis.legend(fontsize=8, frameon=False, loc="best")
