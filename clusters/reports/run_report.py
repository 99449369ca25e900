"""What a run leaves for people to look at: the learning curve, the table of captions, the summary."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.table import Table
from rich.text import Text

from onibi.clusters.reports.compare import bootstrap_interval
from onibi.clusters.reports.figures import UNKNOWN, count_text, duration_text, share_text, value_text
from onibi.clusters.reports.learning_panels import draw_panel, evaluated_success, panels_of
from onibi.clusters.reports.picture import new_picture, write_png
from onibi.clusters.shell_commands import command_to_go_on, mlflow_command
from onibi.platform.annotation.captions import printable
from onibi.platform.annotation.desk_report import CaptionReportRow
from onibi.platform.counted import counted
from onibi.platform.durable import write_durably
from onibi.platform.history import Row
from onibi.platform.run_folder import RunFolder

_PANEL_INCHES, _COLUMNS = (4.6, 2.9), 3
_CSV_COLUMNS = ("key", "label", "paid", "sightings", "score", "annotator", "example", "reply")


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
    panels = panels_of(history, evaluations)
    if not panels:
        return False
    rows = math.ceil(len(panels) / _COLUMNS)
    columns = min(_COLUMNS, len(panels))
    figure = new_picture(columns * _PANEL_INCHES[0], rows * _PANEL_INCHES[1] + 0.5, title)
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for place, (axis, panel) in enumerate(zip(axes, panels, strict=False)):
        draw_panel(axis, panel, history, evaluations)
        if place + columns >= len(panels):  # the lowest of its column: all have the same axis of steps
            axis.set_xlabel("env steps", fontsize=8.5)
    for axis in axes[len(panels) :]:
        axis.set_visible(False)
    write_png(figure, path)
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
    """The ``limit`` best-paid (else most-met) captions for a terminal. They come from outside: no markup and
    no control sequence is read.

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
            Text(printable(row.key)),
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
    film: Path | None = None
    best: str = ""  # which checkpoint was, where it is not the last one


def summary_text(summary: RunSummary, rng: np.random.Generator) -> Text:
    """The summary for a terminal, with the commands that go on from it: a line each, however long, to be copied whole.

    ``rng`` draws the bootstrap of the interval.
    """
    clock = duration_text(summary.seconds)
    speed = summary.env_steps / summary.seconds if summary.seconds > 0 else None
    lines = [
        ("run", f"{summary.name}: {summary.ended}"),
        (
            "trained",
            f"{summary.env_steps:,} env steps ({count_text(speed)}/s), {summary.updates:,} updates, {clock}",
        ),
        *((("evaluated", _evaluation_text(summary.evaluation, rng)),) if summary.evaluation else ()),
        *((("best", summary.best),) if summary.best else ()),
        *((("captions", text),) if (text := _silent_text(summary.figures)) else ()),
        *((("annotators", text),) if (text := _failing_text(summary.figures)) else ()),
        ("folder", str(summary.folder)),
        *((("curve", str(curve)),) if (curve := summary.folder / "artifacts" / "learning_curve.png").exists() else ()),
        *((("film", str(summary.film)),) if summary.film else ()),
        *((("MLflow", mlflow_command(summary.tracking_uri)),) if summary.tracking_uri else ()),
        *((("MLflow run", summary.tracking_run_id),) if summary.tracking_run_id else ()),
        (
            "go on",
            command_to_go_on(
                RunFolder(summary.folder), summary.name, summary.ended, summary.env_steps, summary.seconds
            ),
        ),
    ]
    width = max(len(name) for name, _ in lines) + 2
    return Text("\n").join(Text.assemble((name.ljust(width), "dim"), text) for name, text in lines)


def _evaluation_text(evaluation: Row, rng: np.random.Generator) -> str:
    returns = evaluation.get("returns")
    episodes = len(returns) if isinstance(returns, list) else 0
    parts = [f"return {value_text(_figure(evaluation, 'return_mean'))}"]
    if isinstance(returns, list) and returns and (interval := bootstrap_interval(returns, rng)).is_known:
        parts[0] += f" (95%: {value_text(interval.low)} to {value_text(interval.high)})"
    success = _figure(evaluation, "success_rate")
    if success is not None:
        parts.append(f"success {share_text(success)}")
        share = evaluated_success(evaluation, success, rng)
        if share is not None and share.is_known:
            parts[-1] += f" (95%: {share_text(share.low)} to {share_text(share.high)})"
    intrinsic = _figure(evaluation, "intrinsic_return_mean")
    if intrinsic is not None:
        parts.append(f"intrinsic return {value_text(intrinsic)}")
    return ", ".join(parts) + (f"; {counted(episodes, 'episode')}" if episodes else "")


def _silent_text(figures: Mapping[str, float]) -> str:
    if "learner/reward_intrinsic" not in figures or figures.get("annotation/keys") != 0:
        return ""  # captions pay nothing in this run, or some were heard
    return "none was heard in the whole run, so none paid: see that the environment tells what `captioner` reads"


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
