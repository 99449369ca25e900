"""What a run leaves for people to look at: the learning curve, the table of captions, the summary."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import FuncFormatter, PercentFormatter
from numpy.typing import NDArray
from rich.table import Table
from rich.text import Text

from onibi.clusters.compare import Interval, bootstrap_interval, share_interval, success_interval
from onibi.clusters.figures import UNKNOWN, count_text, duration_text, share_text, tick_text, value_text
from onibi.clusters.shell_commands import command_to_go_on, mlflow_command
from onibi.platform.desk_report import CaptionReportRow
from onibi.platform.durable import write_durably
from onibi.platform.history import ENV_STEPS, Row, column, series
from onibi.platform.run_folder import RunFolder

_BLUE, _ORANGE, _GREEN, _VIOLET, _GREY = "#0072B2", "#D55E00", "#009E73", "#8E5A9B", "#5F6770"  # told apart by all eyes
_PANEL_INCHES, _COLUMNS, _DOTS_PER_INCH = (4.6, 2.9), 3, 130
_SMOOTHED_SHARE = 0.06  # of the points of a training curve go into each point of its bold line
_KEYS_HEARD = "annotation/keys"
_CSV_COLUMNS = ("key", "label", "paid", "sightings", "score", "annotator", "example", "reply")


@dataclass(frozen=True)
class _Line:
    key: str
    label: str
    color: str
    evaluated: bool = False  # from the evaluations: dots with 95% intervals; else from the history
    noisy: bool = True  # drawn thin, and its moving mean over it


@dataclass(frozen=True)
class _Panel:
    title: str
    lines: tuple[_Line, ...]
    share: bool = False
    of_captions: bool = False  # says nothing of a run that hears none
    from_zero: bool = False  # a figure that hardly moves shall look so


_PANELS = (
    _Panel(
        "Episode return",
        (
            _Line("actors/episode_return", "while training", _BLUE),
            _Line("return_mean", "evaluated", _ORANGE, evaluated=True),
        ),
    ),
    _Panel(
        "Success",
        (
            _Line("actors/success_rate", "while training", _BLUE),
            _Line("success_rate", "evaluated", _ORANGE, evaluated=True),
        ),
        share=True,
    ),
    _Panel(
        "Intrinsic return",
        (
            _Line("actors/intrinsic_return", "while training", _BLUE),
            _Line("intrinsic_return_mean", "evaluated", _ORANGE, evaluated=True),
        ),
        of_captions=True,
    ),
    _Panel(
        "Rows whose captions are labelled",
        (_Line("learner/labelled_share", "labelled", _GREEN, noisy=False),),
        share=True,
        of_captions=True,
    ),
    _Panel(
        "Caption keys",
        (
            _Line(_KEYS_HEARD, "met", _GREY, noisy=False),
            _Line("annotation/keys_labelled", "labelled", _GREEN, noisy=False),
        ),
        of_captions=True,
    ),
    _Panel(
        "Seconds from caption to label",
        (
            _Line("annotation/label_delay_p50_seconds", "half of them", _GREEN, noisy=False),
            _Line("annotation/label_delay_p95_seconds", "95%", _GREY, noisy=False),
        ),
        of_captions=True,
        from_zero=True,
    ),
    _Panel("Loss", (_Line("learner/loss", "loss", _VIOLET),)),
    _Panel("Mean Q", (_Line("learner/q_mean", "Q", _VIOLET),)),
    _Panel("Policy lag in updates", (_Line("actors/policy_lag_mean", "mean", _GREY),), from_zero=True),
    _Panel("Age of drawn rows in updates", (_Line("learner/data_age_mean_updates", "mean", _GREY),), from_zero=True),
    _Panel(
        "Time held back",
        (_Line("replay/actors_stalled", "actors", _BLUE), _Line("replay/learner_stalled", "learner", _VIOLET)),
        share=True,
    ),
    _Panel("Env steps per second", (_Line("actors/env_steps_per_second", "env steps", _BLUE),)),
)


def learning_curve_png(history: Sequence[Row], evaluations: Sequence[Row], path: Path, title: str) -> bool:
    """Draw a run's curves over env steps into a PNG, replaced whole or not at all.

    Args:
        history: rows of ``history.jsonl``.
        evaluations: rows of ``evaluations.jsonl``: ``env_steps``, ``return_mean``, ``success_rate``,
            ``intrinsic_return_mean``, ``returns``.
        path: the file to write.
        title: over all panels.
    Returns: False, with no file written, where there is nothing to draw yet. A panel without figures is left out, and
        those of captions where none was heard.
    Raises: OSError where the file cannot be written.
    """
    heard = bool((series(history, _KEYS_HEARD, ENV_STEPS)[1] > 0).any())
    drawable = [panel for panel in _PANELS if heard or not panel.of_captions]
    panels = [panel for panel in drawable if any(len(_points(line, history, evaluations)[0]) for line in panel.lines)]
    if not panels:
        return False
    rows = math.ceil(len(panels) / _COLUMNS)
    columns = min(_COLUMNS, len(panels))
    size = (columns * _PANEL_INCHES[0], rows * _PANEL_INCHES[1] + 0.5)
    figure = Figure(figsize=size, dpi=_DOTS_PER_INCH, layout=ConstrainedLayoutEngine(w_pad=0.1, h_pad=0.08))
    FigureCanvasAgg(figure)  # not pyplot, which keeps global state and looks for a display
    figure.suptitle(title, fontsize=13, fontweight="bold", x=0.012, ha="left")
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for axis, panel in zip(axes, panels, strict=False):
        _draw(axis, panel, history, evaluations)
    for axis in axes[len(panels) :]:
        axis.set_visible(False)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    write_durably(path, buffer.getvalue())
    return True


def captions_csv(rows: Sequence[CaptionReportRow], paid: NDArray[np.float64] | None, path: Path) -> None:
    """Write all caption keys, the best paid first, as CSV in UTF-8.

    Args:
        rows: one per key.
        paid: [rows] intrinsic reward paid for each key so far; None leaves the column empty.
        path: the file to write.
    Raises: ValueError where ``paid`` has another length; OSError where the file cannot be written.
    """
    buffer = io.StringIO(newline="")
    writer = csv.writer(buffer)
    writer.writerow(_CSV_COLUMNS)
    for row, pay in _ranked(rows, paid):
        score = "" if math.isnan(row.score) else f"{row.score:.6g}"
        pay_text = "" if pay is None else f"{pay:.6g}"
        writer.writerow((row.key, row.label, pay_text, row.sightings, score, row.annotator, row.example, row.reply))
    write_durably(path, buffer.getvalue().encode())


def captions_table(
    rows: Sequence[CaptionReportRow], paid: NDArray[np.float64] | None, limit: int, all_in: Path
) -> Table:
    """The ``limit`` best-paid (else most-met) captions for a terminal. They come from outside: no markup is read.

    ``all_in`` is the file that has them all.
    """
    table = Table(
        title="Captions", title_justify="left", title_style="bold", box=None, pad_edge=False, padding=(0, 2, 0, 0)
    )
    total = 0.0 if paid is None else float(paid.sum())
    for name in ("paid", "share", "met", "label"):
        table.add_column(name, justify="left" if name == "label" else "right", no_wrap=True)
    table.add_column("caption", overflow="fold")
    for row, pay in _ranked(rows, paid)[:limit]:
        table.add_row(
            UNKNOWN if pay is None else value_text(pay),
            UNKNOWN if pay is None or total == 0 else share_text(pay / total),
            count_text(row.sightings),
            Text(row.label or "not yet", style={"helpful": "green", "unhelpful": "red"}.get(row.label, "dim")),
            Text(row.key),
        )
    if len(rows) > limit:
        table.caption, table.caption_justify = Text(f"{len(rows) - limit} more in {all_in}"), "left"
    return table


@dataclass(frozen=True, kw_only=True)
class RunSummary:
    """What is said when a run ends. ``evaluation`` is the row of the one that counts; ``ended`` says why it ended.

    ``figures`` are those of the last interval.
    """

    name: str
    folder: Path
    ended: str
    env_steps: int
    updates: int
    seconds: float
    evaluation: Row | None
    tracking_uri: str | None
    tracking_run_id: str | None
    figures: Mapping[str, float]


def summary_table(summary: RunSummary, rng: np.random.Generator) -> Table:
    """The summary for a terminal, with the commands that go on from it. ``rng`` draws the bootstrap of the interval."""
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    clock = duration_text(summary.seconds)
    speed = summary.env_steps / summary.seconds if summary.seconds > 0 else None
    lines = [
        ("run", f"{summary.name}: {summary.ended}"),
        (
            "trained",
            f"{summary.env_steps:,} env steps ({count_text(speed)}/s), {summary.updates:,} updates, {clock}",
        ),
        *((("evaluated", _evaluation_text(summary.evaluation, rng)),) if summary.evaluation else ()),
        *((("annotators", text),) if (text := _failing_text(summary.figures)) else ()),
        ("folder", str(summary.folder)),
        *((("curve", str(curve)),) if (curve := summary.folder / "artifacts" / "learning_curve.png").exists() else ()),
        *((("MLflow", mlflow_command(summary.tracking_uri)),) if summary.tracking_uri else ()),
        *((("MLflow run", summary.tracking_run_id),) if summary.tracking_run_id else ()),
        (
            "go on",
            command_to_go_on(
                RunFolder(summary.folder), summary.name, summary.ended, summary.env_steps, summary.seconds
            ),
        ),
    ]
    for name, text in lines:
        table.add_row(name, Text(text))
    return table


def _evaluation_text(evaluation: Row, rng: np.random.Generator) -> str:
    returns = evaluation.get("returns")
    episodes = len(returns) if isinstance(returns, list) else 0
    parts = [f"return {value_text(_figure(evaluation, 'return_mean'))}"]
    if isinstance(returns, list) and returns and (interval := bootstrap_interval(returns, rng)).is_known:
        parts[0] += f" (95%: {value_text(interval.low)} to {value_text(interval.high)})"
    success = _figure(evaluation, "success_rate")
    if success is not None:
        parts.append(f"success {share_text(success)}")
        share = _success_interval(evaluation, success, rng)
        if share is not None and share.is_known:
            parts[-1] += f" (95%: {share_text(share.low)} to {share_text(share.high)})"
    intrinsic = _figure(evaluation, "intrinsic_return_mean")
    if intrinsic is not None:
        parts.append(f"intrinsic return {value_text(intrinsic)}")
    return ", ".join(parts) + (f"; {episodes} episodes" if episodes else "")


def _success_interval(evaluation: Row, mean: float, rng: np.random.Generator) -> Interval | None:
    successes, returns = evaluation.get("successes"), evaluation.get("returns")
    if isinstance(successes, list) and successes:
        return success_interval(successes, rng)
    # Evaluations of earlier versions have but the mean.
    return share_interval(round(mean * len(returns)), len(returns)) if isinstance(returns, list) and returns else None


def _failing_text(figures: Mapping[str, float]) -> str:
    failing = figures.get("annotation/annotators_failing", 0.0)
    if not failing:
        return ""
    labelled, keys = (int(figures.get(f"annotation/{name}", 0.0)) for name in ("keys_labelled", "keys_askable"))
    return (
        f"{failing:.0f} of {figures['annotation/annotators']:.0f} could not judge at the end, see the warning; "
        f"{labelled:,} of {keys:,} keys have a label, the others paid nothing"
    )


def _figure(row: Row, key: str) -> float | None:
    value = row.get(key)
    return None if value is None or isinstance(value, list) or not math.isfinite(value) else value


def _ranked(
    rows: Sequence[CaptionReportRow], paid: NDArray[np.float64] | None
) -> list[tuple[CaptionReportRow, float | None]]:
    if paid is not None and len(paid) != len(rows):
        raise ValueError(f"paid has {len(paid)} entries for {len(rows)} captions; allowed is one for each")
    pays: list[float | None] = [None] * len(rows) if paid is None else [float(pay) for pay in paid]
    pairs = list(zip(rows, pays, strict=True))
    return sorted(pairs, key=lambda pair: (-(pair[1] or 0.0), -pair[0].sightings, pair[0].key))


def _points(
    line: _Line, history: Sequence[Row], evaluations: Sequence[Row]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    return series(evaluations, line.key, "env_steps") if line.evaluated else series(history, line.key, ENV_STEPS)


def _draw(axis: Axes, panel: _Panel, history: Sequence[Row], evaluations: Sequence[Row]) -> None:
    axis.set_title(panel.title, fontsize=10.5, loc="left", color="#202428")
    drawn = 0
    for line in panel.lines:
        x, y = _points(line, history, evaluations)
        if not len(x):
            continue
        drawn += 1
        if line.evaluated:
            low, high = _error_bars(line.key, evaluations, x, y)
            axis.errorbar(
                x,
                y,
                yerr=(low, high),
                color=line.color,
                marker="o",
                markersize=4.5,
                linewidth=1.6,
                capsize=2.5,
                elinewidth=1.0,
                label=line.label,
                zorder=4,
            )
        elif len(x) < 2:
            axis.plot(x, y, color=line.color, marker="o", markersize=4, label=line.label)
        else:
            if line.noisy:
                axis.plot(x, y, color=line.color, linewidth=0.7, alpha=0.3)
            axis.plot(x, _smoothed(y) if line.noisy else y, color=line.color, linewidth=1.8, label=line.label)
    axis.grid(visible=True, color="#E4E7EA", linewidth=0.7)
    axis.set_axisbelow(True)
    axis.spines[["top", "right"]].set_visible(False)
    axis.spines[["left", "bottom"]].set_color("#9AA2AA")
    axis.tick_params(labelsize=8, color="#9AA2AA", labelcolor="#3A4046")
    axis.ticklabel_format(axis="y", useOffset=False)  # "+1.2" over an axis is read as a part of the title
    axis.xaxis.set_major_formatter(FuncFormatter(tick_text))
    axis.set_xlabel("env steps", fontsize=8.5, color="#3A4046")
    axis.margins(x=0.02)
    if panel.from_zero:
        axis.set_ylim(bottom=0.0)
    if panel.share:
        axis.set_ylim(-0.03, 1.03)
        axis.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    elif max(abs(bound) for bound in axis.get_ylim()) >= 10_000:
        axis.yaxis.set_major_formatter(FuncFormatter(tick_text))
    if drawn > 1 or any(line.evaluated for line in panel.lines):
        axis.legend(fontsize=8, frameon=False, loc="best")


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
        return _success_interval(row, mean, rng)
    return bootstrap_interval(returns, rng) if key == "return_mean" else None


def _smoothed(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Moving mean over the same number of points to both sides, fewer at the ends, [points]."""
    half = max(1, round(len(values) * _SMOOTHED_SHARE / 2))
    sums = np.concatenate([[0.0], np.cumsum(values)])
    index = np.arange(len(values))
    first, last = np.maximum(index - half, 0), np.minimum(index + half + 1, len(values))
    means: NDArray[np.float64] = (sums[last] - sums[first]) / (last - first)
    return means
