"""Draws that prefer the newest rows, by a geometric age."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onibi.platform.errors import ReplayError
from onibi.platform.replay.planned_windows import PlannedWindows
from onibi.platform.replay.ring_reader import RingReader
from onibi.platform.replay.window_gather import Empty
from onibi.platform.replay.window_starts import (
    Span,
    Starts,
    checked_lanes,
    drawable_starts,
    readable_rows,
    readable_span,
)
from onibi.platform.replay.windows import Windows


class NewestFirstSampler:
    """Draws a start with probability ∝ 2^(-age / half_life_rows) over all drawable starts.

    The age of a row is the number of rows behind it in its own lane (lanes have no common clock): the newest has 0. A
    small half-life is close to on-policy, a large one to uniform. Weights stay 1.
    """

    def __init__(
        self,
        reader: RingReader,
        *,
        n_steps: int,
        batch_size: int,
        rng: np.random.Generator,
        half_life_rows: float,
        lanes: Sequence[int] | None = None,
        columns: Sequence[str] | None = None,
        batches_ahead: int = 1,
        gather_threads: int = 1,
    ) -> None:
        """As ``UniformSampler``, but one batch is planned at once by default: what is planned ahead grows old.

        Raises: ReplayError where the ring does not allow it or ``half_life_rows`` is not above 0.
        """
        if not 0 < half_life_rows < float("inf"):
            raise ReplayError(f"half_life_rows is {half_life_rows}, it must be a finite number of rows above 0")
        self._reader, self._rng = reader, rng
        self._log_keep = -np.log(2.0) / half_life_rows  # log of the probability's factor from one age to the next
        self._lanes = checked_lanes(reader, lanes)
        self._draws = PlannedWindows(
            reader,
            self._choose,
            n_steps=n_steps,
            batch_size=batch_size,
            columns=columns,
            batches_ahead=batches_ahead,
            gather_threads=gather_threads,
        )

    @property
    def drawn_rows(self) -> int:
        """Window starts handed out over this sampler's life, restored ones included."""
        return self._draws.drawn_rows

    @property
    def overtaken(self) -> int:
        """Starts that the writer overwrote before they were handed out; each was drawn again."""
        return self._draws.overtaken

    @property
    def readable_rows(self) -> int:
        """Committed rows of this sampler's lanes now, final rows included."""
        return readable_rows(self._reader, self._lanes)

    def allocate(self, empty: Empty = np.empty) -> Windows:
        """As ``UniformSampler.allocate``."""
        return self._draws.allocate(empty)

    def draw(self, out: Windows | None = None) -> Windows:
        """One batch. Raises: ReplayError where no row can be drawn yet."""
        return self._draws.draw(self.allocate() if out is None else out)

    def state(self) -> dict[str, Any]:
        """Plain values (JSON holds them) from which ``restore`` goes on exactly, given the same ring contents."""
        return {"generator": self._rng.bit_generator.state, **self._draws.state()}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from ``state``."""
        self._rng.bit_generator.state = state["generator"]
        self._draws.restore(state, self._lanes)

    def close(self) -> None:
        """End the gather threads; they also end when the sampler is collected."""
        self._draws.close()

    def _choose(self, count: int) -> Starts:
        span: Span = readable_span(self._reader, self._lanes)
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
