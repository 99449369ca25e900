"""How often each caption key was met in about the rows that replay still holds."""

from __future__ import annotations

from collections import deque

import numpy as np
from numpy.typing import NDArray

from onibi.platform.errors import CaptionError

_PARTS = 16


class SightingsWindow:
    """Differences of counts since the start, so that what was common long ago does not weigh for ever.

    Exact to a sixteenth of the window: it spans ``rows`` to 17/16 of them, and all rows until there are so many.

    Args:
        rows: of the window; None for all rows since the start.
    """

    def __init__(self, rows: int | None) -> None:
        if rows is not None and rows < 1:
            raise CaptionError(f"sightings window: rows is {rows}; allowed: 1 or more, or None")
        self._rows = rows
        self._past: deque[tuple[int, NDArray[np.int64]]] = deque()  # (env steps, counts since the start)

    def note(self, env_steps: int, sightings: NDArray[np.int64]) -> None:
        """So many env steps were made, and these are the counts [keys] since the start; neither ever falls."""
        if self._rows is None:
            return
        if not self._past or env_steps >= self._past[-1][0] + max(self._rows // _PARTS, 1):
            self._past.append((env_steps, sightings.copy()))
        while len(self._past) > 1 and self._past[1][0] <= env_steps - self._rows:
            self._past.popleft()

    def counts(self, sightings: NDArray[np.int64], env_steps: int) -> NDArray[np.int64]:
        """[keys]: of the counts since the start those within the window that ends at ``env_steps``."""
        within = sightings.copy()
        if self._rows is not None and self._past and self._past[0][0] <= env_steps - self._rows:
            before = self._past[0][1]
            within[: len(before)] -= before
        return within
