"""How each of the runs in a folder ended, for ``onibi runs``."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.table import Table

from onibi.clusters.reports.figures import UNKNOWN, count_text, share_text, value_text
from onibi.platform.checkpoint import list_checkpoints
from onibi.platform.history import Row, read_history
from onibi.platform.run_folder import RunFolder, RunRecord, list_runs

_FIGURES = ("return_mean", "success_rate", "intrinsic_return_mean", "judged", "env_steps")


@dataclass(frozen=True)
class ListedRun:
    """One run. ``evaluation``: figures of its last one by name, empty where none was made."""

    name: str
    folder: str
    status: str  # as in the record, or "killed" where no process trains in a running one
    checkpoints: int
    created_at: str
    used_at: str
    serial: bool
    results: dict[str, float]
    evaluation: dict[str, float]


def listed_runs(root: Path) -> list[ListedRun]:
    """All runs of a folder, the one used last at the end."""
    return [_listed(run, run.record()) for run in list_runs(root)]


def runs_table(runs: Sequence[ListedRun]) -> Table:
    """A line for each run."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for name in ("run", "ended", "last used (UTC)", "env steps", "last evaluation"):
        is_number = name == "env steps"
        table.add_column(name, justify="right" if is_number else "left", no_wrap=is_number, overflow="fold")
    for run in runs:
        used = run.used_at[:16].replace("T", " ")
        table.add_row(run.name, _ended(run), used, count_text(run.results.get("env_steps")), _evaluated(run.evaluation))
    return table


def _listed(run: RunFolder, record: RunRecord) -> ListedRun:
    evaluations = read_history(run.evaluations)
    last: Row = evaluations[-1] if evaluations else {}
    found = {name: value for name in _FIGURES if isinstance(value := last.get(name), float) and math.isfinite(value)}
    return ListedRun(
        name=run.name,
        folder=str(run.path),
        status="killed" if record.status == "running" and not run.is_held else record.status,
        checkpoints=len(list_checkpoints(run.checkpoints)),
        created_at=record.created_at,
        used_at=record.used_at,
        serial=record.serial,
        results=record.results,
        evaluation=found,
    )


def _ended(run: ListedRun) -> str:
    if run.status != "killed":
        return run.status
    return "killed: resume it" if run.checkpoints else "killed before its first checkpoint"


def _evaluated(figures: dict[str, float]) -> str:
    if not figures:
        return UNKNOWN
    parts = [f"return {value_text(figures.get('return_mean'))}"]
    if "success_rate" in figures:
        parts.append(f"success {share_text(figures['success_rate'])}")
    return ", ".join(parts)
