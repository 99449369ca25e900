"""Uniform draws of n-step windows from a ring that is written meanwhile (contracts §3 and §4)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from onibi.platform.replay.window_sampler import WindowSampler
from onibi.platform.replay.window_starts import Starts, drawable_starts, readable_span


class UniformSampler(WindowSampler):
    """Draws every drawable start of the readable span with the same probability.

    Drawable is a committed row that is not final. Spans of all lanes are laid end to end, so a lane is met in
    proportion to its rows; final rows are redrawn. Its arguments are ``StackedWindowOptions``.
    """

    def _choose(self, count: int) -> Starts:
        span = readable_span(self._reader, self._lanes, self._look_back)
        count_of = span.cursor - span.oldest
        ends = np.cumsum(count_of)
        before = span.cursor - ends  # row = number in the spans laid end to end + before[place]
        alike = int(count_of[0]) if (count_of == count_of[0]).all() else 0

        def propose(missing: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
            number = self._rng.integers(0, ends[-1], missing)
            # Lanes in step, the usual case: a division finds the same places faster than a search.
            place = number // alike if alike else np.searchsorted(ends, number, side="right")
            return place, number + np.take(before, place)

        def fall_back(place: NDArray[np.int64], _: NDArray[np.int64]) -> NDArray[np.int64]:
            return self._rng.integers(0, len(place), count)

        return drawable_starts(self._reader, span, count, propose, fall_back)
