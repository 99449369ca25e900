"""Asks one annotator and bears its failures: what it answers is on disk before anybody acts on it (no Ray)."""

from __future__ import annotations

import logging
import math
import numbers
import random
from collections.abc import Callable, Generator, Iterator, Sequence

from onibi.platform.annotation.annotator import AnnotationRequest, Annotator, PairRequest, Request, judge_of, with_votes
from onibi.platform.annotation.captions import text_hash
from onibi.platform.annotation.labels import Judge, Label, Preference
from onibi.platform.annotation.table import AnnotationTable
from onibi.platform.errors import AnnotatorError, BudgetSpentError

log = logging.getLogger(__name__)

_FIRST_PAUSE_SECONDS, _LONGEST_PAUSE_SECONDS = 1.0, 60.0


class AnnotationWorker:
    """An annotator that may fail, with its pauses, its figures and the table that keeps its answers.

    After the k-th failure in a row it is left alone for min(60 s, 2^(k−1) s), times a random number between ½ and 1, so
    that many of them do not come back to a server at the same moment.

    Args:
        name: in metrics and messages.
        annotator: who judges.
        table: where answers are kept; None keeps none.
        clock: seconds, never falling.
        jitter: random numbers of the pauses.
    """

    def __init__(
        self,
        name: str,
        annotator: Annotator,
        table: AnnotationTable | None,
        clock: Callable[[], float],
        jitter: random.Random,
    ) -> None:
        self.name = name
        self.annotator = annotator
        self._table = table
        self._clock = clock
        self._jitter = jitter
        self._failures_in_a_row = 0
        self._ready_at = -math.inf
        self._unanswered: dict[tuple[int, ...], Request] = {}
        self._notes: list[str] = []
        self._counts = dict.fromkeys(("asked", "answered", "failed_batches", "table_failures"), 0)
        self.spent = False
        """Whether its budget is used up."""

    @property
    def judge(self) -> Judge:
        """Whose labels its labels are."""
        return judge_of(self.annotator)

    def pause_seconds(self) -> float:
        """How long it is to be left alone from now on; infinite when its budget is used up."""
        return math.inf if self.spent else max(self._ready_at - self._clock(), 0.0)

    def answer(self, requests: Sequence[Request]) -> Generator[Label | Preference, None, None]:
        """Ask, and give each answer as soon as it is there and on disk.

        Where the annotator fails it ends early: ``unanswered`` are then to be given back. It raises nothing, whatever
        the annotator raises: a plug-in's fault costs labels, no training.
        """
        keys = [request for request in requests if isinstance(request, AnnotationRequest)]
        pairs = [request for request in requests if isinstance(request, PairRequest)]
        self._unanswered = {_name(request): request for request in requests}
        self._counts["asked"] += len(requests)
        try:
            goal = self.annotator.goal
            if keys:
                yield from self._kept(with_votes(self.annotator.annotate(keys, goal), keys))
            if pairs:
                yield from self._kept(self.annotator.prefer(pairs, goal))
        except BudgetSpentError as error:
            self.spent = True
            self._tell(f"annotator {self.name} asks no more: {error}")
        except AnnotatorError as error:
            self._fail(str(error))
        except Exception as error:
            if not self._failures_in_a_row:  # a defect of ours: a plug-in's own arrive as AnnotatorError
                log.warning("annotator %s raised", self.name, exc_info=error)
            self._fail(repr(error))
        else:
            self._recover()
            self._unanswered = {}  # what it left out without a word comes back when its lease ends

    def unanswered(self) -> list[Request]:
        """Requests of the last ``answer`` that the annotator failed at; told once."""
        left, self._unanswered = list(self._unanswered.values()), {}
        return left

    def notes(self) -> list[str]:
        """What a person should hear, since the last call: whoever runs the worker logs it."""
        notes, self._notes = self._notes, []
        return notes

    def figures(self) -> dict[str, float]:
        """Its metrics, without prefix."""
        own = self._own_figures()
        healthy = not self.spent and self._failures_in_a_row == 0
        return {
            **{name: float(count) for name, count in self._counts.items()},
            **own,
            "healthy": min(float(healthy), own.get("healthy", 1.0)),
            "budget_spent": float(self.spent),
        }

    def close(self) -> None:
        """Close annotator and table."""
        try:
            self.annotator.close()
        except Exception as error:  # it is not needed any more, and the table is
            log.warning("annotator %s: closing it raised", self.name, exc_info=error)
        if self._table is not None:
            self._table.close()

    def _kept(self, records: Iterator[Label] | Iterator[Preference]) -> Iterator[Label | Preference]:
        for record in records:
            self._keep(record)
            self._counts["answered"] += 1
            self._unanswered.pop(_name_of_record(record), None)
            yield record

    def _keep(self, record: Label | Preference) -> None:
        if self._table is None:
            return
        try:
            self._table.append([record])
        except OSError as error:
            if not self._counts["table_failures"]:
                self._tell(f"labels of annotator {self.name} cannot be kept in {self._table.folder}: {error}")
            self._counts["table_failures"] += 1

    def _fail(self, why: str) -> None:
        self._counts["failed_batches"] += 1
        self._failures_in_a_row += 1
        longest = min(_LONGEST_PAUSE_SECONDS, _FIRST_PAUSE_SECONDS * 2.0 ** min(self._failures_in_a_row - 1, 30))
        pause = longest * self._jitter.uniform(0.5, 1.0)
        self._ready_at = self._clock() + pause
        if self._failures_in_a_row == 1:
            self._tell(f"annotator {self.name} cannot judge now: {why}. Training goes on; it is asked again later")
        log.debug(
            "annotator %s: %d failures in a row; asked again in %.1f s", self.name, self._failures_in_a_row, pause
        )

    def _recover(self) -> None:
        if self._failures_in_a_row:
            self._tell(f"annotator {self.name} judges again after {self._failures_in_a_row} failures")
        self._failures_in_a_row = 0

    def _own_figures(self) -> dict[str, float]:
        try:
            told = dict(self.annotator.statistics())
        except Exception as error:  # noqa: BLE001 (a plug-in's figures are not worth a run)
            log.debug("annotator %s: its statistics raised %r", self.name, error)
            return {}
        # Metrics are added up and drawn: words, lists and NaN among them would end the run that asks for its metrics.
        return {str(name): float(figure) for name, figure in told.items() if _is_number(figure)}

    def _tell(self, note: str) -> None:
        self._notes.append(note)  # logged where the run is watched: this process's own log may be seen by nobody


def _is_number(figure: object) -> bool:
    return isinstance(figure, numbers.Real) and math.isfinite(figure)


def _name(request: Request) -> tuple[int, ...]:
    if isinstance(request, AnnotationRequest):
        return (text_hash(request.key_text),)
    return text_hash(request.first.key_text), text_hash(request.second.key_text)


def _name_of_record(record: Label | Preference) -> tuple[int, ...]:
    return (record.key_hash,) if isinstance(record, Label) else (record.first_hash, record.second_hash)
