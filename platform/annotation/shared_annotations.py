"""A desk and the annotation table that its run shares with others: nobody is asked what another has asked (no Ray)."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Sequence

from onibi.platform.annotation.annotator import Request
from onibi.platform.annotation.claims import AnnotationClaims
from onibi.platform.annotation.desk import AnnotationDesk
from onibi.platform.annotation.labels import Judge
from onibi.platform.annotation.table import AnnotationTable

log = logging.getLogger(__name__)

_LOOK_SECONDS = 1.0  # between two looks at questions that another run asks


class SharedAnnotations:
    """What a desk asks, less what other runs were answered or are asking.

    Args:
        desk: of the run.
        table: where labels of other runs are; None where there is none.
        keeping: judges whose labels are kept there; what others are asked is not claimed.
        on_news: called when other runs' labels were taken.
        clock: seconds, never falling.
    """

    def __init__(
        self,
        desk: AnnotationDesk,
        table: AnnotationTable | None,
        keeping: Sequence[Judge],
        on_news: Callable[[], None] = lambda: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._desk, self._table, self._keeping = desk, table, frozenset(keeping)
        self._on_news, self._clock = on_news, clock
        lease_seconds = desk.settings.desk.lease_seconds
        self._any_judge = desk.settings.desk.reuse == "any_prompt"
        self._claims = None if table is None else AnnotationClaims(table.folder, lease_seconds, clock)
        # By judge: in flight for the desk, as another run has them; and when they were looked at.
        self._elsewhere: dict[Judge, list[Request]] = {}
        self._looked: dict[Judge, float] = {}

    @property
    def judges(self) -> tuple[Judge, ...]:
        """Whose answers the desk waits for."""
        return self._desk.judges

    def read(self) -> None:
        """Take what other runs were answered, so that it is not asked again."""
        if self._table is None:
            return
        try:
            news = self._table.refresh(None if self._any_judge else self._desk.judges)
        except OSError as error:
            log.warning("the labels of other runs in %s cannot be read: %s", self._table.folder, error)
            return
        if news:
            self._desk.learn(news)
            self._on_news()

    def take(self, judge: Judge, count: int) -> list[Request]:
        """At most ``count`` questions for a judge. What another run asks stays in flight here until it is answered, or
        free again.
        """
        claims = self._claims if judge in self._keeping else None
        if claims is None:
            return self._desk_takes(judge, count)
        # They are nobody's here, so no annotator can be late with them: their leases begin anew at each call.
        self._elsewhere[judge] = self._desk.renew(self._elsewhere.get(judge, ()), judge)
        mine = self._freed(claims, judge, count)
        while len(mine) < count and (taken := self._desk_takes(judge, count - len(mine))):
            free, others = claims.divide(judge, taken)
            self._desk.note_asked(others, -1)
            self._elsewhere[judge] += others
            mine += free
        if mine:
            # Only now: an answer that was put on disk before its asker's claim ended is seen here for sure.
            self.read()
            self._desk.note_asked([each for each in mine if not self._desk.waits_for(each, judge)], -1)
            mine = [each for each in mine if self._desk.waits_for(each, judge)]
        return mine

    def give_back(self, requests: Sequence[Request], judge: Judge) -> None:
        """Questions that an annotator failed at: they wait again, here and in other runs.

        Those whose lease is over may be asked by another annotator of this run: its claim stays.
        """
        left = [each for each in requests if self._desk.waits_for(each, judge)]
        self._desk.give_back(left, judge)
        if self._claims is not None and judge in self._keeping and left:
            self._claims.release(judge, left)

    def renew(self, requests: Sequence[Request], judge: Judge) -> list[Request]:
        """Those of taken questions that wait for an answer still: they do so anew, here and for other runs."""
        held = self._desk.renew(requests, judge)
        if self._claims is not None and judge in self._keeping and held:
            self._claims.claim(judge, held)
        return held

    def close(self) -> None:
        """Let other runs ask what this one has not been answered."""
        if self._claims is not None:
            self._claims.close()

    def _freed(self, claims: AnnotationClaims, judge: Judge, count: int) -> list[Request]:
        """Questions that another run had and does not ask any more, unanswered."""
        now, waiting = self._clock(), self._elsewhere[judge]
        if not waiting or now - self._looked.get(judge, -math.inf) < _LOOK_SECONDS:
            return []
        self._looked[judge] = now
        looked_at, rest = waiting[:count], waiting[count:]
        freed, others = claims.divide(judge, looked_at)
        self._elsewhere[judge] = rest + others  # behind: the next look is at those that this one left out
        self._desk.note_asked(freed, 1)
        return freed

    def _desk_takes(self, judge: Judge, count: int) -> list[Request]:
        if self._desk.asks == "pairs":
            return [*self._desk.take_pairs(count, judge)]
        return [*self._desk.take(count, judge)]
