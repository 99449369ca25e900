"""What lies behind chosen starts: n-step windows, gathered in two passes (docs/replay-sampling.md)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onibi.platform.errors import ReplayError
from onibi.platform.replay.ring.reader import RingReader
from onibi.platform.replay.samplers.frame_stack import FrameStack, checked_stack, first_read, stacked_rows
from onibi.platform.replay.samplers.gather_threads import GatherThreads
from onibi.platform.replay.samplers.window_starts import Starts
from onibi.platform.replay.samplers.windows import Windows
from onibi.platform.spec import ROLE_FINAL, ArraySpec

Empty = Callable[[tuple[int, ...], np.dtype[Any]], NDArray[Any]]
"""Makes an uninitialised array of a shape and dtype, in memory of the caller's choice (pinned, shared)."""


@dataclass(kw_only=True)
class Plan:
    """Starts with all that is not an observation gathered for them, several batches long; see ``Windows`` for the
    columns.
    """

    starts: Starts
    pair: NDArray[np.int64]  # [m, 2] flat index of o_k and of the bootstrap observation
    stacks: NDArray[np.int64] | None  # [m, 2, k] the same of stacked leaves; None where nothing is stacked
    rows: NDArray[np.int64] | None  # [m, n + 1] flat index of all rows and what followed; None where nobody reads them
    reward: NDArray[np.float32]
    continues: NDArray[np.float32]
    used: NDArray[np.bool_]
    steps: NDArray[np.int32]
    caption_id: NDArray[np.uint32]
    caption_count: NDArray[np.uint16]
    action: NDArray[Any]
    policy_version: NDArray[np.int64]
    whole_while: bytes
    """The ring's ``oldest`` words that no start lies below; empty where one does."""

    def __len__(self) -> int:
        return len(self.steps)

    def put(self, at: NDArray[np.int64], newer: Plan) -> None:
        """Replace the windows at ``at``."""
        optional = (name for name in ("stacks", "rows") if getattr(self, name) is not None)
        for name in (*PLANNED, "pair", *optional):
            getattr(self, name)[at] = getattr(newer, name)
        self.starts.put(at, newer.starts)


@dataclass(frozen=True, kw_only=True)
class EachRow:
    """Columns that are wanted of every row of a window, not of its start alone."""

    extra: tuple[str, ...] = ()
    """Extra columns: ``Windows.row_extra``, and not ``extra``."""
    observation: tuple[str, ...] = ()
    """Observation leaves: ``Windows.trail``, besides ``observation``."""


_NONE = np.zeros(0, np.int64)

PLANNED = ("reward", "continues", "used", "steps", "caption_id", "caption_count", "action", "policy_version")
"""Columns of a plan that are handed out as they are."""


def chosen_columns(
    reader: RingReader, names: Sequence[str] | None
) -> tuple[tuple[ArraySpec, ...], tuple[ArraySpec, ...]]:
    """The observation leaves and extra columns named, None for all.

    Raises: ReplayError where a name is neither.
    """
    spec = reader.spec
    known = {column.name for column in (*spec.observation, *spec.extra)}
    if unknown := set(names or ()) - known:
        raise ReplayError(f"{reader.path}: no columns {sorted(unknown)}; it has {sorted(known)}")
    observation = tuple(column for column in spec.observation if names is None or column.name in names)
    return observation, tuple(column for column in spec.extra if names is None or column.name in names)


def empty_actions(reader: RingReader, *leading: int) -> NDArray[Any]:
    """An uninitialised array of actions with these leading axes."""
    column = next(column for column in reader.spec.columns if column.name == "action")
    return np.empty((*leading, *column.shape), np.dtype(column.dtype))


