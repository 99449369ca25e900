"""Annotators of a serial run: asked in turn between fragments, in this process.

An annotator that takes its time holds the run up here, as everything does; in a Ray run it has a process of its own.
"""

from __future__ import annotations

import logging
import random
import time
from pathlib import Path

from onibi.actors.annotation_worker import AnnotationWorker, Request
from onibi.clusters.run_plan import RunPlan
from onibi.platform.annotation_desk import AnnotationDesk
from onibi.platform.annotation_table import AnnotationTable
from onibi.platform.annotator_health import AnnotatorHealth

log = logging.getLogger(__name__)


class SerialAnnotation:
    """Asks every annotator of a run, one after another.

    Args:
        plan: of the run.
        desk: what asks and takes the answers.
    """

    def __init__(self, plan: RunPlan, desk: AnnotationDesk) -> None:
        self._desk = desk
        self._batch_keys = plan.settings.annotation.batch_keys
        self._table = None if plan.annotation_table is None else AnnotationTable(Path(plan.annotation_table))
        self._workers = [
            AnnotationWorker(
                name,
                annotator,
                self._table if plan.keeps_labels(annotator) else None,
                time.monotonic,  # of pauses after failures alone: a run without failures does not depend on it
                random.Random(plan.settings.seed),
            )
            for name, annotator in plan.make_annotators().items()
        ]
        self._health = AnnotatorHealth(worker.name for worker in self._workers)

    def turn(self) -> None:
        """Read what other runs were told, and ask each annotator that can be asked for one batch."""
        self._read_table()
        for worker in self._workers:
            if worker.pause_seconds() > 0:
                continue
            requests = self._take(worker)
            if requests:
                answers = list(worker.answer(requests))
                self._desk.put(answers)
                self._health.answered(worker.name, answers)
                self._desk.give_back(worker.unanswered(), worker.judge)

    def statistics(self) -> dict[str, float]:
        """Metrics of desk and annotators."""
        for worker in self._workers:
            self._health.tell(worker.name, 0, worker.figures())
        return {**self._desk.statistics(), **self._health.metrics()}

    def notes(self) -> list[str]:
        """What a person should hear, since the last call."""
        return [note for worker in self._workers for note in worker.notes()]

    def close(self) -> None:
        """Close annotators and table."""
        for worker in self._workers:
            worker.close()

    def _take(self, worker: AnnotationWorker) -> list[Request]:
        if self._desk.asks == "pairs":
            return [*self._desk.take_pairs(self._batch_keys, worker.judge)]
        return [*self._desk.take(self._batch_keys, worker.judge)]

    def _read_table(self) -> None:
        if self._table is None:
            return
        try:
            self._desk.learn(self._table.refresh(None if self._desk.takes_any_judge else self._desk.judges))
        except OSError as error:
            log.warning("the labels of other runs in %s cannot be read: %s", self._table.folder, error)
