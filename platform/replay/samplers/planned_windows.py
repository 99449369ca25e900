"""Batches of windows from starts that someone else chooses: planned ahead, gathered, checked, drawn again."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onibi.platform.errors import ReplayError
from onibi.platform.replay.ring.reader import RingReader
from onibi.platform.replay.samplers.frame_stack import FrameStack, first_read
from onibi.platform.replay.samplers.window_gather import PLANNED, EachRow, Empty, Plan, WindowGather
from onibi.platform.replay.samplers.window_starts import START_FIELDS, Starts
from onibi.platform.replay.samplers.windows import Windows

log = logging.getLogger(__name__)

Choose = Callable[[int], Starts]
"""Chooses so many starts of a fresh snapshot."""


class PlannedWindows:
    """What every sampler of windows does with its starts.

    Indices and scalar columns are made for ``batches_ahead`` batches at once, so a start may be that many draws older
    than the newest rows (and priorities); with gather threads one draw more, for the next plan is made while they copy
    the last batch of this one. What the writer overwrote before the end check is chosen and gathered again.
    """

    def __init__(
        self,
        reader: RingReader,
        choose: Choose,
        *,
        n_steps: int,
        batch_size: int,
        columns: Sequence[str] | None,
        batches_ahead: int,
        gather_threads: int,
        stack: FrameStack | None = None,
        each_row: EachRow = EachRow(),  # noqa: B008 - frozen
    ) -> None:
        """Raises: ReplayError where a size is below 1, windows are too long for the ring, or a column is unknown."""
        if batch_size < 1 or batches_ahead < 1:
            raise ReplayError(f"batch_size {batch_size} and batches_ahead {batches_ahead} must be at least 1")
        self._reader, self._choose = reader, choose
        self._batch, self._ahead = batch_size, batches_ahead
        self._gather = WindowGather(
            reader, n_steps=n_steps, columns=columns, gather_threads=gather_threads, stack=stack, each_row=each_row
        )
        self._pending: Plan | None = None
        self._position = 0
        self.probability: NDArray[np.float64] = np.ones(batch_size)
        """[B] of the starts handed out last; see ``Starts``."""
        self.drawn_rows = 0
        self.overtaken = 0

    def allocate(self, empty: Empty) -> Windows:
        """Windows for ``draw`` to fill."""
        return self._gather.allocate(self._batch, empty)

    def draw(self, out: Windows) -> Windows:
        """One batch, into ``out``; every value in it belongs to the rows that ``(lane, generation)`` name.

        The columns that were planned, and the starts' names, are views of the plan.
        """
        if self._pending is None:
            self._plan_ahead()
            assert self._pending is not None
        plan, begin = self._pending, self._position
        batch = slice(begin, begin + self._batch)
        last = begin + self._batch == len(plan)
        overlapped = last and self._gather.threads > 1 and self._ahead > 1
        self._gather.gather(plan, batch, out, self._plan_ahead if overlapped else None)
        late = self._gather.late_of(plan, batch)
        while len(late):
            self.overtaken += len(late)
            again = self._gather.plan(self._choose(len(late)))
            plan.put(begin + late, again)
            self._gather.gather_at(again, late, out)
            late = late[self._gather.late(again.starts.lane, again.starts.row)]
        for name in PLANNED:
            setattr(out, name, getattr(plan, name)[batch])
        out.lane, out.generation = plan.starts.lane[batch], plan.starts.row[batch]
        self.probability = plan.starts.probability[batch]
        if not last:
            self._position += self._batch
        elif not overlapped:
            self._pending = None
        self.drawn_rows += self._batch
        return out

    def _plan_ahead(self) -> None:
        self._pending = self._gather.plan(self._choose(self._batch * self._ahead))
        self._position = 0

    def state(self) -> dict[str, Any]:
        """Plain values: the starts chosen ahead and the counters."""
        starts = self._pending.starts.part(slice(self._position, None)) if self._pending else Starts.none()
        return {
            **{name: getattr(starts, name).tolist() for name in START_FIELDS},
            "drawn_rows": self.drawn_rows,
            "overtaken": self.overtaken,
        }

    def restore(self, state: Mapping[str, Any], lanes: NDArray[np.int64]) -> None:
        """Go on from ``state``. Starts chosen ahead are dropped, with a warning, where the ring no longer holds them,
        the batch size differs, or a lane is not one of ``lanes``.
        """
        self.drawn_rows, self.overtaken = int(state["drawn_rows"]), int(state["overtaken"])
        self._pending, self._position = None, 0
        whole = {name: np.asarray(state[name], np.int64) for name in START_FIELDS[:3]}
        starts = Starts(
            **whole, probability=np.asarray(state.get("probability", np.ones(len(whole["row"]))), np.float64)
        )
        if not len(starts):
            return
        snapshot = self._reader.snapshot()
        fits = len(starts) % self._batch == 0 and bool(np.isin(starts.lane, lanes).all())
        if (
            fits
            and (
                (first_read(starts.row, self._gather.look_back) >= snapshot.oldest[starts.lane])
                & (starts.row < starts.limit)
                & (starts.limit <= snapshot.cursor[starts.lane])
            ).all()
        ):
            self._pending = self._gather.plan(starts)
        else:
            log.warning("%d starts chosen before the checkpoint are not in this ring; drawing new ones", len(starts))

    def close(self) -> None:
        """End the gather threads."""
        self._gather.close()
