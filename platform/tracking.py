"""Tracking of a run in MLflow, beside the run and never in its way.

One thread owns the MLflow client. The run loop hands over rows and files without waiting; the thread sends what has
gathered as one batch. A server that is slow, restarts or is gone costs the run nothing: rows wait in a bounded buffer,
are sent again later, and what had to be dropped is counted. ``history.jsonl`` has every row in any case.
"""

from __future__ import annotations

import enum
import logging
import math
import os
import re
import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, Protocol

from onibi.platform.config import Settings
from onibi.platform.mlflow_store import MetricPoint, MlflowStore, Refused
from onibi.platform.redaction import without_secrets

log = logging.getLogger(__name__)

TrackingEnd = Literal["FINISHED", "KILLED", "FAILED"]
"""MLflow's words for how a run ended; KILLED is one that was interrupted and may be resumed."""

_NOT_IN_A_NAME = re.compile(r"[^\w\-. :/]", re.ASCII)
_NAME_CHARACTERS = 250
_PATIENCE_SECONDS = 5.0  # of a wait at the end before it is explained
_POINTS_PER_BATCH = 1_000  # MLflow's limit of one request


@dataclass(frozen=True, kw_only=True)
class TrackingSettings(Settings):
    """Where a run's figures go besides its own folder."""

    enabled: bool = True  # in MLflow
    prometheus: bool = True  # of runs under Ray: figures as Ray's metrics, docs/monitoring.md
    uri: str | None = None  # None: MLFLOW_TRACKING_URI, and without that SQLite in the folder of all runs
    experiment: str = "onibi"
    buffer_points: int = 200_000  # figures kept while no server answers; the oldest are dropped first
    retry_seconds: float = 1.0  # first pause after a failure; doubles up to retry_limit_seconds
    retry_limit_seconds: float = 30.0
    request_timeout_seconds: int = 15

    def __post_init__(self) -> None:
        """Check what the types do not say."""
        if self.buffer_points < 1 or not 0 < self.retry_seconds <= self.retry_limit_seconds:
            raise ValueError("buffer_points must be ≥ 1 and 0 < retry_seconds ≤ retry_limit_seconds")
        if self.request_timeout_seconds < 1:
            raise ValueError(f"request_timeout_seconds is {self.request_timeout_seconds}; allowed are values ≥ 1")


@dataclass(frozen=True, kw_only=True)
class TrackedRun:
    """What a tracker says of its run: ``tags`` are searchable in MLflow, ``config`` is the resolved settings."""

    run_id: str
    name: str
    config: Mapping[str, Any]
    tags: Mapping[str, str]


class Tracker(Protocol):
    """What the run loop calls. No method waits for a server except ``close``, and that only for its timeout."""

    def log(self, row: Mapping[str, float], env_steps: int) -> None:
        """Record figures ``group/name`` at ``env_steps``. Infinite ones are left out: MLflow would store 1.8e308."""

    def artifact(self, path: Path, folder: str) -> None:
        """Upload a file, or a folder with all it holds, into ``folder`` of the run's artifacts ("" is the top)."""

    def close(self, end: TrackingEnd, timeout_seconds: float) -> bool:
        """Send what is left and end the run in MLflow; False where not all of it arrived in time."""


class NullTracker:
    """Tracks nothing: ``tracking.enabled: false``."""

    def log(self, row: Mapping[str, float], env_steps: int) -> None:
        """Drop the row."""

    def artifact(self, path: Path, folder: str) -> None:
        """Drop the file's name; the file stays where it is."""

    def close(self, end: TrackingEnd, timeout_seconds: float) -> bool:  # noqa: ARG002
        """Nothing is left to send."""
        return True


@dataclass(frozen=True)
class TrackerStatistics:
    """Counts since the start: figures sent, figures dropped (buffer full, or refused), requests that failed."""

    sent_points: int
    dropped_points: int
    failures: int


class _Answer(enum.Enum):
    TAKEN = "taken"
    REFUSED = "refused"
    NONE = "none"


