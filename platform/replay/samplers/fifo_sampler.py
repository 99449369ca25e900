"""Each row once, in the order of its lane: slabs for on-policy learners (docs/replay.md)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onibi.platform.errors import ReplayError
from onibi.platform.replay.ring.reader import RingReader, Snapshot
from onibi.platform.replay.ring.row_copy import copy_rows
from onibi.platform.replay.samplers.frame_stack import FrameStack, checked_stack, first_read, stacked_rows
from onibi.platform.replay.samplers.window_gather import Empty, chosen_columns
from onibi.platform.replay.samplers.window_starts import checked_lanes
from onibi.platform.spec import ROLE_FINAL, ROLE_STEP, ArraySpec

_ROUNDS = 64
"""How often a draw begins again because the writer lapped it."""
_RUNS_MOST = 4
"""Runs of lanes in step up to which each is copied for itself; more are gathered row by row."""
_FIXED = ("action", "reward", "terminated", "truncated", "role", "policy_version", "caption_id", "caption_count")


@dataclass(kw_only=True)
class Slab:
    """T consecutive rows of each of B lanes, lane by lane as they lie in the ring. Row t of lane b is row
    ``generation[b] + t``.

    Final rows are in it and masked (``used``): reward and flags are 0 there. ``observation[:, t + 1]`` is what followed
    row t.
    """

    observation: dict[str, NDArray[Any]]
    """Each leaf [B, T + 1, ...]."""
    action: NDArray[Any]
    """[B, T] int64, or [B, T, D] float32."""
    reward: NDArray[np.float32]
    """[B, T], the environment's own."""
    terminated: NDArray[np.uint8]
    """[B, T]"""
    truncated: NDArray[np.uint8]
    """[B, T]"""
    role: NDArray[np.uint8]
    """[B, T]"""
    policy_version: NDArray[np.int64]
    """[B, T]"""
    caption_id: NDArray[np.uint32]
    """[B, T]"""
    caption_count: NDArray[np.uint16]
    """[B, T, K]"""
    used: NDArray[np.bool_]
    """[B, T], False for final rows."""
    begins: NDArray[np.bool_]
    """[B, T], where an episode piece begins: the row before is final, or was never drawn (row 0, lost rows)."""
    lane: NDArray[np.int64]
    """[B], ascending; a lane is met twice where others have too few rows."""
    generation: NDArray[np.int64]
    """[B], absolute number of the first row."""
    extra: dict[str, NDArray[Any]] = field(default_factory=dict)
    """Further declared columns, each [B, T, ...]."""

    @property
    def batch_size(self) -> int:
        """B."""
        return len(self.lane)

    @property
    def drawn_rows(self) -> int:
        """What the limiter counts: step rows."""
        return int(np.count_nonzero(self.used))


