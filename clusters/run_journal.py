"""What a run writes down: history, evaluations, checkpoints, tracking, closing report. Both run loops use it."""

from __future__ import annotations

import io
import json
import logging
import shutil
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.logging import RichHandler

from onibi.actors.episodes import successes_of
from onibi.actors.evaluation import PlayedEpisode
from onibi.clusters.prometheus_export import PrometheusExporter
from onibi.clusters.reports.figures import share_text, value_text
from onibi.clusters.reports.progress import Budget, ProgressDisplay
from onibi.clusters.run_profile import RoleProfile, write_profile
from onibi.clusters.run_settings import RunSettings
from onibi.clusters.run_state import state_of, with_unplayed_evaluation
from onibi.platform.annotation.desk_report import CaptionReportRow
from onibi.platform.checkpoint import (
    Checkpoint,
    CheckpointParts,
    list_checkpoints,
    load_checkpoint,
    mark_best,
    save_checkpoint,
)
from onibi.platform.config import to_mapping
from onibi.platform.counted import counted
from onibi.platform.durable import write_durably
from onibi.platform.errors import CheckpointError
from onibi.platform.history import History, read_history
from onibi.platform.rewards.hack_alarms import HackAlarms
from onibi.platform.rewards.pay_watch import PayFigures
from onibi.platform.run_folder import RunFolder, RunStatus, killed_runs
from onibi.platform.tracking import TrackedRun, open_tracker

log = logging.getLogger(__name__)

_CAPTIONS_SHOWN, _CAPTIONS_FILE = 12, "captions.csv"
_OF_EVALUATION = ("env_steps", "judged", "return_mean")
_SHORT_RUN_SECONDS = 3_600.0
"""Up to this age every interval is a row of the history; then one of each 3,600th of the run's age is, so that a run of
a week has 22,000 rows and not 600,000, which nobody could load."""
_TRACKER_SECONDS = 60.0  # for what is left to send at the end


@dataclass(frozen=True)
class RunResult:
    """How a run, or its latest session, ended."""

    folder: Path
    status: RunStatus
    env_steps: int
    updates: int
    seconds: float
    # Not in the repr: a notebook that shows what `train` returned would show pages of them.
    figures: dict[str, float] = field(default_factory=dict, repr=False)  # the last row of the history
    evaluations: list[dict[str, Any]] = field(default_factory=list, repr=False)
    captions: Sequence[CaptionReportRow] = field(default=(), repr=False)
    paid: NDArray[np.float64] = field(default_factory=lambda: np.zeros(0), repr=False)  # by caption, in rollouts
    profile: list[RoleProfile] = field(default_factory=list, repr=False)  # of each process; empty in serial mode
    film: Path | None = None  # episodes of the best checkpoint, where they were asked for

    def summary(self) -> str:
        """What ``onibi train`` prints at its end: best-paid captions, figures, where things lie."""
        from onibi.clusters.reports.run_report import RunSummary, captions_table, summary_text

        record = RunFolder(self.folder).record()
        summary = RunSummary(
            name=self.folder.name,
            folder=self.folder,
            ended=self.status,
            env_steps=self.env_steps,
            updates=self.updates,
            seconds=self.seconds,
            evaluation=self.evaluations[-1] if self.evaluations else None,
            tracking_uri=record.tracking_uri,
            tracking_run_id=record.tracking_run_id,
            figures=self.figures,
            film=self.film,
            best=_told_best(self.evaluations),
        )
        console = Console(file=io.StringIO(), width=shutil.get_terminal_size((120, 40)).columns)
        with console.capture() as captured:
            if self.captions:
                table = self.folder / "artifacts" / _CAPTIONS_FILE
                console.print(captions_table(self.captions, self.paid, _CAPTIONS_SHOWN, table))
            console.print(summary_text(summary, np.random.default_rng(0)), soft_wrap=True)
        return captured.get().rstrip()


