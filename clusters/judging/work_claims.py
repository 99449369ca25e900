"""What others ask a judge at the same time, so that a command asks about the rest only (no Ray)."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence

from onibi.platform.annotation.annotator import AnnotationRequest, PairRequest, Request
from onibi.platform.annotation.captions import text_hash
from onibi.platform.annotation.claims import AnnotationClaims
from onibi.platform.annotation.labels import Judge, Label, Preference
from onibi.platform.annotation.settings import AnnotationDeskSettings
from onibi.platform.annotation.table import AnnotationTable

log = logging.getLogger(__name__)

_LEASE_SECONDS = AnnotationDeskSettings().lease_seconds
"""As a run's by default: a judge that is silent for longer may be asked the same by somebody else."""
_LOCK_SECONDS = 10.0  # longer than a run waits, which has other work meanwhile
_RENEWALS = 3  # of a claim within its lease


class WorkClaims:
    """The questions of one command, told apart from those of runs and commands that share its annotation table.

    Args:
        table: where all of them keep their verdicts.
        judge: who is asked.
        clock: seconds, never falling.
    """

    def __init__(self, table: AnnotationTable, judge: Judge, clock: Callable[[], float] = time.monotonic) -> None:
        self._table, self._judge, self._clock = table, judge, clock
        self._claims = AnnotationClaims(table.folder, _LEASE_SECONDS, clock, _LOCK_SECONDS)
        self._answered: set[object] = set()  # by others
        self._held: Sequence[Request] = ()
        self._claimed_at = clock()

    def claim(self, batch: Sequence[Request]) -> tuple[list[Request], list[Request], int]:
        """Those of a batch to ask now, those that somebody else asks, and how many somebody else was answered."""
        mine, others = self._claims.divide(self._judge, batch)
        # Behind the claim: an answer that was put on disk before its asker's claim ended is seen for sure.
        try:
            news = self._table.refresh([self._judge])
        except OSError as error:
            log.warning("what others were answered in %s cannot be read: %s", self._table.folder, error)
            news = []
        self._answered |= {name_of(verdict) for verdict in news if verdict.is_readable}
        mine, others = ([item for item in part if name_of(item) not in self._answered] for part in (mine, others))
        self._held, self._claimed_at = mine, self._clock()
        return mine, others, len(batch) - len(mine) - len(others)

    def renew(self) -> None:
        """To be called while a batch is asked, at least once in a lease."""
        if self._clock() - self._claimed_at > _LEASE_SECONDS / _RENEWALS:
            self._claims.claim(self._judge, self._held)
            self._claimed_at = self._clock()

    def close(self) -> None:
        """Let others ask what has no verdict. What has one must be in the table by now."""
        self._claims.close()


def name_of(item: Request | Label | Preference) -> object:
    """What a question and its verdict have in common."""
    if isinstance(item, AnnotationRequest):
        return text_hash(item.key_text), item.vote
    if isinstance(item, Label):
        return item.key_hash, item.vote
    if isinstance(item, PairRequest):
        return frozenset((text_hash(item.first.key_text), text_hash(item.second.key_text)))
    return frozenset((item.first_hash, item.second_hash))
