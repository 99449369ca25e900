"""Proportional prioritized draws of n-step windows (Schaul et al. 2016, "Prioritized Experience Replay")."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Unpack

import numpy as np
from numpy.typing import ArrayLike, NDArray

from onibi.platform.replay.ring.reader import RingReader
from onibi.platform.replay.row_intake import INTAKES, RowIntake
from onibi.platform.replay.samplers.frame_stack import first_read
from onibi.platform.replay.samplers.start_priorities import (
    MAXIMUM,
    StartPriorities,
    check_importance_exponent,
    importance_weights,
)
from onibi.platform.replay.samplers.start_table import StartTable
from onibi.platform.replay.samplers.window_sampler import WindowOptions, WindowSampler
from onibi.platform.replay.samplers.window_starts import Starts, no_rows
from onibi.platform.replay.samplers.windows import Windows
from onibi.platform.spec import ROLE_STEP


class PrioritizedSampler(WindowSampler):
    """Draws start i with P(i) = p_i^α / Σ_k p_k^α over all drawable starts, and weighs it with (N · P(i))^-β.

    Weights are divided by the largest of their batch, not by the largest possible one: a single start whose priority is
    all but 0 would else press the weights of every batch down by orders of magnitude, and the step size with them. The
    price is that a start's weight depends a little on its batch.

    New rows are taken in whenever a batch is planned, final ones never; what the writer overwrote is dropped then.
    Draws are independent of each other (not stratified). Those of ``batches_ahead`` batches are made at once, by the
    priorities of that moment: with 1 an update acts on the very next draw, with 8 on the one after the plan's end.

    Differences from the paper: no sort and no strata; a first priority can come from the actors (Ape-X); the weights'
    divisor as said.
    """

    def __init__(
        self,
        reader: RingReader,
        *,
        exponent: float = 0.6,
        importance_exponent: float = 0.4,
        default_priority: str = MAXIMUM,
        **windows: Unpack[WindowOptions],
    ) -> None:
        """As ``UniformSampler``, but 8 batches are planned at once by default: what is planned knows no later priority.
        And besides:

        Args:
            reader: the ring.
            exponent: α, 0 for uniform draws.
            importance_exponent: β, from 0 to 1; may be set later (annealing).
            default_priority: of new rows: "maximum" (the largest priority seen so far, at least 1), or the name of a
                scalar float column that brings it.
            windows: see ``WindowOptions``.

        Raises: ReplayError where the ring does not allow it or an exponent is out of range.
        """
        windows.setdefault("batches_ahead", 8)
        super().__init__(reader, **windows)
        self._table = StartTable(
            len(self._lanes), reader.slots, exponent=exponent, look_back=0, frames_before=self._look_back
        )
        self._priorities = StartPriorities(reader, self._lanes, self._table, default_priority)
        self._intake = RowIntake(reader, self._lanes, ("role", *self._priorities.columns))
        self._importance_exponent = check_importance_exponent(importance_exponent)

    @property
    def importance_exponent(self) -> float:
        """β of the weights handed out from now on."""
        return self._importance_exponent

    @importance_exponent.setter
    def importance_exponent(self, exponent: float) -> None:
        self._importance_exponent = check_importance_exponent(exponent)

    @property
    def late_updates(self) -> int:
        """Priorities that came after their row was overwritten, and were ignored."""
        return self._priorities.late_updates

    @property
    def replaced_priorities(self) -> int:
        """Rows whose column brought a priority that is NaN, infinite or negative; they got the largest so far."""
        return self._priorities.replaced

    @property
    def stale_draws(self) -> int:
        """Starts drawn by a priority that was made with older rewards than the newest priorities were."""
        return self._table.stale_draws

    @property
    def total(self) -> float:
        """Σ p^α over the starts taken in so far."""
        return self._table.total

    def draw(self, out: Windows | None = None) -> Windows:
        """One batch with importance weights in ``weight``, the largest 1.

        Raises: ReplayError where no row can be drawn yet, or every priority is 0.
        """
        out = super().draw(out)
        np.copyto(out.weight, importance_weights(self._draws.probability, self._importance_exponent))
        return out

    def update(self, lane: ArrayLike, generation: ArrayLike, priority: ArrayLike, reward_version: int = 0) -> int:
        """Give starts new priorities: ``windows.lane``, ``windows.generation`` and one number from 0 each, all [m].

        ``reward_version`` is of the reward table that they were made with: a new one makes older priorities stale,
        which ``stale_draws`` counts.

        May come late, repeatedly, and in any order: a row that was overwritten is left alone and counted
        (``late_updates``). Of a row named twice the last priority holds.
        Returns: how many of the m were applied (those of a row named twice count each).
        Raises: ReplayError where shapes disagree, a lane is foreign, or a priority is NaN, infinite or negative;
            nothing is changed then.
        """
        return self._priorities.update(lane, generation, priority, reward_version)

    def state(self) -> dict[str, Any]:
        """From which ``restore`` goes on exactly, given the same ring contents.

        Plain values (JSON holds them), but for ``table``: int64 and float64 arrays of as many elements as there are
        starts, for a checkpoint's tensors.
        """
        return {
            **super().state(),
            "taken": self._intake.taken.tolist(),
            "importance_exponent": self._importance_exponent,
            "late_updates": self._priorities.late_updates,
            "replaced_priorities": self._priorities.replaced,
            "table": self._table.state(),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from ``state``. Starts overwritten since are dropped.

        Raises: ReplayError where the state belongs to another ring or exponent.
        """
        self._intake.restore(np.asarray(state["taken"], np.int64))
        self._table.restore(state["table"])
        self.importance_exponent = float(state["importance_exponent"])
        self._priorities.late_updates = int(state["late_updates"])
        self._priorities.replaced = int(state["replaced_priorities"])
        super().restore(state)

    def _choose(self, count: int) -> Starts:
        for _ in range(INTAKES):  # the writer may have gone round the whole ring within one
            self._take_in()
            if self._table.total > 0:
                break
            if not self._intake.taken.any():
                raise no_rows(self._reader, self._lanes)
        place, row, _, probability = self._table.draw(count, self._rng)
        return Starts(lane=self._lanes[place], row=row, limit=self._intake.taken[place], probability=probability)

    def _take_in(self) -> None:
        before = self._intake.taken
        rows = self._intake.take()
        self._table.drop(rows.oldest, before)
        there = first_read(rows.row, self._look_back) >= rows.oldest[rows.place]
        steps: NDArray[np.int64] = np.flatnonzero((rows.columns["role"] == ROLE_STEP) & there)
        if len(steps):
            row = rows.row[steps]
            self._table.add(rows.place[steps], row, row, self._priorities.first(rows, steps))