class FifoSampler:
    """Hands out every row once, oldest first in its lane, as slabs of ``batch_lanes`` pieces of ``rows`` rows.

    Lanes take turns: of those with enough rows the next ones after the last slab's are taken. Where they are too few, a
    lane with rows for several pieces gives several: an actor that has died or is slow stops nobody. So a slab can be
    drawn whenever lanes × (rows − 1) + (batch_lanes − 1) × rows + 1 rows wait.

    Where neighbouring lanes are in step (NEXT_STEP actors) a column is one strided copy. Rows that the writer overwrote
    before they were handed out are gone and counted in ``lost_rows``; the lane then goes on half a ring behind its
    newest row, for at the oldest one the writer would overtake it again. So are those that were released with their
    actor's lanes; there the lane goes on with the first row of the next actor.
    """

    def __init__(
        self,
        reader: RingReader,
        *,
        rows: int,
        batch_lanes: int,
        lanes: Sequence[int] | None = None,
        columns: Sequence[str] | None = None,
        stack: FrameStack | None = None,
    ) -> None:
        """Draw from ``lanes`` (None: all) the observation leaves and extra columns named in ``columns`` (None: all);
        ``stack`` says which leaves come as frame stacks.

        Raises: ReplayError where a slab would be longer than half a lane, has more lanes than there are, or a lane,
        column or stacked leaf does not exist.
        """
        self._reader, self._rows, self._batch = reader, rows, batch_lanes
        self._stack = checked_stack(reader, stack)
        self._look_back = 0 if stack is None else stack.look_back
        self._lanes = np.sort(checked_lanes(reader, lanes))
        if not 1 <= rows <= reader.slots // 2 or not 1 <= batch_lanes <= len(self._lanes):
            raise ReplayError(
                f"{reader.path}: slabs of {batch_lanes} lanes x {rows} rows cannot be drawn; allowed are 1 to "
                f"{len(self._lanes)} lanes and 1 to {reader.slots // 2} rows (half of a lane's slots)"
            )
        self._observation, self._extra = chosen_columns(reader, columns)
        self._position = reader.restored[0, self._lanes]  # next row of each lane
        self._floor = np.zeros(len(self._lanes), np.int64)  # a row of each lane, up to the next, that begins a piece
        self._piece_goes_on = np.zeros(len(self._lanes), np.bool_)  # the row before was handed out and is no final one
        self._turn = 0
        self.drawn_rows = 0
        """Step rows handed out over this sampler's life, restored ones included."""
        self.final_rows = 0
        """Final rows handed out, masked."""
        self.lost_rows = 0
        """Rows, final ones included, that the writer overwrote before they were handed out."""
        self.overtaken = 0
        """Lanes of a slab that the writer overtook while it was copied; the slab was drawn again."""

    @property
    def readable_rows(self) -> int:
        """Committed rows that were not handed out yet and are still there, final rows included."""
        snapshot = self._reader.snapshot()
        cursor, oldest = snapshot.cursor[self._lanes], snapshot.oldest[self._lanes]
        return int((cursor - np.maximum(oldest, self._position)).clip(0).sum())

    @property
    def ready(self) -> bool:
        """Whether a slab can be drawn now."""
        return int((self._unread() // self._rows).sum()) >= self._batch

    def allocate(self, empty: Empty = np.empty) -> Slab:
        """A slab for ``draw(out=...)`` to fill, in memory that ``empty(shape, dtype)`` makes (``observation`` only)."""
        b, t = self._batch, self._rows
        fixed = {
            column.name: np.empty((b, t, *column.shape), np.dtype(column.dtype))
            for column in self._reader.spec.columns
            if column.name in _FIXED
        }
        return Slab(
            observation={
                c.name: empty((b, t + 1, *self._frames_of(c), *c.shape), np.dtype(c.dtype)) for c in self._observation
            },
            **fixed,
            used=np.empty((b, t), np.bool_),
            begins=np.empty((b, t), np.bool_),
            lane=np.empty(b, np.int64),
            generation=np.empty(b, np.int64),
            extra={c.name: np.empty((b, t, *c.shape), np.dtype(c.dtype)) for c in self._extra},
        )

    def draw(self, out: Slab | None = None) -> Slab:
        """The next slab.

        Raises: ReplayError where too few lanes have ``rows`` rows (ask ``ready`` first), or the writer is so fast that
        no slab can be copied whole.
        """
        out = self.allocate() if out is None else out
        for _ in range(_ROUNDS):
            places, turn = self._choose()
            ordinal = np.arange(self._batch) - np.searchsorted(places, places)  # 0, and 1, 2 … of a lane met again
            begin = self._position[places] + ordinal * self._rows
            floor = self._floor[places]
            self._copy(self._lanes[places], begin, floor, out)
            late = first_read(begin, self._look_back, floor) < self._reader.oldest_now()[self._lanes[places]]
            if not late.any():
                break
            self.overtaken += int(np.count_nonzero(late))
        else:
            raise ReplayError(
                f"{self._reader.path}: the writer overtook {_ROUNDS} slabs of {self._batch} x {self._rows} rows while "
                "they were copied; raise replay.capacity_rows, or let the limiter hold the actors back"
            )
        final = out.role == ROLE_FINAL
        np.equal(out.role, ROLE_STEP, out=out.used)
        out.begins[:, 1:] = final[:, :-1]
        out.begins[:, 0] = ~self._piece_goes_on[places]
        out.begins[1:, 0] = np.where(ordinal[1:] > 0, final[:-1, -1], out.begins[1:, 0])
        out.lane[:], out.generation[:] = self._lanes[places], begin
        last = np.append(places[1:] != places[:-1], True)  # which pieces are the last ones of their lanes
        self._position[places[last]] = begin[last] + self._rows
        self._piece_goes_on[places[last]] = ~final[last, -1]
        if self._look_back:  # else nothing reads before a slab's first row
            behind = np.arange(1, self._rows + 1)
            np.maximum.at(self._floor, places, np.where(final, begin[:, None] + behind, 0).max(axis=1))
        self._turn = turn
        drawn = out.drawn_rows
        self.drawn_rows += drawn
        self.final_rows += out.used.size - drawn
        return out

    def state(self) -> dict[str, Any]:
        """Plain values (JSON holds them) from which ``restore`` goes on exactly, given the same ring contents."""
        return {
            "position": self._position.tolist(),
            "floor": self._floor.tolist(),
            "piece_goes_on": self._piece_goes_on.tolist(),
            "turn": self._turn,
            "drawn_rows": self.drawn_rows,
            "final_rows": self.final_rows,
            "lost_rows": self.lost_rows,
            "overtaken": self.overtaken,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from ``state``. Raises: ReplayError where it belongs to another ring or other lanes."""
        position = np.asarray(state["position"], np.int64)
        cursor = self._reader.snapshot().cursor[self._lanes]
        if position.shape != cursor.shape or (position > cursor).any() or (position < 0).any():
            raise ReplayError(
                f"{self._reader.path}: the sampler's state stands at rows {position.tolist()[:8]}, this ring has "
                f"{cursor.tolist()[:8]}; restore it with the ring it was taken from, or start a new sampler"
            )
        self._position = position.copy()
        self._floor = np.asarray(state.get("floor", np.zeros_like(position)), np.int64)  # older checkpoints have none
        self._piece_goes_on = np.asarray(state["piece_goes_on"], np.bool_)
        self._turn = int(state["turn"])
        self.drawn_rows, self.final_rows = int(state["drawn_rows"]), int(state["final_rows"])
        self.lost_rows, self.overtaken = int(state["lost_rows"]), int(state["overtaken"])

    def waiting_rows(self, snapshot: Snapshot) -> int:
        """Step rows of a snapshot that are still there and were not handed out: what the limiter must not count."""
        begin = np.maximum(self._position, snapshot.oldest[self._lanes])
        count = (snapshot.cursor[self._lanes] - begin).clip(0)
        row = np.arange(count.sum()) + np.repeat(begin - (np.cumsum(count) - count), count)
        at = np.repeat(self._lanes, count) * self._reader.slots + row % self._reader.slots
        return int(np.count_nonzero(self._reader.columns["role"][at] == ROLE_STEP))

    def skip_to_newest(self) -> int:
        """Go on with the rows that come from now on: those there are belong to a learner that is gone.

        Returns: how many readable rows are left out, final rows included.
        """
        left = self.readable_rows
        self.begin_at(self._reader.snapshot().cursor)
        return left

    def begin_at(self, rows: NDArray[np.int64]) -> None:
        """Go on with row ``rows[lane]`` of every lane, [lanes of the ring]; an episode piece begins there."""
        self._position = rows[self._lanes]
        self._floor = np.minimum(self._floor, self._position)
        self._piece_goes_on[:] = False

    def _unread(self) -> NDArray[np.int64]:
        """[L'] rows that each lane has for a slab, after what cannot be drawn any more was given up."""
        snapshot = self._reader.snapshot()
        cursor, oldest = snapshot.cursor[self._lanes], snapshot.oldest[self._lanes]
        short = first_read(self._position, self._look_back, self._floor) < oldest
        if short.any():
            self._floor = np.where(short & self._begins(oldest), oldest, self._floor)
            there = np.maximum(self._position, oldest)
            whole = first_read(there, self._look_back, self._floor) >= oldest
            after = np.where(whole, there, oldest + self._look_back)
            lapped = (self._position < oldest) & (self._floor < oldest)
            after = np.where(lapped, np.maximum(after, cursor - self._reader.slots // 2), after)
            after = np.where(short, np.minimum(after, cursor), self._position)
            self.lost_rows += int((after - self._position).sum())
            self._piece_goes_on[after > self._position] = False
            self._position = after
        unread: NDArray[np.int64] = cursor - self._position
        return unread

    def _begins(self, oldest: NDArray[np.int64]) -> NDArray[np.bool_]:
        """[L'] whether a lane's oldest row is known to begin a piece: those before it were released, not overwritten,
        and the last of them is final.
        """
        slots = self._reader.slots
        begins: NDArray[np.bool_]
        begins = self._reader.columns["role"][self._lanes * slots + (oldest - 1) % slots] == ROLE_FINAL
        # Asked after the read: a commit writes less than a quarter of a lane, so that row was untouched until now.
        cursor = self._reader.snapshot().cursor[self._lanes]
        begins &= cursor - oldest < slots - slots // 4 - 2
        return begins

    def _choose(self) -> tuple[NDArray[np.int64], int]:
        """Places of the slab's lanes, ascending, and whose turn it is after them; one that gives several pieces is
        named several times.
        """
        for _ in range(_ROUNDS):
            lost = self.lost_rows
            pieces = self._unread() // self._rows
            there = int(pieces.sum())
            if there >= self._batch or self.lost_rows == lost:
                break  # else lapped within one snapshot, which may show no rows then: the next one will
        if there < self._batch:
            raise ReplayError(
                f"{self._reader.path}: there are {there} pieces of {self._rows} rows that were not handed out, a slab "
                f"needs {self._batch}; draw when `ready` says so"
            )
        order = np.roll(np.arange(len(self._lanes)), -self._turn)
        chosen = order[:0]
        while len(chosen) < self._batch:
            more = order[pieces[order] > 0]
            chosen = np.concatenate([chosen, more[: self._batch - len(chosen)]])
            pieces -= 1
        return np.sort(chosen), int(chosen[-1] + 1) % len(self._lanes)

    def _copy(self, lanes: NDArray[np.int64], begin: NDArray[np.int64], floor: NDArray[np.int64], out: Slab) -> None:
        slots, t = self._reader.slots, self._rows
        wide = [(c, out.observation[c.name], t + 1) for c in self._observation if not self._frames_of(c)]
        wide += [(column, out.extra[column.name], t) for column in self._extra]
        wide += [(c, getattr(out, c.name), t) for c in self._reader.spec.columns if c.name in _FIXED]
        runs = list(_runs(lanes, begin % slots))
        if len(runs) > _RUNS_MOST:
            at = lanes[:, None] * slots + (begin[:, None] + np.arange(t + 1)) % slots
            for column, target, rows in wide:
                np.take(self._reader.columns[column.name], at[:, :rows], axis=0, out=target, mode="clip")
            wide = []
        for column, target, rows in wide:
            source = self._reader.columns[column.name].reshape(self._reader.lanes, slots, *column.shape)
            for place, lane, count, slot in runs:
                before_wrap = min(rows, slots - slot)
                part, into = source[lane : lane + count], target[place : place + count]
                copy_rows(into[:, :before_wrap], part[:, slot : slot + before_wrap])
                if rows > before_wrap:
                    copy_rows(into[:, before_wrap:], part[:, : rows - before_wrap])
        if self._stack is not None:
            reach = begin[:, None] + np.arange(t + 1)
            flat = stacked_rows(self._reader, lanes[:, None], reach, self._stack.frames, floor[:, None]).reshape(-1)
            for column in self._observation:
                if self._frames_of(column):
                    target = out.observation[column.name].reshape(-1, *column.shape)
                    np.take(self._reader.columns[column.name], flat, axis=0, out=target, mode="clip")

    def _frames_of(self, column: ArraySpec) -> tuple[int, ...]:
        return () if self._stack is None else self._stack.shape_of(column.name)


def _runs(lanes: NDArray[np.int64], slot: NDArray[np.int64]) -> Iterator[tuple[int, int, int, int]]:
    """(place in the slab, first lane, lanes, slot) of each run of neighbouring lanes in step."""
    turns = np.flatnonzero((np.diff(lanes) != 1) | (np.diff(slot) != 0)) + 1
    starts = [0, *turns.tolist()]
    for begin, end in zip(starts, [*starts[1:], len(lanes)], strict=True):
        yield begin, int(lanes[begin]), end - begin, int(slot[begin])
