"""Ctrl-C that ends a wait soon, loses no answer that has come, and never breaks into what writes."""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

log = logging.getLogger(__name__)

_GRACE_SECONDS = 0.5


class Interruption:
    """The first Ctrl-C calls ``stop``, and what is waited for should end; a second one raises KeyboardInterrupt.

    What still waits half a second later is broken off: KeyboardInterrupt is raised in ``waiting``, and nowhere else.

    Args:
        stop: called in a thread of its own.
    """

    def __init__(self, stop: Callable[[], None] = lambda: None) -> None:
        self._stop = stop
        self._waits = self._overdue = False
        self._ending = threading.Lock()
        self.asked = False
        """Whether Ctrl-C was pressed."""

    @contextmanager
    def heard(self) -> Iterator[None]:
        """Inside, Ctrl-C is taken as said above. In the main thread only."""
        before = signal.signal(signal.SIGINT, self._ask)
        try:
            yield
        finally:
            with self._ending:  # a signal of ours is not to meet the handler of before
                self._waits = False
            signal.signal(signal.SIGINT, before)

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Inside, nothing is lost by breaking off. Raises: KeyboardInterrupt."""
        self._waits = True
        try:
            if self._overdue:
                raise KeyboardInterrupt
            yield
        finally:
            self._waits = False

    def _ask(self, _number: int, _frame: FrameType | None) -> None:
        if not self.asked:
            self.asked = True
            threading.Thread(target=self._end, name="interruption", daemon=True).start()
        elif self._waits or not self._overdue:
            raise KeyboardInterrupt

    def _end(self) -> None:
        try:
            self._stop()
        except Exception as error:  # noqa: BLE001 (what could not be stopped is broken off)
            log.debug("stopping raised %r", error)
        time.sleep(_GRACE_SECONDS)
        self._overdue = True
        with self._ending:
            if self._waits:
                os.kill(os.getpid(), signal.SIGINT)  # heard by the main thread in the midst of its wait
