"""What samplers of n-step windows have in common: lanes, windows planned ahead, and their state."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, Required, TypedDict

import numpy as np

from onibi.platform.replay.ring.reader import RingReader
from onibi.platform.replay.samplers.frame_stack import FrameStack
from onibi.platform.replay.samplers.planned_windows import PlannedWindows
from onibi.platform.replay.samplers.window_gather import EachRow, Empty
from onibi.platform.replay.samplers.window_starts import Starts, checked_generator, checked_lanes, readable_rows
from onibi.platform.replay.samplers.windows import Windows


class WindowOptions(TypedDict, total=False):
    """Arguments that every sampler of windows takes by name."""

    n_steps: Required[int]
    """n of a window."""
    batch_size: Required[int]
    """B."""
    rng: Required[np.random.Generator]
    """All draws come from it."""
    lanes: Sequence[int] | None
    """To draw from, None for all."""
    columns: Sequence[str] | None
    """Observation leaves and extra columns to gather, None for all."""
    batches_ahead: int
    """Batches that indices and scalar columns are made for at once; starts may be so many draws old. 16; 8 with
    priorities, 1 with the newest rows first."""
    gather_threads: int
    """Threads that copy rows. 1."""
    stack: FrameStack | None
    """Which leaves come as frame stacks; None for none."""
    each_row: EachRow
    """Columns that are wanted of all rows of a window."""


class WindowSampler(ABC):
    """Draws batches of windows; a subclass chooses their starts.

    What the writer overtook before the end check is redrawn, and ``overtaken`` counts it. Under one generator state and
    one sequence of ring contents the draws are the same.
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
        batches_ahead: int = 16,
        gather_threads: int = 1,
        stack: FrameStack | None = None,
        each_row: EachRow = EachRow(),  # noqa: B008 - frozen
    ) -> None:
        """Draw from ``reader``'s ring; see ``WindowOptions``.

        Raises: ReplayError where windows are longer than the ring was made for, or a lane or column does not exist;
            TypeError where ``rng`` is no Generator.
        """
        self._reader, self._rng = reader, checked_generator(rng)
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
            out: windows from this sampler's ``allocate``, returned. Observations, extra columns and weights are written
                over those in it; all else is exchanged for arrays that no later draw writes to. None makes new ones
                (slower for wide observations).
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

    @abstractmethod
    def _choose(self, count: int) -> Starts:
        """``count`` starts. Raises: ReplayError where none can be drawn yet."""