class MlflowTracker:
    """Sends to MLflow from a thread of its own.

    A run that is resumed goes on in the same MLflow run, found by its tag ``onibi.run_id``; its params are not logged
    again.

    Args:
        settings: where to.
        run: what is told of the run.
        runs_root: folder of all runs.
        started: called once, in that thread, with the MLflow run id and the URI (to be kept in the record).
        killed: asked once, in that thread: ids of runs whose process was killed. They could not tell MLflow so.
    """

    def __init__(
        self,
        settings: TrackingSettings,
        run: TrackedRun,
        runs_root: Path,
        started: Callable[[str, str], None],
        killed: Callable[[], Collection[str]] = frozenset,
    ) -> None:
        self._settings = settings
        self._run = run
        self._started, self._killed = started, killed
        self.uri = tracking_uri(settings, runs_root)
        artifacts = None if "://" in self.uri and not self.uri.startswith("sqlite:") else runs_root / "mlartifacts"
        self._store = MlflowStore(self.uri, settings.experiment, artifacts, settings.request_timeout_seconds)
        self._points: deque[MetricPoint] = deque()
        self._in_flight: list[MetricPoint] = []
        self._files: deque[tuple[Path, str]] = deque()
        self._changed = threading.Condition()
        self._closing: TrackingEnd | None = None
        self._deadline = math.inf
        self._sent = self._dropped = self._failures = 0
        self._flushed = False
        self._warned: set[str] = set()
        self._thread = threading.Thread(target=self._work, name="onibi-tracking", daemon=True)
        self._thread.start()

    def log(self, row: Mapping[str, float], env_steps: int) -> None:
        """Record figures ``group/name`` at ``env_steps``; returns at once."""
        milliseconds = time.time_ns() // 1_000_000
        points = [
            MetricPoint(_metric_name(name), float(value), milliseconds, env_steps)
            for name, value in row.items()
            if not math.isinf(value)
        ]
        with self._changed:
            self._points.extend(points)
            overflow = max(0, len(self._points) - self._settings.buffer_points)
            for _ in range(overflow):
                self._points.popleft()
            self._dropped += overflow
            self._changed.notify()
        if overflow:
            self._warn_once(
                "overflow",
                "tracking: %s has not answered for long and the oldest figures are dropped; history.jsonl has them; "
                "raise tracking.buffer_points or restart the server",
                self._store.shown_uri,
            )

    def artifact(self, path: Path, folder: str) -> None:
        """Upload a file or folder when its turn comes; returns at once. The file must stay until ``close``."""
        with self._changed:
            self._files.append((path, folder))
            self._changed.notify()

    def close(self, end: TrackingEnd, timeout_seconds: float) -> bool:
        """Send what is left within ``timeout_seconds`` and end the MLflow run; says whether all arrived."""
        with self._changed:
            self._closing = end
            self._deadline = time.monotonic() + timeout_seconds
            self._changed.notify()
        self._thread.join(min(_PATIENCE_SECONDS, timeout_seconds))
        if self._thread.is_alive() and timeout_seconds > _PATIENCE_SECONDS:
            log.warning(
                "tracking: %s is slow; waiting up to %.0f s for the last figures. Ctrl-C (twice) gives up on them: the "
                "run's folder has them all",
                self._store.shown_uri,
                timeout_seconds - _PATIENCE_SECONDS,
            )
            self._thread.join(timeout_seconds - _PATIENCE_SECONDS)
        with self._changed:
            left = len(self._points) + len(self._in_flight) + len(self._files)
        if not self._flushed:
            log.warning(
                "tracking: %d figures and files did not reach %s within %.0f s; the run's folder has them all",
                left,
                self._store.shown_uri,
                timeout_seconds,
            )
        return self._flushed

    def statistics(self) -> TrackerStatistics:
        """Counts since the start."""
        with self._changed:
            return TrackerStatistics(self._sent, self._dropped, self._failures)

    def _work(self) -> None:
        """The thread: open the run, then send until closed."""
        if self._persist(self._open) is not _Answer.TAKEN:
            return
        self._end_killed()
        answer = _Answer.TAKEN
        while answer is not _Answer.NONE:
            with self._changed:
                self._changed.wait_for(lambda: self._points or self._files or self._closing)
                points = [self._points.popleft() for _ in range(min(len(self._points), _POINTS_PER_BATCH))]
                self._in_flight = points
                file = self._files[0] if self._files and not points else None
                end = self._closing
            if points:
                answer = self._send(points)
            elif file is not None:
                answer = self._persist(partial(self._store.upload, *file))
                if answer is not _Answer.NONE:
                    self._files.popleft()
            elif end is not None:
                self._flushed = self._persist(partial(self._store.end, end)) is _Answer.TAKEN
                return

    def _send(self, points: list[MetricPoint]) -> _Answer:
        answer = self._persist(partial(self._store.log, points))
        with self._changed:
            self._in_flight = []
            if answer is _Answer.TAKEN:
                self._sent += len(points)
            elif answer is _Answer.REFUSED:
                self._dropped += len(points)
            else:
                self._points.extendleft(reversed(points))
        return answer

    def _open(self) -> None:
        run_id = self._store.open(self._run.run_id, self._run.name, self._run.tags, self._run.config)
        self._started(run_id, self._store.shown_uri)

    def _end_killed(self) -> None:
        try:
            if killed := self._killed():
                self._store.end_others(killed, "KILLED")
        except Exception as error:  # noqa: BLE001 whatever MLflow or its database raises; the next session tries again
            log.info("tracking: killed runs are not ended in MLflow (%s)", without_secrets(str(error)))

    def _persist(self, request: Callable[[], None]) -> _Answer:
        """Repeat a request until the server takes or refuses it; NONE where the time to close ran out before."""
        pause = self._settings.retry_seconds
        while True:
            try:
                request()
            except Refused as refusal:
                # Asked again it would be refused again, and would hold up all that follows.
                self._failures += 1
                self._warn_once(f"refused {refusal}", "tracking: %s refused: %s", self._store.shown_uri, refusal)
                return _Answer.REFUSED
            except Exception as error:  # noqa: BLE001 whatever MLflow or its database raises, training goes on
                self._failures += 1
                self._warn_once(
                    "gone",
                    "tracking: %s does not answer (%s); training goes on, figures are kept and sent again",
                    self._store.shown_uri,
                    without_secrets(str(error)),  # MLflow names the server with user and password
                )
            else:
                if "gone" in self._warned:
                    self._warned.discard("gone")
                    log.info("tracking: %s answers again", self._store.shown_uri)
                return _Answer.TAKEN
            with self._changed:
                if not self._changed.wait_for(lambda: self._closing, timeout=pause):
                    pause = min(2 * pause, self._settings.retry_limit_seconds)
                    continue
            if time.monotonic() + self._settings.retry_seconds > self._deadline:
                return _Answer.NONE
            time.sleep(self._settings.retry_seconds)

    def _warn_once(self, kind: str, message: str, *arguments: object) -> None:
        if kind not in self._warned:
            self._warned.add(kind)
            log.warning(message, *arguments)


