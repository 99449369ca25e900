"""Annotators of a serial run: asked in turn between fragments, in this process.

An annotator that takes its time holds the run up here, as everything does; in a Ray run it has a process of its own.
"""

from __future__ import annotations

import random
import time
from pathlib import Path

from onibi.actors.annotation_worker import AnnotationWorker
from onibi.clusters.run_plan import RunPlan
from onibi.platform.annotation.annotator_health import AnnotatorHealth
from onibi.platform.annotation.desk import AnnotationDesk
from onibi.platform.annotation.shared_annotations import SharedAnnotations
from onibi.platform.annotation.table import AnnotationTable
from onibi.platform.annotation.worker_requests import Worker, WorkerRequests

_SHIFT = "serial"  # the only one: a worker lives as long as its run


class SerialAnnotation:
    """Asks every annotator of a run, one after another.

    Args:
        plan: of the run.
        desk: what asks and takes the answers.
    """

    def __init__(self, plan: RunPlan, desk: AnnotationDesk) -> None:
        self._desk = desk
        self._batch_keys = plan.settings.annotation.batch_keys
        table = None if plan.annotation_table is None else AnnotationTable(Path(plan.annotation_table))
        self._shared = SharedAnnotations(desk, table, plan.keeping_judges())
        self._workers = [
            AnnotationWorker(
                name,
                annotator,
                table if plan.keeps_labels(annotator) else None,
                time.monotonic,  # of pauses after failures alone: a run without failures does not depend on it
                random.Random(plan.settings.seed),
            )
            for name, annotator in plan.make_annotators().items()
        ]
        judges = {worker.name: worker.judge for worker in self._workers}
        self._requests = WorkerRequests(self._shared, judges, plan.settings.annotation.desk.lease_seconds)
        for name in judges:
            self._requests.begin(Worker(name, 0), _SHIFT)
        self._health = AnnotatorHealth(judges)

    def turn(self) -> None:
        """Read what other runs were told, and ask each annotator that can be asked for one batch."""
        self._shared.read()
        for worker in self._workers:
            if worker.pause_seconds() > 0:
                continue
            name = Worker(worker.name, 0)
            requests = self._requests.take(name, _SHIFT, self._batch_keys)
            if requests:
                answers = []
                for answer in worker.answer(requests):
                    answers.append(answer)
                    self._requests.renew(name)
                self._desk.put(answers)
                self._health.answered(worker.name, answers)
                self._shared.give_back(worker.unanswered(), worker.judge)

    def statistics(self) -> dict[str, float]:
        """Metrics of desk and annotators."""
        for worker in self._workers:
            self._health.tell(worker.name, 0, worker.figures())
        # The desk's clock counts env steps here, so its ages are no seconds.
        desk = {name: figure for name, figure in self._desk.statistics().items() if not name.endswith("_seconds")}
        return {**desk, **self._health.metrics()}

    def notes(self) -> list[str]:
        """What a person should hear, since the last call."""
        return [note for worker in self._workers for note in worker.notes()]

    def close(self) -> None:
        """Close annotators and table."""
        self._shared.close()
        for worker in self._workers:
            worker.close()
