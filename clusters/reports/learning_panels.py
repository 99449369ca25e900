"""The panels of a run's learning curve: what each of them shows, and how it is drawn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, MaxNLocator, PercentFormatter
from numpy.typing import NDArray

from onibi.clusters.reports.compare import Interval, bootstrap_interval, share_interval, success_interval
from onibi.clusters.reports.figures import tick_text
from onibi.clusters.reports.picture import BLUE, GREEN, GREY, ORANGE, VIOLET, plain_axes
from onibi.platform.history import ENV_STEPS, Row, column, series

_SMOOTHED_SHARE = 0.06  # of the points of a training curve go into each point of its bold line
_MOMENTS_SHARE = 0.2  # of the points: each of these is a yes or a no
_FEW_POINTS = 12  # up to so many are marked: a line through them says less than they do
_ROOM_ABOVE = 1.12  # of the greatest value, over a panel that begins at 0
KEYS_HEARD = "annotation/keys"


@dataclass(frozen=True)
class Line:
    """One figure of a panel.

    Args:
        key: of the rows.
        label: in the legend.
        color: of the line.
        evaluated: from the evaluations: dots with 95% intervals; else from the history.
        noisy: drawn thin, and its moving mean over it.
        moments: 1 or 0 at each look; what is drawn is the share of the looks around.
        dashed: where it may lie on the line before it.
    """

    key: str
    label: str
    color: str
    evaluated: bool = False
    noisy: bool = True
    moments: bool = False
    dashed: bool = False


@dataclass(frozen=True)
class Panel:
    """Lines over one axis.

    Args:
        title: what its values are, with their unit.
        lines: from the back to the front.
        share: values are from 0 to 1.
        of_captions: says nothing of a run that hears none.
        from_zero: a figure that hardly moves shall look so.
        counts: values are whole numbers.
    """

    title: str
    lines: tuple[Line, ...]
    share: bool = False
    of_captions: bool = False
    from_zero: bool = False
    counts: bool = False


PANELS = (
    Panel(
        "Episode return",
        (
            Line("actors/episode_return", "while training", BLUE),
            Line("return_mean", "evaluated, 95%", ORANGE, evaluated=True),
        ),
    ),
    Panel(
        "Success",
        (
            Line("actors/success_rate", "while training", BLUE),
            Line("success_rate", "evaluated, 95%", ORANGE, evaluated=True),
        ),
        share=True,
    ),
    Panel(
        "Intrinsic return",
        (
            Line("actors/intrinsic_return", "while training", BLUE),
            Line("intrinsic_return_mean", "evaluated", ORANGE, evaluated=True),
        ),
        of_captions=True,
    ),
    Panel(
        "Rows whose captions are labelled",
        (Line("learner/labelled_share", "labelled", GREEN, noisy=False),),
        share=True,
        of_captions=True,
    ),
    Panel(
        "Caption keys",
        (
            Line(KEYS_HEARD, "met", GREY, noisy=False),
            Line("annotation/keys_labelled", "labelled", GREEN, noisy=False),
        ),
        of_captions=True,
        from_zero=True,
        counts=True,
    ),
    Panel(
        "Seconds from caption to label",
        (
            Line("annotation/label_delay_p95_seconds", "95% of them within", GREY, noisy=False),
            Line("annotation/label_delay_p50_seconds", "half of them within", GREEN, noisy=False, dashed=True),
        ),
        of_captions=True,
        from_zero=True,
    ),
    Panel("Loss", (Line("learner/loss", "loss", VIOLET),)),
    Panel("Mean Q", (Line("learner/q_mean", "Q", VIOLET),)),
    Panel("Policy lag in updates", (Line("actors/policy_lag_mean", "mean", GREY),), from_zero=True),
    Panel("Age of drawn rows in updates", (Line("learner/data_age_mean_updates", "mean", GREY),), from_zero=True),
    Panel(
        "Share of time held back by the limiter",
        (
            Line("replay/actors_stalled", "actors", BLUE, moments=True),
            Line("replay/learner_stalled", "learner", VIOLET, moments=True),
        ),
        share=True,
    ),
    Panel("Env steps per second", (Line("actors/env_steps_per_second", "env steps", BLUE),), from_zero=True),
)


def panels_of(history: Sequence[Row], evaluations: Sequence[Row]) -> list[Panel]:
    """Those that have something to show of these rows; none of captions where none was heard."""
    heard = bool((series(history, KEYS_HEARD, ENV_STEPS)[1] > 0).any())
    drawable = [panel for panel in PANELS if heard or not panel.of_captions]
    return [panel for panel in drawable if any(len(_points(line, history, evaluations)[0]) for line in panel.lines)]


def last_step(history: Sequence[Row], evaluations: Sequence[Row]) -> float:
    """Where the axis of env steps ends, the same for all panels."""
    steps = np.concatenate([column(history, ENV_STEPS), column(evaluations, "env_steps")])
    return float(np.max(steps, where=np.isfinite(steps), initial=1.0))


def draw_panel(axis: Axes, panel: Panel, history: Sequence[Row], evaluations: Sequence[Row]) -> None:
    """Draw the panel's lines over env steps, from 0 to the run's last one."""
    highest, drawn = 0.0, 0
    for line in panel.lines:
        x, y = _points(line, history, evaluations)
        if len(x):
            drawn += 1
            highest = max(highest, float(y.max()))
            if line.evaluated:
                _draw_evaluations(axis, line, evaluations, x, y)
            else:
                _draw_line(axis, line, x, y)
    plain_axes(axis, panel.title)
    axis.ticklabel_format(axis="y", useOffset=False)  # "+1.2" over an axis is read as a part of the title
    axis.xaxis.set_major_formatter(FuncFormatter(tick_text))
    end = last_step(history, evaluations)
    axis.set_xlim(-0.02 * end, 1.02 * end)
    if panel.from_zero:
        axis.set_ylim(0.0, _ROOM_ABOVE * highest if highest > 0 else 1.0)
    if panel.counts:
        axis.yaxis.set_major_locator(MaxNLocator(integer=True))
    if panel.share:
        axis.set_ylim(-0.03, 1.03)
        axis.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    elif max(abs(bound) for bound in axis.get_ylim()) >= 10_000:
        axis.yaxis.set_major_formatter(FuncFormatter(tick_text))
    if drawn > 1 or any(line.evaluated for line in panel.lines):
        axis.legend(fontsize=8, frameon=False, loc="best")


def smoothed(values: NDArray[np.float64], share: float, *, balanced: bool = True) -> NDArray[np.float64]:
    """Moving mean over the same number of points to both sides, [points].

    Args:
        values: [points].
        share: of all points, that the mean is taken over; of a share below two points it is ``values``.
        balanced: near an end it is over as few points on either side, so that a rising curve is not lifted where it
            begins; else over all that are there.
    """
    index = np.arange(len(values))
    half = int(len(values) * share / 2)
    before, after = np.minimum(half, index), np.minimum(half, index[::-1])
    if balanced:
        before = after = np.minimum(before, after)
    sums = np.concatenate([[0.0], np.cumsum(values)])
    means: NDArray[np.float64] = (sums[index + after + 1] - sums[index - before]) / (before + after + 1)
    return means


def evaluated_success(evaluation: Row, mean: float, rng: np.random.Generator) -> Interval | None:
    """The success of an evaluation's episodes, whose mean is ``mean``, with its 95% interval; None without episodes."""
    successes, returns = evaluation.get("successes"), evaluation.get("returns")
    if isinstance(successes, list) and successes:
        return success_interval(successes, rng)
    # Evaluations of earlier versions have but the mean.
    return share_interval(round(mean * len(returns)), len(returns)) if isinstance(returns, list) and returns else None


