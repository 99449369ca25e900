"""What lies behind chosen sequence starts: [T, B] by gathering with a transposed index."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from onibi.platform.errors import ReplayError
from onibi.platform.replay.ring.reader import RingReader
from onibi.platform.replay.samplers.frame_stack import FrameStack, checked_stack, first_read, stacked_rows
from onibi.platform.replay.samplers.gather_threads import GatherThreads, Take
from onibi.platform.replay.samplers.sequences import Sequences
from onibi.platform.replay.samplers.window_gather import Empty, chosen_columns, empty_actions
from onibi.platform.spec import ROLE_FINAL, ArraySpec


@dataclass(kw_only=True)
class SequenceStarts:
    """Chosen sequences, each [m]."""

    lane: NDArray[np.int64]
    row: NDArray[np.int64]
    """First row to learn from."""
    first: NDArray[np.int64]
    """First row of the burn-in before it."""
    limit: NDArray[np.int64]
    """The lane's cursor in the snapshot that the start was chosen from."""
    probability: NDArray[np.float64]

    def put(self, at: NDArray[np.int64], newer: SequenceStarts) -> None:
        """Replace those at ``at``."""
        for name in ("lane", "row", "first", "limit", "probability"):
            getattr(self, name)[at] = getattr(newer, name)


class SequenceGather:
    """Gathers sequences of ``burn_in + length`` rows; knows nothing of how they were chosen."""

    def __init__(
        self,
        reader: RingReader,
        *,
        length: int,
        burn_in: int,
        columns: Sequence[str] | None,
        first_row_columns: Sequence[str],
        gather_threads: int,
        stack: FrameStack | None = None,
    ) -> None:
        """Raises: ReplayError where sequences are longer than the ring was made for, or a column does not exist."""
        self._stack = checked_stack(reader, stack)
        self._look_back = 0 if stack is None else stack.look_back
        if length < 1 or burn_in < 0 or self._look_back + burn_in + length > reader.layout.window_rows:
            raise ReplayError(
                f"{reader.path}: sequences of {burn_in} + {length} rows with {self._look_back} frames before them "
                "cannot be drawn, length is at least 1, burn_in at least 0, and the ring was made for reaches of "
                f"{reader.layout.window_rows} rows in all; create the shard with window_rows >= frames - 1 + burn_in + "
                "length"
            )
        self._reader, self._length, self._rows = reader, length, burn_in + length
        self._observation, extra = chosen_columns(reader, columns)
        self.states = [state for state in reader.spec.states if state.name in first_row_columns]
        """Those that come of the first row."""
        self._first_extra = [column for column in reader.spec.extra if column.name in first_row_columns]
        known = {column.name for column in (*self._first_extra, *self.states)}
        if missing := set(first_row_columns) - known:
            raise ReplayError(
                f"{reader.path}: first_row_columns {sorted(missing)} are no extra columns or states of this ring"
            )
        self._extra = [column for column in extra if column not in self._first_extra]
        self._time = np.arange(self._rows + 1, dtype=np.int64)[:, None]
        self._threads = GatherThreads(gather_threads)

    def allocate(self, batch_size: int, empty: Empty) -> Sequences:
        """Sequences for ``gather`` to fill; ``empty`` makes the memory of observations."""
        t, b = self._rows, batch_size
        keys = self._reader.spec.keys_per_caption
        return Sequences(
            observation={
                c.name: empty((t + 1, b, *self._frames_of(c), *c.shape), np.dtype(c.dtype)) for c in self._observation
            },
            action=empty_actions(self._reader, t, b),
            reward=np.empty((t, b), np.float32),
            continues=np.empty((t, b), np.float32),
            used=np.empty((t, b), np.bool_),
            learning_mask=np.empty((t, b), np.bool_),
            caption_id=np.empty((t, b), np.uint32),
            caption_count=np.empty((t, b, keys), np.uint16),
            policy_version=np.empty((t, b), np.int64),
            steps=np.empty(b, np.int32),
            burn_in=np.empty(b, np.int32),
            lane=np.empty(b, np.int64),
            generation=np.empty(b, np.int64),
            weight=np.ones(b, np.float32),
            extra={c.name: np.empty((t, b, *c.shape), np.dtype(c.dtype)) for c in self._extra},
            first_extra={
                c.name: np.empty((b, *c.shape), np.dtype(c.dtype)) for c in (*self._first_extra, *self.states)
            },
        )

    def gather(self, starts: SequenceStarts, out: Sequences) -> None:
        """Everything of ``starts`` [B], into ``out``; all threads are joined then."""
        reader, columns, slots, rows = self._reader, self._reader.columns, self._reader.slots, self._rows
        burn_in = starts.row - starts.first
        left = np.minimum(starts.limit - starts.first, burn_in + self._length)  # rows that there may be, at least 1
        base, slot = starts.lane * slots, starts.first % slots
        if len(slot) and (
            base.min() < 0 or base.max() > len(columns["role"]) - slots or left.min() < 1 or burn_in.min() < 0
        ):
            raise ReplayError(f"{reader.path}: a sequence lies outside of the ring; the sampler state is damaged")
        at = self._flat(base, slot, np.minimum(self._time[:rows], left - 1))
        padding = np.take(columns["role"], at, mode="clip") == ROLE_FINAL
        padding |= self._time[:rows] >= left
        np.logical_or.accumulate(padding, axis=0, out=padding)
        used = np.logical_not(padding, out=out.used)
        steps = used.sum(axis=0, dtype=np.int64)
        np.logical_and(used, self._time[:rows] >= burn_in, out=out.learning_mask)
        out.steps[:], out.burn_in[:] = steps, burn_in
        out.lane[:], out.generation[:] = starts.lane, starts.row

        flat = at.reshape(-1)
        for name in ("reward", "caption_id", "action", "policy_version", "caption_count"):
            np.take(columns[name], at, axis=0, out=getattr(out, name), mode="clip")
        ends = np.take(columns["terminated"], at, mode="clip") != 0
        ends &= used
        np.copyto(out.reward, np.float32(0), where=padding)
        np.copyto(out.caption_id, np.uint32(0), where=padding)
        np.copyto(out.caption_count, np.uint16(0), where=padding[..., None])
        np.copyto(out.continues, np.logical_not(ends))

        reach = np.minimum(self._time, steps)
        seen = self._flat(base, slot, reach).reshape(-1)
        stacks = seen
        if self._stack is not None:
            stacks = stacked_rows(reader, starts.lane, starts.first + reach, self._stack.frames).reshape(-1)
        takes: list[Take] = [
            (columns[c.name], stacks if self._frames_of(c) else seen, out.observation[c.name].reshape(-1, *c.shape))
            for c in self._observation
        ]
        takes += [(columns[c.name], flat, out.extra[c.name].reshape(-1, *c.shape)) for c in self._extra]
        takes += [(columns[c.name], base + slot, out.first_extra[c.name]) for c in self._first_extra]
        self._threads.take(takes)
        if self.states:
            step = columns["step"][base + slot]
            for state in self.states:
                reader.states[state.name].take(starts.lane, starts.first, step, out.first_extra[state.name])

    def late(self, starts: SequenceStarts) -> NDArray[np.int64]:
        """End check: positions of sequences whose earliest row may have been overwritten by now."""
        first = first_read(starts.first, self._look_back)
        return np.flatnonzero(first < self._reader.oldest_now()[starts.lane])

    def close(self) -> None:
        """End the gather threads."""
        self._threads.close()

    def _frames_of(self, column: ArraySpec) -> tuple[int, ...]:
        return () if self._stack is None else self._stack.shape_of(column.name)

    def _flat(self, base: NDArray[np.int64], slot: NDArray[np.int64], reach: NDArray[np.int64]) -> NDArray[np.int64]:
        """[..., B] index into the columns of the rows ``reach`` behind the first."""
        at: NDArray[np.int64] = slot + reach
        at -= self._reader.slots * (at >= self._reader.slots)
        at += base
        return at


def put_sequences(out: Sequences, at: NDArray[np.int64], newer: Sequences) -> None:
    """Replace sequences ``at`` [m] of ``out`` by the m of ``newer``."""
    for name in ("action", "reward", "continues", "used", "learning_mask", "caption_id", "caption_count"):
        getattr(out, name)[:, at] = getattr(newer, name)
    out.policy_version[:, at] = newer.policy_version
    for name in ("steps", "burn_in", "lane", "generation"):
        getattr(out, name)[at] = getattr(newer, name)
    for mine, theirs in ((out.observation, newer.observation), (out.extra, newer.extra)):
        for name, values in theirs.items():
            mine[name][:, at] = values
    for name, values in newer.first_extra.items():
        out.first_extra[name][at] = values
