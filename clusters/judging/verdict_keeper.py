"""Verdicts on their way into an annotation table, on a disk that may be full.

One that was paid for is written as it comes: its successor may be minutes away, and a ``kill -9`` until then would pay
for it again. Free ones, of which thousands may come in a second, are written together.
"""

from __future__ import annotations

import time
from typing import TypeAlias

from onibi.platform.annotation.labels import Label, Preference
from onibi.platform.annotation.table import AnnotationTable
from onibi.platform.errors import OnibiError

_FLUSH_SECONDS = 1.0

Verdict: TypeAlias = Label | Preference


class DiskRefusedError(OnibiError):
    """The table's disk takes no more."""


class VerdictKeeper:
    """Appends verdicts to a table.

    Args:
        table: where to.
        at_once: each as it comes; else about once a second while they come, and with ``flush``.
    """

    def __init__(self, table: AnnotationTable, *, at_once: bool) -> None:
        self._table, self._at_once = table, at_once
        self._fresh: list[Verdict] = []
        self._flushed = time.monotonic()

    def keep(self, verdict: Verdict) -> None:
        """Raises: DiskRefusedError."""
        self._fresh.append(verdict)
        if self._at_once or time.monotonic() - self._flushed >= _FLUSH_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Append what is not in the table yet. Raises: DiskRefusedError; it is kept in memory then."""
        self._flushed = time.monotonic()
        if not self._fresh:
            return
        try:
            self._table.append(self._fresh)
        except OSError as error:
            raise DiskRefusedError(
                f"verdicts cannot be written to {self._table.folder}: {error}. Make room, or name another --table"
            ) from error
        self._fresh = []

    def close(self) -> list[Verdict]:
        """Append the rest, one by one where they do not fit together. Returns: what is lost."""
        lost = []
        try:
            self.flush()
        except DiskRefusedError:
            for verdict in self._fresh:
                try:
                    self._table.append([verdict])
                except OSError:
                    lost.append(verdict)
            self._fresh = []
        return lost