def _points(
    line: Line, history: Sequence[Row], evaluations: Sequence[Row]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    return series(evaluations, line.key, "env_steps") if line.evaluated else series(history, line.key, ENV_STEPS)


def _draw_line(axis: Axes, line: Line, x: NDArray[np.float64], y: NDArray[np.float64]) -> None:
    share = _MOMENTS_SHARE if line.moments else _SMOOTHED_SHARE if line.noisy else 0.0
    bold = smoothed(y, share, balanced=not line.moments)
    if line.noisy and not line.moments and not np.array_equal(bold, y):
        axis.plot(x, y, color=line.color, linewidth=0.7, alpha=0.3)
    marker = "o" if len(x) <= _FEW_POINTS else ""
    style = (0, (3, 2)) if line.dashed else "-"
    axis.plot(
        x, bold, color=line.color, linewidth=1.8, linestyle=style, marker=marker, markersize=3.5, label=line.label
    )


def _draw_evaluations(
    axis: Axes, line: Line, evaluations: Sequence[Row], x: NDArray[np.float64], y: NDArray[np.float64]
) -> None:
    axis.errorbar(
        x,
        y,
        yerr=_error_bars(line.key, evaluations, x, y),
        color=line.color,
        marker="o",
        markersize=4.5,
        linewidth=1.6,
        capsize=2.5,
        elinewidth=1.0,
        label=line.label,
        zorder=4,
    )


def _error_bars(
    key: str, evaluations: Sequence[Row], x: NDArray[np.float64], y: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Lengths below and above of the 95% intervals, each [points]; 0 where the row does not hold its episodes."""
    rng = np.random.default_rng(0)  # the picture of the same run is the same picture
    steps, values = column(evaluations, "env_steps"), column(evaluations, key)
    known = [
        row for row, step, value in zip(evaluations, steps, values, strict=True) if np.isfinite([step, value]).all()
    ]
    low, high = np.zeros_like(x), np.zeros_like(x)
    for index, row in enumerate(known):
        interval = _interval(key, row, float(y[index]), rng)
        if interval is not None and interval.is_known:
            low[index], high[index] = max(0.0, y[index] - interval.low), max(0.0, interval.high - y[index])
    return low, high


def _interval(key: str, row: Row, mean: float, rng: np.random.Generator) -> Interval | None:
    returns = row.get("returns")
    if not isinstance(returns, list) or not returns or not np.isfinite(returns).all():
        return None
    if key == "success_rate":
        return evaluated_success(row, mean, rng)
    return bootstrap_interval(returns, rng) if key == "return_mean" else None
