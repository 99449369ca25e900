"""Draws that prefer the newest rows, by a geometric age."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal, Unpack

import numpy as np
from numpy.typing import NDArray

from onibi.platform.config import Settings
from onibi.platform.errors import ReplayError
from onibi.platform.number_ranges import Positive
from onibi.platform.replay.ring.reader import RingReader
from onibi.platform.replay.samplers.window_sampler import WindowOptions, WindowSampler
from onibi.platform.replay.samplers.window_starts import Span, Starts, drawable_starts, readable_span


@dataclass(frozen=True, kw_only=True)
class NewestFirstSettings(Settings):
    """New rows before old ones."""

    kind: Literal["newest_first"] = "newest_first"
    half_life_rows: Positive = 1_000.0  # of a lane: a row so much older is drawn half as often


class NewestFirstSampler(WindowSampler):
    """Draws a start with probability ∝ 2^(-age / half_life_rows) over all drawable starts.

    The age of a row is the number of rows behind it in its own lane (lanes have no common clock): the newest has 0. A
    small half-life is close to on-policy, a large one to uniform. Weights stay 1.
    """

    Settings: ClassVar[type[NewestFirstSettings]] = NewestFirstSettings

    def __init__(self, reader: RingReader, *, half_life_rows: float, **windows: Unpack[WindowOptions]) -> None:
        """As ``UniformSampler``, but one batch is planned at once by default: what is planned ahead grows old.

        Raises: ReplayError where the ring does not allow it or ``half_life_rows`` is not above 0.
        """
        if not 0 < half_life_rows < float("inf"):
            raise ReplayError(f"half_life_rows is {half_life_rows}, it must be a finite number of rows above 0")
        windows.setdefault("batches_ahead", 1)
        super().__init__(reader, **windows)
        self._log_keep = -np.log(2.0) / half_life_rows  # log of the probability's factor from one age to the next

    def _choose(self, count: int) -> Starts:
        span: Span = readable_span(self._reader, self._lanes, self._look_back)
        length = span.cursor - span.oldest
        mass = -np.expm1(self._log_keep * length)  # Σ over a lane's ages, up to the factor 1 / (1 - keep)
        ends = np.cumsum(mass)

        def propose(missing: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
            place = np.searchsorted(ends, self._rng.random(missing) * ends[-1], side="right")
            np.minimum(place, len(ends) - 1, out=place)
            age = (np.log1p(-self._rng.random(missing) * mass[place]) / self._log_keep).astype(np.int64)
            return place, span.cursor[place] - 1 - np.minimum(age, np.maximum(length[place] - 1, 0))

        def fall_back(place: NDArray[np.int64], row: NDArray[np.int64]) -> NDArray[np.int64]:
            age = span.cursor[place] - 1 - row
            share = np.exp(self._log_keep * (age - age.min()))
            return self._rng.choice(len(row), count, p=share / share.sum())

        return drawable_starts(self._reader, span, count, propose, fall_back)