class WindowGather:
    """Gathers windows of at most ``n_steps`` from given starts; knows nothing of how they were chosen."""

    def __init__(
        self,
        reader: RingReader,
        *,
        n_steps: int,
        columns: Sequence[str] | None,
        gather_threads: int,
        stack: FrameStack | None = None,
        each_row: EachRow = EachRow(),
    ) -> None:
        """Raises: ReplayError where windows are longer than the ring was made for, or a column does not exist."""
        self._stack = checked_stack(reader, stack)
        self.look_back = 0 if stack is None else stack.look_back
        if not 1 <= n_steps <= reader.layout.window_rows - self.look_back:
            raise ReplayError(
                f"{reader.path}: windows of {n_steps} steps cannot be drawn with {self.look_back} frames before "
                f"them, the ring was made for 1 to {reader.layout.window_rows} rows in all; create the shard with "
                "window_rows >= frames - 1 + n_steps"
            )
        self._reader, self._n = reader, n_steps
        self._observation, extra = chosen_columns(reader, columns)
        self._extra = tuple(column for column in extra if column.name not in each_row.extra)
        self._row_extra = chosen_columns(reader, each_row.extra)[1]
        self._trail = chosen_columns(reader, each_row.observation)[0]
        self._offsets = np.arange(n_steps, dtype=np.int64)
        self._threads = GatherThreads(gather_threads)
        self.threads = gather_threads

    def allocate(self, batch_size: int, empty: Empty) -> Windows:
        """Windows for ``gather`` to fill; ``empty`` makes the memory of observations."""
        b, n = batch_size, self._n
        pairs = {
            column.name: empty((b, 2, *self._stacked_shape(column)), np.dtype(column.dtype))
            for column in self._observation
        }
        return Windows(
            observation={name: pair[:, 0] for name, pair in pairs.items()},
            bootstrap_observation={name: pair[:, 1] for name, pair in pairs.items()},
            pairs=pairs,
            action=empty_actions(self._reader, b),
            reward=np.empty((b, n), np.float32),
            continues=np.empty((b, n), np.float32),
            used=np.empty((b, n), np.bool_),
            steps=np.empty(b, np.int32),
            caption_id=np.empty((b, n), np.uint32),
            caption_count=np.empty((b, n, self._reader.spec.keys_per_caption), np.uint16),
            policy_version=np.empty(b, np.int64),
            lane=np.empty(b, np.int64),
            generation=np.empty(b, np.int64),
            weight=np.ones(b, np.float32),
            extra={column.name: np.empty((b, *column.shape), np.dtype(column.dtype)) for column in self._extra},
            row_extra={c.name: np.empty((b, n, *c.shape), np.dtype(c.dtype)) for c in self._row_extra},
            trail={c.name: empty((b, n + 1, *c.shape), np.dtype(c.dtype)) for c in self._trail},
        )

    def plan(self, starts: Starts) -> Plan:
        """Window ends and scalar columns of some starts; what was overtaken meanwhile the end check finds."""
        slots, columns = self._reader.slots, self._reader.columns
        base = starts.lane * slots
        first = starts.row % slots
        left = starts.limit - starts.row  # rows up to the head, at least 1
        begin = first + base
        # mode="clip" would hide an index out of range; as unsigned, a negative one is out of it, too.
        if len(begin) and (begin.view(np.uint64).max() >= len(columns["role"]) or left.min() < 1):
            raise ReplayError(f"{self._reader.path}: a window lies outside of the ring; the sampler state is damaged")
        at = begin[:, None]
        unused: NDArray[np.bool_] | None = None
        if self._n > 1:
            reach = np.minimum(self._offsets, (left - 1)[:, None])  # behind the newest row: read it again, masked below
            at = first[:, None] + reach
            at -= slots * (at >= slots)
            at += base[:, None]
            unused = np.take(columns["role"], at, mode="clip") == ROLE_FINAL
            unused |= self._offsets >= left[:, None]
            for step in range(1, self._n):  # column by column: accumulate and sum along a short axis are 4 x slower
                unused[:, step] |= unused[:, step - 1]
        reward = np.take(columns["reward"], at, mode="clip")
        caption_id = np.take(columns["caption_id"], at, mode="clip")
        caption_count = np.take(columns["caption_count"], at, axis=0, mode="clip")
        ends = np.take(columns["terminated"], at, mode="clip") != 0
        if unused is None:
            used = np.ones(at.shape, np.bool_)
            steps = np.ones(len(at), np.int32)
        else:
            np.copyto(reward, np.float32(0), where=unused)  # not a product: NaN of an unused row would stay
            np.copyto(caption_id, np.uint32(0), where=unused)
            np.copyto(caption_count, np.uint16(0), where=unused[..., None])
            used = ~unused
            ends &= used
            steps = used[:, 0].astype(np.int32)
            for step in range(1, self._n):
                steps += used[:, step]
        last = first + steps
        last -= slots * (last >= slots)
        last += base
        pair = np.empty((len(begin), 2), np.int64)
        pair[:, 0], pair[:, 1] = begin, last
        stacks: NDArray[np.int64] | None = None
        if self._stack is not None:
            rows = np.stack([starts.row, starts.row + steps], axis=1)
            stacks = stacked_rows(self._reader, starts.lane[:, None], rows, self._stack.frames)
        trail: NDArray[np.int64] | None = None
        if self._row_extra or self._trail:
            trail = first[:, None] + np.minimum(np.arange(self._n + 1), steps[:, None])
            trail -= slots * (trail >= slots)
            trail += base[:, None]
        return Plan(
            starts=starts,
            pair=pair,
            stacks=stacks,
            rows=trail,
            reward=reward,
            continues=np.logical_not(ends).astype(np.float32),
            used=used,
            steps=steps,
            caption_id=caption_id,
            caption_count=caption_count,
            action=np.take(columns["action"], begin, axis=0, mode="clip"),
            policy_version=np.take(columns["policy_version"], begin, mode="clip"),
            whole_while=self._whole_while(starts),
        )

    def gather(self, plan: Plan, batch: slice, out: Windows, meanwhile: Callable[[], None] | None = None) -> None:
        """Observations and extra columns of a part of a plan, straight into ``out``; all threads are joined then.

        ``meanwhile`` is called while the other threads copy.
        """
        columns, pair = self._reader.columns, plan.pair[batch]
        stacks = None if plan.stacks is None else plan.stacks[batch].reshape(-1)
        both = pair.reshape(-1)
        takes = [
            (
                columns[column.name],
                stacks if stacks is not None and self._is_stacked(column) else both,
                out.pairs[column.name].reshape(-1, *column.shape),
            )
            for column in self._observation
        ]
        if self._extra:
            takes += [(columns[column.name], pair[:, 0], out.extra[column.name]) for column in self._extra]
        if plan.rows is not None:
            rows = plan.rows[batch]
            at = np.ascontiguousarray(rows[:, :-1]).reshape(-1)
            takes += [(columns[c.name], at, out.row_extra[c.name].reshape(-1, *c.shape)) for c in self._row_extra]
            takes += [(columns[c.name], rows.reshape(-1), out.trail[c.name].reshape(-1, *c.shape)) for c in self._trail]
        self._threads.take(takes, meanwhile)

    def gather_at(self, plan: Plan, positions: NDArray[np.int64], out: Windows) -> None:
        """The same of a whole plan for single places of a batch."""
        columns, pair = self._reader.columns, plan.pair
        for column in self._observation:
            at = plan.stacks if plan.stacks is not None and self._is_stacked(column) else pair
            out.pairs[column.name][positions] = columns[column.name][at]
        for column in self._extra:
            out.extra[column.name][positions] = columns[column.name][pair[:, 0]]
        if plan.rows is not None:
            for column in self._row_extra:
                out.row_extra[column.name][positions] = columns[column.name][plan.rows[:, :-1]]
            for column in self._trail:
                out.trail[column.name][positions] = columns[column.name][plan.rows]

    def late_of(self, plan: Plan, batch: slice) -> NDArray[np.int64]:
        """``late`` of a part of a plan: without looking at its rows where no commit has moved ``oldest`` meanwhile."""
        if self._reader.oldest_words() == plan.whole_while:
            return _NONE
        return self.late(plan.starts.lane[batch], plan.starts.row[batch])

    def late(self, lane: NDArray[np.int64], row: NDArray[np.int64]) -> NDArray[np.int64]:
        """End check: positions of starts of which a row, stacked frames included, may have been overwritten by now."""
        if self._is_whole(lane, row):  # the usual case
            return _NONE
        return np.flatnonzero(first_read(row, self.look_back) < self._reader.oldest_now()[lane])

    def close(self) -> None:
        """End the gather threads."""
        self._threads.close()

    def _whole_while(self, starts: Starts) -> bytes:
        words = self._reader.oldest_words()  # before the look at their ceiling: words that moved since never come back
        return words if self._is_whole(starts.lane, starts.row) else b""

    def _is_whole(self, lane: NDArray[np.int64], row: NDArray[np.int64]) -> bool:
        return bool((first_read(row, self.look_back) >= np.take(self._reader.oldest_ceiling(), lane)).all())

    def _is_stacked(self, column: ArraySpec) -> bool:
        return self._stack is not None and column.name in self._stack.leaves

    def _stacked_shape(self, column: ArraySpec) -> tuple[int, ...]:
        return column.shape if self._stack is None else (*self._stack.shape_of(column.name), *column.shape)
