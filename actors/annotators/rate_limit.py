"""Keeps requests to a server below its limits per minute, and waits where the server asks to.

In any 60 seconds at most ``requests_per_minute`` requests are admitted, and at most ``tokens_per_minute`` tokens: a
window that slides, not a bucket, which would admit twice the limit within a minute after an idle one.
"""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from onibi.actors.annotators.shared_pause import SharedPause

WINDOW_SECONDS = 60.0


@dataclass
class Admission:
    """One admitted request; ``tokens`` is what it was expected to use, until it is known better."""

    time: float
    tokens: int


class RateLimiter:
    """Admits requests one after the other, in the order in which they ask.

    Args:
        requests_per_minute: None is no limit.
        tokens_per_minute: None is no limit. A request above it is admitted when the window is empty.
        clock: seconds, never falling.
        sleep: waits for seconds.
        longest_pause_seconds: of a pause that is waited for; during the rest of a longer one nothing is admitted.
        shared: pauses of all processes that ask the server; None: of this one alone.
    """

    def __init__(
        self,
        requests_per_minute: int | None,
        tokens_per_minute: int | None,
        clock: Callable[[], float],
        sleep: Callable[[float], Awaitable[None]],
        longest_pause_seconds: float = math.inf,
        shared: SharedPause | None = None,
    ) -> None:
        self._requests = requests_per_minute
        self._tokens = tokens_per_minute
        self._clock = clock
        self._sleep = sleep
        self._longest_pause_seconds = longest_pause_seconds
        self._shared = shared
        self._window: deque[Admission] = deque()
        self._open_at = 0.0
        self._turn = asyncio.Lock()

    async def admit(
        self, tokens: int, deadline: float, is_wanted: Callable[[], bool] = lambda: True
    ) -> Admission | None:
        """Wait until a request of so many tokens may go.

        Returns: None where that is not before ``deadline`` (by the clock), behind a pause that is too long to wait, or
            where the request is not wanted any more when its turn comes.
        """
        async with self._turn:
            while is_wanted():
                now = self._clock()
                wait = self._wait_seconds(tokens, now)
                if now + wait > deadline or self.pause_left > self._longest_pause_seconds:
                    return None
                if wait <= 0:
                    admission = Admission(now, tokens)
                    if self._requests is not None or self._tokens is not None:
                        self._window.append(admission)
                    return admission
                await self._sleep(wait)
            return None

    def pause(self, seconds: float) -> None:
        """Admit nothing for so long: the server said so to one of us."""
        self._open_at = max(self._open_at, self._clock() + seconds)
        if self._shared is not None:
            self._shared.extend(seconds)

    @property
    def pause_left(self) -> float:
        """Seconds until the end of the pause; 0 without one."""
        others = 0.0 if self._shared is None else self._shared.left
        return max(others, self._open_at - self._clock(), 0.0)

    def _wait_seconds(self, tokens: int, now: float) -> float:
        while self._window and self._window[0].time <= now - WINDOW_SECONDS:
            self._window.popleft()
        wait = self.pause_left
        if self._requests is not None and len(self._window) >= self._requests:
            wait = max(wait, self._window[-self._requests].time + WINDOW_SECONDS - now)
        if self._tokens is not None:
            used = sum(admission.tokens for admission in self._window)
            for admission in self._window:
                if used + tokens <= self._tokens:
                    break
                used -= admission.tokens
                wait = max(wait, admission.time + WINDOW_SECONDS - now)
        return wait
