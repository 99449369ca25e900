"""Draws of sequences with burn-in and overlap (Kapturowski et al. 2019, R2D2), uniform or prioritized."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from onibi.platform.errors import ReplayError
from onibi.platform.replay.episode_pieces import EpisodePieces, PieceMarks
from onibi.platform.replay.ring.reader import RingReader
from onibi.platform.replay.row_intake import INTAKES, NewRows, RowIntake
from onibi.platform.replay.samplers.frame_stack import FrameStack, first_read
from onibi.platform.replay.samplers.sequence_gather import SequenceGather, SequenceStarts, put_sequences
from onibi.platform.replay.samplers.sequences import Sequences, Tail
from onibi.platform.replay.samplers.start_priorities import (
    MAXIMUM,
    StartPriorities,
    check_importance_exponent,
    importance_weights,
)
from onibi.platform.replay.samplers.start_table import StartTable
from onibi.platform.replay.samplers.window_gather import Empty
from onibi.platform.replay.samplers.window_starts import checked_generator, checked_lanes, no_rows, readable_rows
from onibi.platform.spec import ROLE_FINAL, ROLE_STEP


class SequenceSampler:
    """Draws sequences of ``length`` rows to learn from, with up to ``burn_in`` rows before them.

    A start is the first row to learn from. Starts lie every ``period`` rows from the begin of an episode piece (1:
    every row is one); ``tail`` says what happens where a piece ends. No sequence crosses the border of a piece. A start
    whose burn-in has been overwritten in part is no longer drawn. Where the begin of a piece was overwritten before
    this sampler saw it, starts are counted from the first row seen, and only those with a whole burn-in are drawn.

    A state among ``first_row_columns`` is kept every few steps of an episode. Then starts are the rows whose ``step``
    is a multiple of ``period``: the same ones, but in pieces that do not begin with step 0, because a fragment was
    lost, or whose begin was never seen.

    With ``exponent`` 0 every start is drawn with the same probability; above it, by priority as in
    ``PrioritizedSampler``. How the learner makes one priority of a sequence's TD errors (R2D2: 0.9 of the largest and
    0.1 of the mean) is its own affair.
    """

    def __init__(
        self,
        reader: RingReader,
        *,
        length: int,
        batch_size: int,
        rng: np.random.Generator,
        burn_in: int = 0,
        period: int = 1,
        tail: Tail = Tail.PAD,
        exponent: float = 0.0,
        importance_exponent: float = 0.0,
        default_priority: str = MAXIMUM,
        lanes: Sequence[int] | None = None,
        columns: Sequence[str] | None = None,
        first_row_columns: Sequence[str] = (),
        gather_threads: int = 1,
        stack: FrameStack | None = None,
    ) -> None:
        """Draw from ``lanes`` (None: all) the observation leaves and extra columns named in ``columns`` (None: all).

        Args:
            reader: the ring, made with ``window_rows`` of at least ``burn_in + length``.
            length: rows to learn from.
            batch_size: B.
            rng: draws come from it alone.
            burn_in: most rows before them.
            period: rows between starts.
            tail: see ``Tail``.
            exponent: α of priorities, 0 for uniform draws.
            importance_exponent: β, from 0 to 1; may be set later.
            default_priority: of new starts: "maximum", or a scalar float column (of the row that makes the start one:
                itself with PAD, the sequence's last row with SHIFT; the largest where that is final).
            lanes: to draw from, None for all.
            columns: to gather, None for all.
            first_row_columns: extra columns, and states of the ring, gathered of the first row alone. ``period`` and
                ``burn_in`` must be multiples of a state's period.
            gather_threads: threads that copy rows.
            stack: which leaves come as frame stacks; None for none.

        Raises: ReplayError where the ring does not allow it or a figure is out of range.
        """
        if batch_size < 1 or period < 1:
            raise ReplayError(f"batch_size {batch_size} and period {period} must be at least 1")
        if not isinstance(tail, Tail):
            raise ReplayError(f"tail is {tail!r}; allowed: {', '.join(map(str, Tail))}")
        self._reader, self._rng, self._batch = reader, checked_generator(rng), batch_size
        self._length, self._burn_in, self._period, self._tail = length, burn_in, period, tail
        self._lanes = checked_lanes(reader, lanes)
        self._gather = SequenceGather(
            reader,
            length=length,
            burn_in=burn_in,
            columns=columns,
            first_row_columns=first_row_columns,
            gather_threads=gather_threads,
            stack=stack,
        )
        self._look_back = 0 if stack is None else stack.look_back
        self._table = StartTable(
            len(self._lanes), reader.slots, exponent=exponent, look_back=burn_in, frames_before=self._look_back
        )
        self._check_states()
        self._priorities = StartPriorities(reader, self._lanes, self._table, default_priority)
        self._pieces = EpisodePieces(len(self._lanes))
        steps = ("step",) if self._gather.states else ()
        self._intake = RowIntake(reader, self._lanes, ("role", *steps, *self._priorities.columns))
        self._importance_exponent = check_importance_exponent(importance_exponent)
        self.drawn_rows = 0
        """Rows to learn from handed out over this sampler's life, without burn-in and padding; restored ones count."""
        self.overtaken = 0
        """Sequences that the writer overwrote before they were handed out; each was drawn again."""

    @property
    def importance_exponent(self) -> float:
        """β of the weights handed out from now on."""
        return self._importance_exponent

    @importance_exponent.setter
    def importance_exponent(self, exponent: float) -> None:
        self._importance_exponent = check_importance_exponent(exponent)

    @property
    def readable_rows(self) -> int:
        """Committed rows of this sampler's lanes now, final rows included."""
        return readable_rows(self._reader, self._lanes)

    @property
    def late_updates(self) -> int:
        """Priorities that came after their sequence was overwritten, and were ignored."""
        return self._priorities.late_updates

    @property
    def stale_draws(self) -> int:
        """As ``PrioritizedSampler.stale_draws``."""
        return self._table.stale_draws

    def allocate(self, empty: Empty = np.empty) -> Sequences:
        """Sequences for ``draw(out=...)`` to fill, in memory that ``empty(shape, dtype)`` makes (``observation``
        only).
        """
        return self._gather.allocate(self._batch, empty)

    def draw(self, out: Sequences | None = None) -> Sequences:
        """One batch [T, B, ...]; every value in it belongs to the rows that ``(lane, first_row + t)`` name.

        Raises: ReplayError where no sequence can be drawn yet.
        """
        out = self.allocate() if out is None else out
        starts = self._choose(self._batch)
        self._gather.gather(starts, out)
        late = self._gather.late(starts)
        while len(late):
            self.overtaken += len(late)
            again = self._choose(len(late))
            newer = self._gather.allocate(len(late), np.empty)
            self._gather.gather(again, newer)
            whole = np.ones(len(late), np.bool_)
            whole[self._gather.late(again)] = False
            starts.put(late, again)
            put_sequences(out, late, newer)
            late = late[~whole]
        np.copyto(out.weight, importance_weights(starts.probability, self._importance_exponent))
        self.drawn_rows += out.drawn_rows
        return out

    def update(self, lane: ArrayLike, generation: ArrayLike, priority: ArrayLike, reward_version: int = 0) -> int:
        """As ``PrioritizedSampler.update``, one priority for each sequence."""
        return self._priorities.update(lane, generation, priority, reward_version)

    def state(self) -> dict[str, Any]:
        """From which ``restore`` goes on exactly, given the same ring contents; plain values but for ``table``, which
        holds int64 and float64 arrays.
        """
        return {
            "generator": self._rng.bit_generator.state,
            "taken": self._intake.taken.tolist(),
            "pieces": self._pieces.state(),
            "importance_exponent": self._importance_exponent,
            "late_updates": self._priorities.late_updates,
            "table": self._table.state(),
            "drawn_rows": self.drawn_rows,
            "overtaken": self.overtaken,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from ``state``, taken of a sampler with the same length, burn-in, period and tail.

        Raises: ReplayError where the state belongs to another ring or exponent.
        """
        self._intake.restore(np.asarray(state["taken"], np.int64))
        self._table.restore(state["table"])
        self._pieces.restore(state["pieces"])
        self._rng.bit_generator.state = state["generator"]
        self.importance_exponent = float(state["importance_exponent"])
        self._priorities.late_updates = int(state["late_updates"])
        self.drawn_rows, self.overtaken = int(state["drawn_rows"]), int(state["overtaken"])

    def close(self) -> None:
        """End the gather threads; they also end when the sampler is collected."""
        self._gather.close()

    def _check_states(self) -> None:
        """Raises: ReplayError where sequences would begin between the steps that keep a state."""
        for state in self._gather.states:
            if self._period % state.period or self._burn_in % state.period or self._tail is not Tail.PAD:
                raise ReplayError(
                    f"{self._reader.path}: the state {state.name!r} is kept every {state.period} steps of an episode; "
                    f"sequences with burn_in {self._burn_in} and period {self._period} (tail {self._tail}) begin "
                    "between them. Make both multiples of it, with tail pad"
                )

    def _choose(self, count: int) -> SequenceStarts:
        for _ in range(INTAKES):  # the writer may have gone round the whole ring within one
            self._take_in()
            if self._table.total > 0:
                break
            if not self._intake.taken.any():
                raise no_rows(self._reader, self._lanes)
        place, row, first, probability = self._table.draw(count, self._rng)
        return SequenceStarts(
            lane=self._lanes[place],
            row=row,
            first=first,
            limit=self._intake.taken[place],
            probability=probability,
        )

    def _take_in(self) -> None:
        before = self._intake.taken
        rows = self._intake.take()
        self._table.drop(rows.oldest, before)
        marks = self._pieces.mark(rows)
        told, start = self._padded(rows, marks) if self._tail is Tail.PAD else self._shifted(rows, marks)
        first = np.maximum(marks.begin[told], start - self._burn_in)
        there = first_read(first, self._look_back) >= rows.oldest[rows.place[told]]
        told, start, first = told[there], start[there], first[there]
        if len(told):
            self._table.add(rows.place[told], start, first, self._priorities.first(rows, told))

    def _padded(self, rows: NewRows, marks: PieceMarks) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Starts that the new rows bring: positions in ``rows`` of the rows that tell of them, and start rows."""
        since = rows.columns["step"] if self._gather.states else rows.row - marks.anchor
        aligned = since % self._period == 0
        told = np.flatnonzero(aligned & (rows.columns["role"] == ROLE_STEP))
        return told, rows.row[told]

    def _shifted(self, rows: NewRows, marks: PieceMarks) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        final = rows.columns["role"] == ROLE_FINAL
        behind = rows.row - marks.anchor  # rows of the piece seen before this one
        full = np.flatnonzero(~final & (behind >= self._length - 1) & ((behind - self._length + 1) % self._period == 0))
        told_before = (behind >= self._length) & ((behind - self._length) % self._period == 0)
        tail = np.flatnonzero(final & (behind > 0) & ~told_before)
        start = np.concatenate(
            [rows.row[full] - self._length + 1, rows.row[tail] - np.minimum(behind[tail], self._length)]
        )
        return np.concatenate([full, tail]), start
