"""Weights that wait to be sent: of several the newest, and not more often than the way is worth."""

from __future__ import annotations

import math
from collections.abc import Callable

from onibi.platform.policy import Weights


class WeightsOutbox:
    """Sends the newest weights, at most once in ``period_seconds``. Nothing is lost but what was overtaken.

    A publication costs hub, object store and actors some milliseconds of processor time, however small the network is;
    small networks are updated hundreds of times a second. Times are arguments: seconds of one clock that never falls.

    Args:
        send: must not wait.
        period_seconds: between two sendings at least.
    """

    def __init__(self, send: Callable[[Weights], None], period_seconds: float) -> None:
        self._send, self._period = send, period_seconds
        self._waiting: Weights | None = None
        self._sent_at = -math.inf

    def put(self, weights: Weights, now: float) -> None:
        """Send these now or, where others were sent a moment ago, when they are due."""
        self._waiting = weights
        self.send_due(now)

    def send_due(self, now: float) -> None:
        """Send what waits, if anything does and the period is over; to be called often."""
        if self._waiting is not None and now - self._sent_at >= self._period:
            weights, self._waiting, self._sent_at = self._waiting, None, now
            self._send(weights)
