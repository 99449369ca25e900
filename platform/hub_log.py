"""Warnings of a role's process, brought to where the run is watched: under Ray nobody sees that process's own log."""

from __future__ import annotations

import logging
from collections.abc import Callable

_LOGGER = "onibi"
_DIFFERENT_MOST = 100  # of one process; a fault that words itself anew each time must not flood the run


class HubLog(logging.Handler):
    """Hands each warning on once.

    Args:
        role: whose process this is; begins each text.
        tell: takes texts, in any thread, and must not wait: a call of the hub whose answer nobody reads.
    """

    def __init__(self, role: str, tell: Callable[[list[str]], object]) -> None:
        super().__init__(logging.WARNING)
        self._role, self._tell = role, tell
        self._told: set[str] = set()

    def emit(self, record: logging.LogRecord) -> None:
        """Hand one on; a hub that is gone is no reason to fail."""
        try:
            text = f"{self._role}: {record.getMessage()}"
            if text not in self._told and len(self._told) < _DIFFERENT_MOST:
                self._told.add(text)
                self._tell([text])
        except Exception:  # noqa: BLE001 (as logging.Handler asks)
            self.handleError(record)


def tell_warnings(role: str, tell: Callable[[list[str]], object]) -> None:
    """Hand this process's warnings on from now on, in place of where they were handed to before."""
    logger = logging.getLogger(_LOGGER)
    for handler in [each for each in logger.handlers if isinstance(each, HubLog)]:
        logger.removeHandler(handler)
    logger.addHandler(HubLog(role, tell))