def open_tracker(
    settings: TrackingSettings,
    run: TrackedRun,
    runs_root: Path,
    started: Callable[[str, str], None],
    killed: Callable[[], Collection[str]] = frozenset,
) -> Tracker:
    """The tracker that the settings ask for; returns at once: MLflow is imported and reached in its thread."""
    return MlflowTracker(settings, run, runs_root, started, killed) if settings.enabled else NullTracker()


def end_tracked_run(settings: TrackingSettings, run_id: str, runs_root: Path, end: TrackingEnd) -> None:
    """Tell MLflow how a run ended whose own session did not, or told it wrongly: it was killed, or it had finished
    before a session that could not begin. Waits for the server; a failure is logged.
    """
    uri = tracking_uri(settings, runs_root)
    embedded = uri.removeprefix("sqlite:///")
    if not settings.enabled or (embedded != uri and not Path(embedded).exists()):
        return
    try:
        MlflowStore(uri, settings.experiment, None, settings.request_timeout_seconds).end_left(run_id, end)
    except Exception as error:  # noqa: BLE001 whatever MLflow or its database raises
        log.warning("tracking: the run is not ended in MLflow (%s)", without_secrets(str(error)))


def tracking_uri(settings: TrackingSettings, runs_root: Path) -> str:
    """Where a run is tracked: the setting, else MLFLOW_TRACKING_URI, else ``runs/mlflow.db``."""
    return settings.uri or os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{runs_root.absolute() / 'mlflow.db'}"


def _metric_name(name: str) -> str:
    return _NOT_IN_A_NAME.sub("_", name)[:_NAME_CHARACTERS]
