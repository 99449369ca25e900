"""An annotator as a Ray actor: takes requests from the hub, brings labels back as they come (Ray shell)."""

from __future__ import annotations

import logging
import math
import os
import random
import threading
import time
import uuid
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import ray

from onibi.actors.annotation_worker import AnnotationWorker
from onibi.platform.annotation.annotator import Annotator
from onibi.platform.annotation.labels import Label, Preference
from onibi.platform.annotation.settings import AnnotationSettings
from onibi.platform.annotation.table import AnnotationTable
from onibi.platform.annotation.worker_requests import Worker
from onibi.platform.hub_log import tell_warnings
from onibi.platform.process_usage import ProcessUsage, process_usage

log = logging.getLogger(__name__)

_WAIT_SECONDS = 2.0
_TELL_SECONDS = 1.0
_LAST_ANSWERS_SECONDS = 2.0
"""For the rest of a batch once the end was asked for: what was sent is paid, and whoever resumes would pay it again.
Whoever asks for the end waits a second longer."""

ANNOTATOR_OPTIONS: dict[str, Any] = {
    "max_restarts": -1,
    "max_task_retries": 0,
    "max_concurrency": 3,
    "num_cpus": 0.05,
}


class Messenger:
    """Brings answers to the hub while the annotator goes on judging, and tells the hub how it does, every second.

    Args:
        hub: who gets them.
        worker: whose they are.
        name: of the worker, as the hub knows it.
        kept: whether the hub need not write them to the run's table: the worker does, or they are kept nowhere.
        hang_seconds: without an answer for so long while it judges, the process ends itself: Ray starts another.
    """

    def __init__(self, hub: Any, worker: AnnotationWorker, name: Worker, kept: bool, hang_seconds: float) -> None:
        self._hub, self._worker, self._name, self._kept = hub, worker, name, kept
        self._hang_seconds = hang_seconds
        self._news = threading.Condition()
        self._outbox: list[Label | Preference] = []
        self._busy_since: float | None = None
        self._closing = False
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._carry, name="messenger", daemon=True)
        self._thread.start()

    def put(self, record: Label | Preference) -> None:
        """An answer; also a sign of life."""
        with self._news:
            self._outbox.append(record)
            if self._busy_since is not None:
                self._busy_since = time.monotonic()
            self._news.notify()

    def begin(self) -> None:
        """The annotator has been asked, and is to answer."""
        self._busy_since = time.monotonic()

    def end(self) -> None:
        """It has answered, or failed."""
        self._busy_since = None

    def check(self) -> None:
        """Raises: what the hub raised, when it was told something."""
        if self._error is not None:
            raise self._error

    def close(self) -> None:
        """Bring the rest and end; waits for a few seconds at most."""
        with self._news:
            self._closing = True
            self._news.notify()
        self._thread.join(timeout=5.0)

    def _carry(self) -> None:
        told = 0.0
        try:
            while True:
                with self._news:
                    if not self._outbox and not self._closing:
                        self._news.wait(_TELL_SECONDS)
                    records, self._outbox = self._outbox, []
                    closing = self._closing
                if records:
                    ray.get(self._hub.put.remote(self._worker.name, records, self._kept))
                if time.monotonic() - told >= _TELL_SECONDS or closing:
                    told = time.monotonic()
                    figures, notes = self._worker.figures(), self._worker.notes()
                    ray.get(self._hub.tell.remote(self._name, figures, notes))
                if closing and not self._outbox:
                    return
                self._end_where_hung()
        except BaseException as error:  # noqa: BLE001 (the thread of ``run`` raises it)
            self._error = error

    def _end_where_hung(self) -> None:
        since = self._busy_since
        if since is not None and time.monotonic() - since > self._hang_seconds:
            log.error(
                "annotator %s gave no answer for %.0f s (annotation.hang_seconds); its process is replaced",
                self._worker.name,
                self._hang_seconds,
            )
            os._exit(70)  # a thread that hangs in a plug-in can be ended in no other way; answers are on disk


