"""Uniform draws of n-step windows from a ring that is written meanwhile (contracts §3 and §4)."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onibi.platform.errors import ReplayError
from onibi.platform.replay.ring_reader import RingReader
from onibi.platform.replay.windows import Windows
from onibi.platform.spec import ROLE_FINAL, ROLE_STEP, ArraySpec

log = logging.getLogger(__name__)

Empty = Callable[[tuple[int, ...], np.dtype[Any]], NDArray[Any]]
"""Makes an uninitialised array of a shape and dtype, in memory of the caller's choice (pinned, shared)."""

_REDRAWS = 64
"""Rounds of redrawing final rows before the span is looked through: with half of it final, one start needs so many with
p = 2**-64. Also how many snapshots are taken until one is not empty."""


@dataclass(kw_only=True)
class _Starts:
    """Chosen window starts, each [m]: lane, row, and the lane's cursor in the snapshot they were chosen from."""

    lane: NDArray[np.int64]
    row: NDArray[np.int64]
    limit: NDArray[np.int64]


@dataclass(kw_only=True)
class _Plan:
    """Starts with all that is not an observation gathered for them, several batches long; see ``Windows`` for the
    columns.
    """

    starts: _Starts
    pair: NDArray[np.int64]  # [m, 2] flat index of o_k and of the bootstrap observation
    reward: NDArray[np.float32]
    continues: NDArray[np.float32]
    used: NDArray[np.bool_]
    steps: NDArray[np.int32]
    caption_id: NDArray[np.uint32]
    caption_count: NDArray[np.uint16]
    action: NDArray[np.int64]
    policy_version: NDArray[np.int64]


