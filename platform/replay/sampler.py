"""Uniform draws of n-step windows from a ring that is written meanwhile (contracts §3 and §4)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onibi.platform.replay.frame_stack import FrameStack
from onibi.platform.replay.planned_windows import PlannedWindows
from onibi.platform.replay.ring_reader import RingReader
from onibi.platform.replay.window_gather import EachRow, Empty
from onibi.platform.replay.window_starts import Starts, checked_lanes, drawable_starts, readable_rows, readable_span
from onibi.platform.replay.windows import Windows


class UniformSampler:
    """Draws every drawable start of the readable span with the same probability.

    Drawable is a committed row that is not final. Spans of all lanes are laid end to end, so a lane is met in
    proportion to its rows; final rows are redrawn, and so is what the writer overtook before the end check
    (``overtaken`` counts them). Indices and scalar columns are made for ``batches_ahead`` batches at once; those starts
    may thus be some draws older than the newest rows. Under one generator state and one sequence of ring contents the
    draws are the same.
    """

    def __init__(
        self,
        reader: RingReader,
        *,
        n_steps: int,
        batch_size: int,
        rng: np.random.Generator,
        lanes: Sequence[int] | None = None,
        columns: Sequence[str] | None = None,
        batches_ahead: int = 8,
        gather_threads: int = 1,
        stack: FrameStack | None = None,
        each_row: EachRow = EachRow(),  # noqa: B008 - frozen
    ) -> None:
        """Draw from ``lanes`` (None: all) the observation leaves and extra columns named in ``columns`` (None: all),
        copied by ``gather_threads`` threads; ``stack`` says which leaves come as frame stacks, ``each_row`` which
        columns are wanted of all rows of a window.

        Raises: ReplayError where windows are longer than the ring was made for, or a lane or column does not exist.
        """
        self._reader, self._rng = reader, rng
        self._lanes = checked_lanes(reader, lanes)
        self._look_back = 0 if stack is None else stack.look_back
        self._draws = PlannedWindows(
            reader,
            self._choose,
            n_steps=n_steps,
            batch_size=batch_size,
            columns=columns,
            batches_ahead=batches_ahead,
            gather_threads=gather_threads,
            stack=stack,
            each_row=each_row,
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
        """Windows for ``draw(out=...)`` to fill, in memory that ``empty(shape, dtype)`` makes (``observation``
        only).
        """
        return self._draws.allocate(empty)

    def draw(self, out: Windows | None = None) -> Windows:
        """One batch; every value in it belongs to the rows that ``(lane, generation)`` name.

        Args:
            out: windows from ``allocate``, overwritten and returned; None makes new ones (slower for wide
            observations).
        Raises: ReplayError where no row can be drawn yet.
        """
        return self._draws.draw(self.allocate() if out is None else out)

    def state(self) -> dict[str, Any]:
        """Plain values (JSON holds them) from which ``restore`` goes on exactly, given the same ring contents."""
        return {"generator": self._rng.bit_generator.state, **self._draws.state()}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from ``state``. Starts chosen ahead are dropped where the ring no longer holds them or the batch size
        differs.
        """
        self._rng.bit_generator.state = state["generator"]
        self._draws.restore(state, self._lanes)

    def close(self) -> None:
        """End the gather threads; they also end when the sampler is collected."""
        self._draws.close()

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
            return place, number + before[place]

        def fall_back(place: NDArray[np.int64], _: NDArray[np.int64]) -> NDArray[np.int64]:
            return self._rng.integers(0, len(place), count)

        return drawable_starts(self._reader, span, count, propose, fall_back)
