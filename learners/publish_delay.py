"""How long weights are on their way: from the copy that a learner takes to the moment when actors can have it.

The age of the data is another number: how many updates the rows of a batch are behind (``learner/data_age_*``).
"""

from __future__ import annotations

import threading
from collections import deque
from dataclasses import dataclass

_MOST_ON_THE_WAY = 256
"""Copies remembered; in a serial run nobody tells that they arrive, as they are there at once."""


@dataclass(frozen=True)
class _Delay:
    seconds: float
    updates: int


class PublishDelay:
    """Measures publications; ``sent`` and ``arrived`` may be called by different threads.

    Times are arguments: seconds of any clock that never falls, the same one for both calls.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._on_the_way: deque[tuple[int, float]] = deque(maxlen=_MOST_ON_THE_WAY)
        self._delays: list[_Delay] = []

    def sent(self, updates: int, now: float) -> None:
        """A copy was taken after so many updates."""
        with self._lock:
            self._on_the_way.append((updates, now))

    def arrived(self, updates: int, updates_now: int, now: float) -> None:
        """Actors can have the copy of ``updates``, and with it every older one; ``updates_now`` are made by then."""
        with self._lock:
            while self._on_the_way and self._on_the_way[0][0] <= updates:
                of, sent_at = self._on_the_way.popleft()
                self._delays.append(_Delay(now - sent_at, updates_now - of))

    def take(self) -> dict[str, float]:
        """Metrics of the copies that have arrived since the last call; empty where none has."""
        with self._lock:
            delays, self._delays = self._delays, []
        if not delays:
            return {}
        seconds, updates = [delay.seconds for delay in delays], [delay.updates for delay in delays]
        return {
            "learner/publish_delay_mean_seconds": sum(seconds) / len(seconds),
            "learner/publish_delay_max_seconds": max(seconds),
            "learner/publish_delay_mean_updates": sum(updates) / len(updates),
            "learner/publish_delay_max_updates": float(max(updates)),
        }