@ray.remote
class AnnotatorActor:
    """Annotates until told to stop; slow or down, it stops nobody else.

    Args:
        make_annotator: makes the annotator in this process.
        name: of this worker, as the hub knows it.
        settings: batches and limits.
        table: folder of the run's annotation table where this annotator's labels are kept; None keeps none.
    """

    def __init__(
        self,
        make_annotator: Callable[[], Annotator],
        name: Worker,
        settings: AnnotationSettings,
        table: str | None,
    ) -> None:
        self._make_annotator, self._name = make_annotator, name
        self._settings, self._table = settings, table
        self._niceness = os.nice(0) + settings.niceness
        self._stopping = threading.Event()
        self._answers_until = math.inf
        self._shift = ""
        self._working = threading.Lock()

    def run(self, hub: Any) -> None:
        """Take from ``hub``, judge, put, until :meth:`stop`, or until the annotator's budget is used up.

        Raises:
            OnibiError: the annotator cannot be made here.
            RayError: the hub is gone.
        """
        # Where a connection broke, Ray tells the coordinator of a failure and the call goes on all the same: the former
        # one ends after the answer at hand, and only then does its successor ask.
        self._shift = shift = uuid.uuid4().hex
        with self._working:
            self._work(hub, shift)

    def usage(self) -> ProcessUsage:
        """Processor time."""
        return process_usage()

    def stop(self) -> None:
        """End ``run`` after the batch at hand, or with what of it is answered within two seconds."""
        if not self._stopping.is_set():
            self._answers_until = time.monotonic() + _LAST_ANSWERS_SECONDS
        self._stopping.set()

    def _work(self, hub: Any, shift: str) -> None:
        annotator = self._name.annotator
        # Of this thread and those that it starts, so of all that judges and of nothing of Ray's.
        tell_warnings(f"annotator {annotator}", hub.note.remote)
        os.nice(max(0, self._niceness - os.nice(0)))
        table = self._shared_table(ray.get(hub.begin_work.remote(self._name, shift)))
        jitter = random.Random(f"{os.getpid()} {self._name.number}")
        worker = AnnotationWorker(annotator, self._make_annotator(), table, time.monotonic, jitter)
        needs_no_keeping = self._table is None or table is not None
        messenger = Messenger(hub, worker, self._name, needs_no_keeping, self._settings.hang_seconds)
        try:
            while not self._is_over(shift) and not worker.spent:
                messenger.check()
                pause = worker.pause_seconds()
                if pause > 0:
                    self._stopping.wait(min(pause, _WAIT_SECONDS))
                    continue
                self._answer_batch(hub, worker, messenger, shift)
        finally:
            messenger.close()
            worker.close()
        messenger.check()

    def _is_over(self, shift: str) -> bool:
        return self._stopping.is_set() or self._shift != shift

    def _answer_batch(self, hub: Any, worker: AnnotationWorker, messenger: Messenger, shift: str) -> None:
        requests = ray.get(hub.take.remote(self._name, shift, self._settings.batch_keys, _WAIT_SECONDS))
        if requests is None and not self._is_over(shift):
            ray.get(hub.begin_work.remote(self._name, shift))  # it was counted as lost, and is not
        if not requests:
            return
        if self._is_over(shift):  # while it waited: nobody would hear what is paid for now
            ray.get(hub.give_back.remote(worker.name, requests))
            return
        messenger.begin()
        with closing(worker.answer(requests)) as answers:
            for record in answers:
                messenger.put(record)
                if self._shift != shift or time.monotonic() > self._answers_until:
                    break
        messenger.end()
        unanswered = worker.unanswered()
        if unanswered:
            ray.get(hub.give_back.remote(worker.name, unanswered))

    def _shared_table(self, table_id: str | None) -> AnnotationTable | None:
        """The run's table, where this process sees the very folder that the hub sees; else the hub writes."""
        if self._table is None or table_id is None or not AnnotationTable.is_at(Path(self._table)):
            return None
        table = AnnotationTable(Path(self._table))
        return table if table.table_id == table_id else None
