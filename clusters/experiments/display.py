"""What an experiment shows while it runs: bars on a terminal, a line for each run elsewhere."""

from __future__ import annotations

import time
from collections.abc import Sequence
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from onibi.clusters.experiments.result_table import ResultRow
from onibi.clusters.experiments.schedule import ArmEstimate, Job, Schedule, score_of, total_seconds
from onibi.clusters.reports.figures import duration_text, value_text


def estimate_table(estimates: Sequence[ArmEstimate], jobs: int) -> Table:
    """What is missing, how long each run takes, and where that is known from."""
    runs = sum(each.missing for each in estimates)
    missing = "1 run is missing" if runs == 1 else f"{runs} runs are missing"
    table = Table(
        title=f"{missing}: about {duration_text(total_seconds(estimates, jobs))} with {jobs} at a time",
        title_justify="left",
        title_style="bold",
        box=None,
        pad_edge=False,
        padding=(0, 2, 0, 0),
    )
    for name in ("arm", "runs", "each", "known from"):
        table.add_column(name, justify="right" if name in ("runs", "each") else "left", no_wrap=True)
    for each in estimates:
        source = f"{each.measured} measured" if each.measured else "a guess"
        table.add_row(Text(each.arm), str(each.missing), duration_text(each.seconds), source)
    return table


class ExperimentDisplay:
    """Follows a runner; a context manager.

    Args:
        console: where to.
        schedule: for the time that is left.
        jobs: runs at a time.
    """

    def __init__(self, console: Console, schedule: Schedule, jobs: int) -> None:
        self._console, self._schedule, self._jobs = console, schedule, jobs
        self._tasks: dict[tuple[str, int], tuple[TaskID, float]] = {}
        self._total = sum(each.missing for each in schedule.estimates())
        self._ended = 0
        self._progress: Progress | None = None
        if console.is_terminal:
            self._progress = Progress(
                TextColumn("{task.description}", markup=False), BarColumn(),
                TextColumn("{task.fields[left]}"), TimeElapsedColumn(), console=console,
            )  # fmt: skip
            self._all = self._progress.add_task("all runs", total=max(1, self._total), left="")

    def __enter__(self) -> ExperimentDisplay:
        if self._progress is not None:
            self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._progress is not None:
            self._progress.stop()

    def started(self, job: Job) -> None:
        """Show a bar that fills in the run's expected time."""
        if self._progress is not None:
            expected = self._schedule.seconds(job.arm)
            task = self._progress.add_task(f"{job.arm.name}, seed {job.seed}", total=max(1.0, expected), left="")
            self._tasks[job.key] = (task, time.monotonic())

    def ended(self, job: Job, row: ResultRow) -> None:
        """Tell the run's score, or its error."""
        self._ended += 1
        if self._progress is not None:
            task, _ = self._tasks.pop(job.key)
            self._progress.remove_task(task)
            self._progress.update(self._all, completed=self._ended)
        if row["status"] == "ok":
            told = f"{job.arm.figure} {value_text(score_of(row, job.arm.figure))}"
        else:
            told = f"FAILED: {row['error']}"
        tuned = f", {row['tuned']}" if row.get("tuned") else ""
        seconds = duration_text(float(row["wall_seconds"]))
        text = f"{self._ended}/{self._total} {job.arm.name}, seed {job.seed}{tuned}: {told} ({seconds})"
        self._console.print(text, markup=False, highlight=False)

    def waited(self) -> None:
        """Move the bars."""
        if self._progress is None:
            return
        for task, began in self._tasks.values():
            self._progress.update(task, completed=time.monotonic() - began)
        left = total_seconds(self._schedule.estimates(), self._jobs)
        self._progress.update(self._all, left=f"{duration_text(left)} left")