_PLANNED = ("reward", "continues", "used", "steps", "caption_id", "caption_count", "action", "policy_version")


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
    ) -> None:
        """Draw from ``lanes`` (None: all) the observation leaves and extra columns named in ``columns`` (None: all).

        Raises: ReplayError where windows are longer than the ring was made for, or a lane or column does not exist.
        """
        if not 1 <= n_steps <= reader.layout.window_rows:
            raise ReplayError(
                f"{reader.path}: windows of {n_steps} steps cannot be drawn, the ring was made for 1 to "
                f"{reader.layout.window_rows}; create the shard with window_rows >= n_steps"
            )
        if batch_size < 1 or batches_ahead < 1:
            raise ReplayError(f"batch_size {batch_size} and batches_ahead {batches_ahead} must be at least 1")
        self._reader, self._rng = reader, rng
        self._n, self._batch, self._ahead = n_steps, batch_size, batches_ahead
        self._lanes = np.arange(reader.lanes) if lanes is None else np.asarray(lanes, np.int64)
        if not len(self._lanes) or self._lanes.min() < 0 or self._lanes.max() >= reader.lanes:
            raise ReplayError(
                f"{reader.path}: lanes {self._lanes.tolist()} cannot be drawn from, the ring has 0 to "
                f"{reader.lanes - 1}"
            )
        self._observation = _chosen(reader.spec.observation, columns)
        self._extra = _chosen(reader.spec.extra, columns)
        known = {column.name for column in (*reader.spec.observation, *reader.spec.extra)}
        if unknown := set(columns or ()) - known:
            raise ReplayError(f"{reader.path}: no columns {sorted(unknown)}; it has {sorted(known)}")
        self._offsets = np.arange(n_steps, dtype=np.int64)
        self._pending: _Plan | None = None
        self._position = 0
        self.drawn_rows = 0
        """Window starts handed out over this sampler's life, restored ones included."""
        self.overtaken = 0
        """Starts that the writer overwrote before they were handed out; each was drawn again."""

    @property
    def readable_rows(self) -> int:
        """Committed rows of this sampler's lanes now, final rows included."""
        snapshot = self._reader.snapshot()
        return int((snapshot.cursor - snapshot.oldest)[self._lanes].sum())

    def allocate(self, empty: Empty = np.empty) -> Windows:
        """Windows for ``draw(out=...)`` to fill, in memory that ``empty(shape, dtype)`` makes (``observation``
        only).
        """
        b, n = self._batch, self._n
        pairs = {column.name: empty((b, 2, *column.shape), np.dtype(column.dtype)) for column in self._observation}
        return Windows(
            observation={name: pair[:, 0] for name, pair in pairs.items()},
            bootstrap_observation={name: pair[:, 1] for name, pair in pairs.items()},
            pairs=pairs,
            action=np.empty(b, np.int64),
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
        )

    def draw(self, out: Windows | None = None) -> Windows:
        """One batch; every value in it belongs to the rows that ``(lane, generation)`` name.

        Args:
            out: windows from ``allocate``, overwritten and returned; None makes new ones (slower for wide
            observations).
        Raises: ReplayError where no row can be drawn yet.
        """
        out = self.allocate() if out is None else out
        if self._pending is None or self._position == len(self._pending.steps):
            self._pending = self._gathered(self._choose(self._batch * self._ahead))
            self._position = 0
        plan, begin = self._pending, self._position
        batch = slice(begin, begin + self._batch)
        self._gather(plan.pair[batch], out)
        late = self._late(plan.starts.lane[batch], plan.starts.row[batch])
        while len(late):
            self.overtaken += len(late)
            again = self._gathered(self._choose(len(late)))
            _put(plan, begin + late, again)
            self._gather_at(again.pair, late, out)
            late = late[self._late(again.starts.lane, again.starts.row)]
        for name in _PLANNED:
            np.copyto(getattr(out, name), getattr(plan, name)[batch])
        np.copyto(out.lane, plan.starts.lane[batch])
        np.copyto(out.generation, plan.starts.row[batch])
        self._position += self._batch
        self.drawn_rows += self._batch
        return out

    def state(self) -> dict[str, Any]:
        """Plain values (JSON holds them) from which ``restore`` goes on exactly, given the same ring contents."""
        rest = slice(self._position, None)
        starts = self._pending.starts if self._pending else _Starts(**{name: np.zeros(0, np.int64) for name in _STARTS})
        return {
            "generator": self._rng.bit_generator.state,
            **{name: getattr(starts, name)[rest].tolist() for name in _STARTS},
            "drawn_rows": self.drawn_rows,
            "overtaken": self.overtaken,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from ``state``. Starts chosen ahead are dropped where the ring no longer holds them or the batch size
        differs.
        """
        self._rng.bit_generator.state = state["generator"]
        self.drawn_rows, self.overtaken = int(state["drawn_rows"]), int(state["overtaken"])
        starts = _Starts(**{name: np.asarray(state[name], np.int64) for name in _STARTS})
        self._pending, self._position = None, 0
        if not len(starts.lane):
            return
        snapshot = self._reader.snapshot()
        fits = len(starts.lane) % self._batch == 0 and bool(np.isin(starts.lane, self._lanes).all())
        if (
            fits
            and (
                (starts.row >= snapshot.oldest[starts.lane])
                & (starts.row < starts.limit)
                & (starts.limit <= snapshot.cursor[starts.lane])
            ).all()
        ):
            self._pending = self._gathered(starts)
        else:
            log.warning(
                "%d starts chosen before the checkpoint are not in this ring; drawing new ones", len(starts.lane)
            )

    def _choose(self, count: int) -> _Starts:
        """``count`` uniform starts of a fresh snapshot, final rows left out."""
        oldest, cursor = self._span()
        ends = np.cumsum(cursor - oldest)
        role = self._reader.columns["role"]
        before = cursor - ends  # row = place in the spans laid end to end + before[lane]
        lane, row = np.empty(count, np.int64), np.empty(count, np.int64)
        missing: Any = slice(None)
        missing_count = count
        for _ in range(_REDRAWS):
            place = self._rng.integers(0, ends[-1], missing_count)
            index = np.searchsorted(ends, place, side="right")
            lane[missing] = index
            row[missing] = place + before[index]
            at = self._lanes[lane] * self._reader.slots + row % self._reader.slots
            missing = np.flatnonzero(np.take(role, at, mode="clip") == ROLE_FINAL)
            missing_count = len(missing)
            if not missing_count:
                return _Starts(lane=self._lanes[lane], row=row, limit=cursor[lane])
        return self._choose_by_scan(count, oldest, cursor)

    def _span(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """(oldest, cursor) of this sampler's lanes, not all empty."""
        for _ in range(_REDRAWS):
            snapshot = self._reader.snapshot()
            oldest, cursor = snapshot.oldest[self._lanes], snapshot.cursor[self._lanes]
            if (cursor > oldest).any():
                return oldest, cursor
            if not cursor.any():
                break
            # Rows are there, but the writer went round the whole ring within this one snapshot: take another.
        raise ReplayError(
            f"{self._reader.path}: no committed rows in lanes {self._lanes[:8].tolist()}; "
            "draw after the limiter says so (readable rows >= minimum_rows)"
        )

    def _choose_by_scan(self, count: int, oldest: NDArray[np.int64], cursor: NDArray[np.int64]) -> _Starts:
        """As ``_choose`` by listing every drawable row: slow, for spans that are nearly all final rows."""
        rows = [np.arange(low, high) for low, high in zip(oldest, cursor, strict=True)]
        index = np.repeat(np.arange(len(rows)), cursor - oldest)
        row = np.concatenate(rows)
        at = self._lanes[index] * self._reader.slots + row % self._reader.slots
        drawable = np.flatnonzero(self._reader.columns["role"][at] == ROLE_STEP)
        if not len(drawable):
            raise ReplayError(
                f"{self._reader.path}: all {len(row)} readable rows are final; draw after more steps came in"
            )
        pick = drawable[self._rng.integers(0, len(drawable), count)]
        return _Starts(lane=self._lanes[index[pick]], row=row[pick], limit=cursor[index[pick]])

    def _gathered(self, starts: _Starts) -> _Plan:
        """Window ends and scalar columns of some starts; what was overtaken meanwhile the end check finds."""
        slots, columns, n = self._reader.slots, self._reader.columns, self._n
        base = starts.lane * slots
        first = starts.row % slots
        left = starts.limit - starts.row  # rows up to the head, at least 1
        reach = np.minimum(self._offsets, (left - 1)[:, None])  # behind the newest row: read it again, masked below
        at = first[:, None] + reach
        at -= slots * (at >= slots)
        at += base[:, None]
        if at.size and (at.min() < 0 or at.max() >= len(columns["role"])):  # mode="clip" would hide it
            raise ReplayError(f"{self._reader.path}: a window lies outside of the ring; the sampler state is damaged")
        used = self._offsets < left[:, None]
        if n > 1:
            used &= np.take(columns["role"], at, mode="clip") != ROLE_FINAL
            np.logical_and.accumulate(used, axis=1, out=used)
        unused = ~used
        steps = used.sum(axis=1, dtype=np.int32)
        last = first + steps
        last -= slots * (last >= slots)
        reward = np.take(columns["reward"], at, mode="clip")
        np.copyto(reward, np.float32(0), where=unused)  # not a product: NaN of an unused row would stay
        terminated = np.take(columns["terminated"], at, mode="clip")
        caption_id = np.take(columns["caption_id"], at, mode="clip")
        np.copyto(caption_id, np.uint32(0), where=unused)
        caption_count = np.take(columns["caption_count"], at, axis=0, mode="clip")
        np.copyto(caption_count, np.uint16(0), where=unused[..., None])
        return _Plan(
            starts=starts,
            pair=np.stack([first + base, last + base], axis=1),
            reward=reward,
            continues=((terminated == 0) | unused).astype(np.float32),
            used=used,
            steps=steps,
            caption_id=caption_id,
            caption_count=caption_count,
            action=np.take(columns["action"], at[:, 0], mode="clip"),
            policy_version=np.take(columns["policy_version"], at[:, 0], mode="clip"),
        )

    def _gather(self, pair: NDArray[np.int64], out: Windows) -> None:
        """Observations and extra columns of a whole batch, straight into ``out``.

        ``mode="clip"`` because the default buffers when given ``out``; the indices were checked when they were made.
        """
        columns = self._reader.columns
        both = pair.reshape(-1)
        for column in self._observation:
            target = out.pairs[column.name].reshape(-1, *column.shape)
            np.take(columns[column.name], both, axis=0, out=target, mode="clip")
        for column in self._extra:
            np.take(columns[column.name], pair[:, 0], axis=0, out=out.extra[column.name], mode="clip")

    def _gather_at(self, pair: NDArray[np.int64], positions: NDArray[np.int64], out: Windows) -> None:
        """The same for single places of a batch."""
        columns = self._reader.columns
        for column in self._observation:
            out.pairs[column.name][positions] = columns[column.name][pair]
        for column in self._extra:
            out.extra[column.name][positions] = columns[column.name][pair[:, 0]]

    def _late(self, lane: NDArray[np.int64], row: NDArray[np.int64]) -> NDArray[np.int64]:
        """End check: positions whose first row may have been overwritten by now."""
        return np.flatnonzero(row < self._reader.oldest_now()[lane])


_STARTS = ("lane", "row", "limit")


def _put(plan: _Plan, at: NDArray[np.int64], newer: _Plan) -> None:
    for name in (*_PLANNED, "pair"):
        getattr(plan, name)[at] = getattr(newer, name)
    for name in _STARTS:
        getattr(plan.starts, name)[at] = getattr(newer.starts, name)


def _chosen(columns: Sequence[ArraySpec], names: Sequence[str] | None) -> list[ArraySpec]:
    return [column for column in columns if names is None or column.name in names]
