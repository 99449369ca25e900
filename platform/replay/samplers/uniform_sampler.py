"""Uniform draws of n-step windows from a ring that is written meanwhile (docs/replay-sampling.md)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from onibi.platform.config import Settings
from onibi.platform.replay.ring.reader import RingReader
from onibi.platform.replay.samplers.window_sampler import WindowSampler
from onibi.platform.replay.samplers.window_starts import Starts, drawable_starts, readable_span


@dataclass(frozen=True, kw_only=True)
class UniformSettings(Settings):
    """Every row with the same probability."""

    kind: Literal["uniform"] = "uniform"


class UniformSampler(WindowSampler):
    """Draws every drawable start of the readable span with the same probability.

    Drawable is a committed row that is not final. Spans of all lanes are laid end to end, so a lane is met in
    proportion to its rows; final rows are redrawn. Its arguments are ``WindowOptions``.
    """

    Settings: ClassVar[type[UniformSettings]] = UniformSettings

    def _choose(self, count: int) -> Starts:
        return uniform_starts(self._reader, self._lanes, count, self._rng, self._look_back)


def uniform_starts(
    reader: RingReader, lanes: NDArray[np.int64], count: int, rng: np.random.Generator, look_back: int
) -> Starts:
    """``count`` drawable rows of ``lanes``, with ``look_back`` rows before each still there.

    Raises: ReplayError where there is none.
    """
    span = readable_span(reader, lanes, look_back)
    count_of = span.cursor - span.oldest
    ends = np.cumsum(count_of)
    before = span.cursor - ends  # row = number in the spans laid end to end + before[place]
    alike = int(count_of[0]) if (count_of == count_of[0]).all() else 0

    def propose(missing: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        number = rng.integers(0, ends[-1], missing)
        # Lanes in step, the usual case: a division finds the same places faster than a search.
        place = number // alike if alike else np.searchsorted(ends, number, side="right")
        return place, number + np.take(before, place)

    def fall_back(place: NDArray[np.int64], _: NDArray[np.int64]) -> NDArray[np.int64]:
        return rng.integers(0, len(place), count)

    return drawable_starts(reader, span, count, propose, fall_back)