class RunJournal:
    """Books everything that one session of a run leaves behind.

    Args:
        folder: the run's.
        settings: resolved.
        display: shows progress on a terminal, or plain lines.
        film: called when a run has finished; gives the file of its film, None for none.
    """

    def __init__(
        self, folder: RunFolder, settings: RunSettings, display: bool, film: Callable[[], Path | None] = lambda: None
    ) -> None:
        self._folder, self._settings, self._film = folder, settings, film
        self._history, self._evaluations = History(folder.history), History(folder.evaluations)
        self._rows: dict[str, float] = {}
        self._unwritten: dict[str, float] = {}  # of the newest intervals: each figure's last value
        self._next_row_seconds = 0.0
        self._notes: list[str] = []
        self._log_fault = ""
        self._alarms = HackAlarms(settings.alarms)
        record = folder.record()
        tracked = TrackedRun(
            run_id=record.run_id,
            name=folder.name,
            config=to_mapping(settings),
            tags={"environment": settings.environment.id, "learner": settings.learner.kind},  # type: ignore[attr-defined]
        )
        self._tracker = open_tracker(
            settings.tracking,
            tracked,
            folder.root,
            lambda run_id, uri: _keep_tracking(folder, run_id, uri),
            lambda: killed_runs(folder.root),
        )
        exported = settings.tracking.prometheus and not record.serial
        self._exporter = PrometheusExporter(folder.name, enabled=exported)
        self._display: ProgressDisplay | None = None
        if display:
            budget = Budget(settings.budget.max_env_steps, settings.budget.max_seconds)
            self._display = ProgressDisplay(Console(stderr=True), folder.name, budget)
            self._display.__enter__()
            self._divert_log(self._display.console)

    @property
    def evaluations(self) -> list[dict[str, Any]]:
        """All evaluations of the run, earlier sessions' included; lines that are none are left out, and told of."""
        rows: list[dict[str, Any]] = [dict(row) for row in read_history(self._folder.evaluations)]
        whole = [row for row in rows if all(isinstance(row.get(name), float) for name in _OF_EVALUATION)]
        if len(whole) < len(rows):
            told = f"{counted(len(rows) - len(whole), 'line')} without {', '.join(_OF_EVALUATION)} left out"
            log.warning("%s: %s, %d evaluations read", self._folder.evaluations, told, len(whole))
        return whole

    def cut_after(self, env_steps: int, seconds: float) -> None:
        """Forget what was written, or waits to be, past the checkpoint that the run resumes from: named by its env
        steps, saved after so many seconds of training. Where actors are held back time goes on without env steps.
        """
        self._unwritten, self._next_row_seconds = {}, 0.0
        self._history.cut_after(env_steps)
        self._history.cut_after(seconds, key="time/seconds")
        self._evaluations.cut_after(env_steps, key="env_steps")

    def note(self, text: str) -> None:
        """Something worth telling once: an actor replaced, a checkpoint written."""
        if self._display is None:
            log.info(text)
        self._notes = [*self._notes, text][-3:]

    def warn(self, notes: Sequence[str]) -> None:
        """What annotators tell of themselves, each once: logged, so that it stays when the display is gone."""
        for note in notes:
            log.warning("%s", note)

    def watch(self, pay: PayFigures, texts_of: Callable[[Sequence[int]], Sequence[str]]) -> dict[str, float]:
        """Look for hacked rewards: figures and alarms of this interval; an alarm that goes up is told once."""
        if self._settings.rewards.intrinsic is None:
            return {}
        report = self._alarms.look(pay, texts_of)
        for sentence in report.raised:
            log.warning("%s", sentence)
        return report.metrics

    def tell_log_fault(self, fault: str) -> None:
        """What the replay log's own process logged where nobody looks: that it fails, or with "" takes rows again."""
        if fault == self._log_fault:
            return
        self._log_fault = fault
        if fault:
            log.error("%s", fault)
        else:
            log.warning("the replay log takes rows again; replay/log_dropped_rows counts those that it lost")

    def interval(self, row: dict[str, float], held_back: str = "") -> None:
        """Figures of one interval, from the run meter and the roles; which side the limiter holds back now, and why."""
        self._rows.update(row)
        self._exporter.log(row)
        self._unwritten |= row
        seconds = row.get("time/seconds", 0.0)
        if seconds >= self._next_row_seconds:
            self._write_row()
            if seconds > _SHORT_RUN_SECONDS:
                self._next_row_seconds = seconds * (1.0 + 1.0 / _SHORT_RUN_SECONDS)
        if self._display is not None:
            notes, self._notes = self._notes, []
            try:
                self._display.update(self._rows, notes, held_back)
            except (OSError, SystemExit) as error:  # Rich exits where the reader of a pipe is gone
                self._end_display()
                log.warning(
                    "nobody reads the display any more (%r); the run goes on, history.jsonl has all figures", error
                )

    def _write_row(self) -> None:
        row, self._unwritten = self._unwritten, {}
        if row:
            self._history.append(row)
            self._tracker.log(row, int(row["actors/env_steps"]))

    def save(self, env_steps: int, parts: CheckpointParts, keep: Collection[int] = ()) -> bool:
        """Write a checkpoint, named by its env steps. False where the disk refused: the run goes on, and says so.

        ``keep``: steps of checkpoints that stay besides the last ones, as one does that is being evaluated.
        """
        keep_last = self._settings.checkpoint.keep_last
        try:
            save_checkpoint(self._folder.checkpoints, env_steps, parts, keep_last=keep_last, keep=keep)
        except CheckpointError as error:
            log.error("%s", error)
            self.note("checkpoint not written")
            return False
        self._record(results={"env_steps": float(env_steps)})
        return True

    def last_checkpoint(self) -> Checkpoint:
        """The newest whole checkpoint."""
        return load_checkpoint(self._folder.checkpoints)

    def evaluate(self, env_steps: int, seconds: float, episodes: Sequence[PlayedEpisode]) -> dict[str, Any]:
        """Book an evaluation of the checkpoint of ``env_steps``, and name that checkpoint best if it is."""
        returns = [episode.episode_return for episode in episodes]
        judge = self._settings.evaluation.judge
        judged = float(np.mean([episode.judged_by(judge) for episode in episodes]))
        row: dict[str, Any] = {
            "env_steps": float(env_steps),
            "checkpoint": float(env_steps),
            "seconds": seconds,
            "judged": judged,
            "return_mean": float(np.mean(returns)),
            "length_mean": float(np.mean([episode.length for episode in episodes])),
            "returns": returns,
        }
        if self._settings.rewards.intrinsic is not None:
            row["intrinsic_return_mean"] = float(np.mean([episode.intrinsic_return for episode in episodes]))
        if successes := successes_of([episode.figures for episode in episodes]):
            row |= {"success_rate": float(np.mean(successes)), "successes": successes}
        for name in self._settings.rewards.bonuses:  # those that actors pay; a module's is not known by episode
            if any(f"return_{name}" in episode.figures for episode in episodes):
                row[f"return_{name}"] = float(np.mean([each.figures.get(f"return_{name}", 0.0) for each in episodes]))
        before = [float(each["judged"]) for each in self.evaluations]
        self._evaluations.append(row)
        if judged >= max(before, default=judged):  # of equals the later one: it has seen more
            try:
                mark_best(self._folder.checkpoints, env_steps)
            except CheckpointError as error:
                log.error("%s", error)
                self.note("best checkpoint not marked")
        figures = {f"evaluation/{name}": value for name, value in row.items() if isinstance(value, float)}
        self._rows.update(figures)
        self._exporter.log(figures)
        self._tracker.log(figures, env_steps)
        return row

    def _divert_log(self, console: Console) -> None:
        """Log through the display's console: lines written past a live panel tear it."""
        self._handlers = logging.getLogger().handlers[:]
        if console.is_terminal:
            logging.getLogger().handlers[:] = [RichHandler(console=console, show_path=False, show_time=False)]

    def _end_display(self) -> None:
        if self._display is not None:
            with suppress(OSError, SystemExit):  # its terminal may be gone
                self._display.__exit__(None, None, None)
            self._display = None
            logging.getLogger().handlers[:] = self._handlers

    def abandon(self, status: Literal["failed", "interrupted"] = "failed") -> None:
        """The session failed, or was ended at once: leave what was written, end display and tracking, record it."""
        self._end_display()
        self._write_row()
        self._history.close()
        self._evaluations.close()
        self._tracker.close("FAILED" if status == "failed" else "KILLED", _TRACKER_SECONDS / 6)
        self._record(status=status)

    def _record(self, **changes: Any) -> None:
        """Note in the run's record; a full disk must not end a run, nor hide why one ended."""
        try:
            self._folder.update(**changes)
        except OSError as error:
            log.error("%s: the run's record was not written (%s). Free some space.", self._folder.path, error.strerror)

    def close(
        self,
        status: RunStatus,
        env_steps: int,
        updates: int,
        seconds: float,
        captions: Sequence[CaptionReportRow],
        paid: NDArray[np.float64],
        profile: list[RoleProfile] | None = None,
    ) -> RunResult:
        """Write curve and captions table, hand everything to MLflow, and end the run."""
        self._end_display()
        self._write_row()
        self._exporter.close()
        self._history.close()
        self._evaluations.close()
        # Keys that came after the last reward table have been paid nothing.
        paid = np.pad(paid, (0, max(0, len(captions) - len(paid))))[: len(captions)]
        result = RunResult(
            self._folder.path,
            status,
            env_steps,
            updates,
            seconds,
            dict(self._rows),
            self.evaluations,
            captions,
            paid,
            profile or [],
        )
        try:
            self._write_reports(result)
        except OSError as error:
            log.error(
                "%s: curve and tables are not complete (%s). Free some space; the checkpoints are untouched.",
                self._folder.artifacts,
                error.strerror,
            )
        # First: whatever becomes of the wait for the tracker's server, this is how the run ended.
        self._record(
            status=status, results={"env_steps": float(env_steps), "updates": float(updates), "seconds": seconds}
        )
        if status == "finished" and (film := self._film()) is not None:
            self._tracker.artifact(film, "")
            result = replace(result, film=film)
        try:
            self._tracker.close("FINISHED" if status == "finished" else "KILLED", _TRACKER_SECONDS)
        except KeyboardInterrupt:
            log.warning("tracking: not waited for any longer; the run's folder has every figure")
        return result

    def _write_reports(self, result: RunResult) -> None:
        """Curve, tables and figures beside the run, and in the tracker. Raises: OSError where the disk is full."""
        from onibi.clusters.reports.run_report import captions_csv, learning_curve_png

        if result.profile:
            write_profile(result.profile, self._folder.artifacts / "profile.json")
        curve = self._folder.artifacts / "learning_curve.png"
        history, evaluations = read_history(self._folder.history), read_history(self._folder.evaluations)
        if learning_curve_png(history, evaluations, curve, title=self._folder.name):
            self._tracker.artifact(curve, "")
        if result.captions:
            table = self._folder.artifacts / _CAPTIONS_FILE
            captions_csv(result.captions, result.paid, table)
            self._tracker.artifact(table, "")
        for checkpoint in list_checkpoints(self._folder.checkpoints)[-1:]:
            self._tracker.artifact(checkpoint.path, "checkpoint")
        figures = {name: getattr(result, name) for name in ("status", "env_steps", "updates", "seconds")}
        write_durably(self._folder.artifacts / "result.json", json.dumps(figures).encode())


def go_on_from(journal: RunJournal, checkpoint: Checkpoint, period: int | None) -> Checkpoint:
    """Forget what the journal has past ``checkpoint``. Returns: it, as a session begins with it.

    ``period`` of evaluations, in env steps.
    """
    journal.cut_after(checkpoint.step, state_of(checkpoint).seconds)
    return with_unplayed_evaluation(checkpoint, journal.evaluations, period)


def _keep_tracking(folder: RunFolder, run_id: str, uri: str) -> None:
    folder.update(tracking_run_id=run_id, tracking_uri=uri)


def _told_best(evaluations: Sequence[dict[str, Any]]) -> str:
    """Which evaluation found the best checkpoint, where it was not the last; of equals the later one is."""
    if not evaluations:
        return ""
    best = max(reversed(evaluations), key=lambda row: float(row["judged"]))
    if best["env_steps"] == evaluations[-1]["env_steps"]:
        return ""
    told = f"return {value_text(best['return_mean'])}"
    if "success_rate" in best:
        told += f", success {share_text(best['success_rate'])}"
    return f"{told} at {int(best['env_steps']):,} env steps: that checkpoint is kept, and evaluated by default"
