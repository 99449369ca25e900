"""Who waits for whom at the limiter, for how long, and in which order those that wait are let in."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Literal

from onibi.platform.replay.limiter import Limiter

Side = Literal["none", "actors", "learner"]
"""A side of the limiter; actors insert, the learner draws. The one that is stalled waits for the other."""

RECHECK_SECONDS = 0.005
"""How often the first in line asks again."""


@dataclass(frozen=True, kw_only=True)
class Pacing:
    """Which side the limiter holds back at this moment, and the sum that holds it."""

    stalled: Side
    reason: str

    def metrics(self) -> dict[str, float]:
        """1 for the side that is held back at this moment: its mean over a run is the share of time."""
        return {f"replay/{side}_stalled": float(self.stalled == side) for side in ("actors", "learner")}

    def text(self) -> str:
        """Who is held back and why, in words; empty where nobody is."""
        return "" if self.stalled == "none" else f"{self.stalled} held back: {self.reason}"


def pacing(limiter: Limiter, *, inserted: int, drawn: float, readable: int) -> Pacing:
    """Judge the counts of one moment, for the largest fragment and batch. At most one side is stalled (``Limiter``).

    Args:
        inserted, drawn, readable: as the limiter counts them.
    """
    fragment_rows, batch_rows = limiter.largest_fragment_rows, limiter.largest_batch_rows
    tolerance = f"tolerance {limiter.tolerance_rows:g}"
    if limiter.may_draw(batch_rows, inserted=inserted, drawn=drawn, readable=readable):
        if limiter.may_insert(fragment_rows, inserted=inserted, drawn=drawn, readable=readable):
            return Pacing(stalled="none", reason="")
        surplus = limiter.surplus(inserted + fragment_rows, drawn)
        return Pacing(
            stalled="actors",
            reason=f"with {fragment_rows} more rows the learner would owe {surplus:g} draws, {tolerance}",
        )
    if readable < limiter.minimum_rows:
        return Pacing(stalled="learner", reason=f"{readable} rows are readable, drawing needs {limiter.minimum_rows}")
    surplus = limiter.surplus(inserted, drawn + batch_rows)
    return Pacing(
        stalled="learner",
        reason=f"after {batch_rows} more draws the learner would be {-surplus:g} ahead, {tolerance}",
    )


class WaitMeter:
    """Seconds that each waiter has waited, for whom, and how long the waits that go on have lasted.

    Args:
        clock: seconds, never falling.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._since: dict[tuple[str, str], float] = {}
        self._past: dict[tuple[str, str], float] = {}

    def begin(self, who: str, whom: str) -> None:
        """``who`` waits for ``whom`` from now on; said again while it waits, it changes nothing."""
        self._since.setdefault((who, whom), self._clock())

    def end(self, who: str, whom: str) -> None:
        """The wait is over; nothing where there was none."""
        began = self._since.pop((who, whom), None)
        if began is not None:
            self._past[who, whom] = self._past.get((who, whom), 0.0) + self._clock() - began

    def seconds(self) -> dict[tuple[str, str], float]:
        """{(who, for whom): seconds}, waits that go on included."""
        now = self._clock()
        total = dict(self._past)
        for pair, began in self._since.items():
            total[pair] = total.get(pair, 0.0) + now - began
        return total

    def seconds_for(self, whom: str) -> float:
        """Seconds that all together have waited for ``whom``."""
        return sum((seconds for (_, other), seconds in self.seconds().items() if other == whom), 0.0)

    def longest(self) -> tuple[str, str, float] | None:
        """(who, for whom, seconds) of the wait that goes on for longest; None where nobody waits."""
        if not self._since:
            return None
        (who, whom), began = min(self._since.items(), key=lambda item: item[1])
        return who, whom, self._clock() - began


class InsertionLine:
    """Lets insertions in one by one in the order in which they came.

    Only the first in line asks the limiter, so that a long fragment is not overtaken for ever by short ones, and of
    actors with one fragment under way each none is let in twice before another that waits.
    """

    def __init__(self, meter: WaitMeter, recheck_seconds: float = RECHECK_SECONDS) -> None:
        self._meter, self._recheck = meter, recheck_seconds
        self._turn = asyncio.Lock()  # wakes those that wait in their order
        self.length = 0
        """Insertions that wait or are made now."""

    @asynccontextmanager
    async def turn(self, who: str, may_insert: Callable[[], bool]) -> AsyncIterator[None]:
        """Inside, nobody else inserts and ``may_insert()`` was true a moment ago.

        Counted as waiting for ``line`` (others before it) and for ``learner`` (the limiter).
        """
        self.length += 1
        try:
            self._meter.begin(who, "line")
            try:
                await self._turn.acquire()
            finally:
                self._meter.end(who, "line")
            try:
                try:
                    while not may_insert():
                        self._meter.begin(who, "learner")
                        await asyncio.sleep(self._recheck)
                finally:
                    self._meter.end(who, "learner")
                yield
            finally:
                self._turn.release()
        finally:
            self.length -= 1
