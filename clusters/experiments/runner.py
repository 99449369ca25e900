"""Runs what is missing of an experiment, several runs at a time, each in a process of its own, on one core."""

from __future__ import annotations

import fcntl
import json
import os
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

from onibi.clusters.experiments.booking import declared_columns, misnamed_figures
from onibi.clusters.experiments.declaration import CalledTrial
from onibi.clusters.experiments.result_table import ResultRow
from onibi.clusters.experiments.schedule import Job, Schedule, job_message
from onibi.platform.errors import ConfigError, RunInUseError
from onibi.platform.threads import ONE_THREAD

_LOOK_SECONDS = 0.5
_END_SECONDS = 5.0  # for a run that was asked to end, before it is killed
_MOST_ERROR = 2_000  # characters in the table; the log has all


class RunObserver(Protocol):
    """Is told what happens."""

    def started(self, job: Job) -> None:
        """A run began."""

    def ended(self, job: Job, row: ResultRow) -> None:
        """A run ended and its row is written."""

    def waited(self) -> None:
        """Some time went by."""


@dataclass
class _Worker:
    process: subprocess.Popen[bytes]
    reusable: bool
    log: Path
    job: Job
    began: float
    answer: bytearray = field(default_factory=bytearray)


class ExperimentRunner:
    """Runs a schedule.

    Args:
        schedule: what is missing; its table receives the rows.
        folder: of runs and logs.
        jobs: runs at a time.
        observer: is told.
    """

    def __init__(self, schedule: Schedule, folder: Path, jobs: int, observer: RunObserver) -> None:
        self._schedule, self._folder, self._jobs, self._observer = schedule, folder, jobs, observer
        self._selector = selectors.DefaultSelector()
        self._busy: list[_Worker] = []
        self._idle: list[_Worker] = []  # processes with torch loaded, for the next call
        self._opened = 0

    def run(self) -> None:
        """Until nothing is missing. On Ctrl-C, or any other exception, the processes are ended first.

        Raises: RunInUseError where another process runs this experiment in the same folder, ConfigError where its
        folder or its table cannot be written.
        """
        try:
            (self._folder / "logs").mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"{self._folder}: not made ({error.strerror}). Choose another --runs-folder.") from error
        with _locked(self._folder):
            self._schedule.table.check_writable()  # a run whose row cannot be kept is not worth its time
            self._schedule.table.refresh()  # another process may have run some until now
            try:
                while self._fill() or self._busy:
                    for key, _ in self._selector.select(_LOOK_SECONDS):
                        self._read(key.data)
                    # Of a process that is gone, what it forked may hold the pipe open: no end is ever read from it.
                    for worker in [*self._busy, *self._idle]:
                        if worker.process.poll() is not None:
                            self._read(worker)
                    self._observer.waited()
            finally:
                self._end([*self._busy, *self._idle])
                self._selector.close()

    def _fill(self) -> bool:
        started = False
        while len(self._busy) < self._jobs:
            job = next(self._schedule.open_jobs({worker.job.key for worker in self._busy}), None)
            if job is None:
                return started
            self._start(job)
            started = True
        return started

    def _start(self, job: Job) -> None:
        reusable = isinstance(job.trial, CalledTrial)
        if reusable and self._idle:
            worker = self._idle.pop()
            worker.job, worker.began = job, time.monotonic()
        else:
            name = f"calls-{os.getpid()}-{self._opened}" if reusable else job.run_name
            worker = self._open(job, reusable, self._folder / "logs" / f"{name}.log")
        self._busy.append(worker)
        message = json.dumps(job_message(job, self._folder)) + "\n"
        assert worker.process.stdin is not None, "opened as a pipe"
        try:
            worker.process.stdin.write(message.encode())
            worker.process.stdin.flush()
        except BrokenPipeError:  # it died at once: reading its end tells how
            pass
        self._observer.started(job)

    def _open(self, job: Job, reusable: bool, log: Path) -> _Worker:
        self._opened += 1
        with log.open("wb") as sink:
            process = subprocess.Popen(
                [sys.executable, "-m", "onibi.clusters.experiments.worker"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=sink,
                start_new_session=True,  # Ctrl-C reaches the runner alone, which ends its processes in order
                env={**os.environ, **ONE_THREAD, "MLFLOW_DISABLE_TELEMETRY": "true"},
            )
        worker = _Worker(process, reusable, log, job, time.monotonic())
        assert process.stdout is not None, "opened as a pipe"
        os.set_blocking(process.stdout.fileno(), False)
        self._selector.register(process.stdout, selectors.EVENT_READ, worker)
        return worker

    def _read(self, worker: _Worker) -> None:
        assert worker.process.stdout is not None, "opened as a pipe"
        try:
            part = os.read(worker.process.stdout.fileno(), 1 << 16)
        except BlockingIOError:
            part = b""  # asked of a process that is gone
        worker.answer += part
        if part and not worker.answer.endswith(b"\n"):
            return
        if part:
            reply = json.loads(worker.answer)
            worker.answer.clear()
        else:
            reply = {"error": _death_text(worker)}
        if worker not in self._busy:  # an idle one that died: the next call opens another
            self._idle.remove(worker)
            self._end([worker])
            return
        self._busy.remove(worker)
        if part and worker.reusable:
            self._idle.append(worker)
        else:
            self._end([worker])
        self._book(worker.job, reply, time.monotonic() - worker.began)

    def _book(self, job: Job, reply: dict[str, Any], seconds: float) -> None:
        arm = job.arm
        figures = dict(reply.get("figures", {}))
        error = _shortened(reply.get("error", ""))
        # A table of text has no yes and no that reads back as a number.
        figures = {name: int(value) if isinstance(value, bool) else value for name, value in figures.items()}
        if not error and (error := misnamed_figures(figures)):
            figures = {}
        row = self._schedule.table.add(
            {
                "experiment": self._schedule.experiment.name,
                **declared_columns(arm, figures, error),
                "stage": job.stage,
                "seed": job.seed,
                "config_hash": job.config_hash,
                "date": f"{datetime.now(UTC):%Y-%m-%d %H:%M}",
                "wall_seconds": seconds,
                **({} if arm.tuning is None else {"tuned": f"{arm.tuning.name}={_value_of(job)}"}),
                **figures,
            }
        )
        self._schedule.finished(job)
        self._observer.ended(job, row)

    def _end(self, workers: list[_Worker]) -> None:
        """Ask, wait, kill: the whole process group, for an environment may have started processes too."""
        for worker in workers:
            _signal(worker.process, signal.SIGTERM)
        deadline = time.monotonic() + _END_SECONDS
        for worker in workers:
            try:
                worker.process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                _signal(worker.process, signal.SIGKILL)
                worker.process.wait()
            for pipe in (worker.process.stdin, worker.process.stdout):
                if pipe is not None:
                    if pipe.readable():
                        self._selector.unregister(pipe)
                    _close(pipe)


def _signal(process: subprocess.Popen[bytes], number: int) -> None:
    try:
        os.killpg(process.pid, number)  # also where it has ended itself: what it started may live on
    except (ProcessLookupError, PermissionError):  # all of them are gone; the number may be another's by now
        return


def _close(pipe: Any) -> None:
    try:
        pipe.close()
    except BrokenPipeError:  # what it still held for a process that is gone
        return


def _shortened(error: str) -> str:
    return error if len(error) <= _MOST_ERROR else f"{error[:_MOST_ERROR]}… ({len(error):,} characters)"


def _death_text(worker: _Worker) -> str:
    code = worker.process.wait()
    how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"
    return f"its process {how} before it answered; see {worker.log}"


def _value_of(job: Job) -> Any:
    assert job.arm.tuning is not None, "asked of tuned arms alone"
    name = job.arm.tuning.name
    if isinstance(job.trial, CalledTrial):
        return job.trial.arguments[name]
    return next(text.partition("=")[2] for text in reversed(job.trial.overrides) if text.startswith(f"{name}="))


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    descriptor = os.open(folder / "experiment.lock", os.O_RDWR | os.O_CREAT, 0o644)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise RunInUseError(
                f"{folder}: another process runs this experiment there. Wait for it, end it, or choose another "
                "--runs-folder and --output."
            ) from error
        yield
    finally:
        os.close(descriptor)
