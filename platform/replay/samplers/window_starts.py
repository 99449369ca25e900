"""Where windows begin: chosen rows, and the readable span that uniform choices are made from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onibi.platform.errors import ReplayError
from onibi.platform.replay.ring.reader import RingReader
from onibi.platform.spec import ROLE_FINAL, ROLE_STEP

Proposal = Callable[[int], "tuple[NDArray[np.int64], NDArray[np.int64]]"]
"""Draws so many rows of a span: their places in the span's lanes [m], and their row numbers [m]."""

_REDRAWS = 64
"""Rounds of redrawing final rows before the span is looked through: with half of it final, one start needs so many with
p = 2**-64. Also how many snapshots are taken until one is not empty."""


@dataclass(kw_only=True)
class Starts:
    """Chosen window starts, each [m]."""

    lane: NDArray[np.int64]
    row: NDArray[np.int64]
    limit: NDArray[np.int64]
    """The lane's cursor in the snapshot that the start was chosen from: no window goes on behind it."""
    probability: NDArray[np.float64]
    """With which the start was drawn, up to a factor common to the batch; 1 where all are equal."""

    def __len__(self) -> int:
        return len(self.row)

    @classmethod
    def none(cls) -> Starts:
        """No starts."""
        return cls(**{name: np.zeros(0, np.int64) for name in START_FIELDS[:3]}, probability=np.zeros(0))

    def part(self, rows: slice) -> Starts:
        """Some of them; views."""
        return Starts(**{name: getattr(self, name)[rows] for name in START_FIELDS})

    def put(self, at: NDArray[np.int64], newer: Starts) -> None:
        """Replace those at ``at``."""
        for name in START_FIELDS:
            getattr(self, name)[at] = getattr(newer, name)


START_FIELDS = ("lane", "row", "limit", "probability")


def checked_generator(rng: np.random.Generator) -> np.random.Generator:
    """What all draws come from. Raises: TypeError where it is something else, a seed or an old RandomState say."""
    if not isinstance(rng, np.random.Generator):
        raise TypeError(f"rng is {rng!r}, it must be a numpy Generator: np.random.default_rng(SEED)")
    return rng


def checked_lanes(reader: RingReader, lanes: Sequence[int] | None) -> NDArray[np.int64]:
    """The lanes to draw from, None for all.

    Raises: ReplayError where there is none, one is named twice, or one does not exist.
    """
    chosen = np.arange(reader.lanes) if lanes is None else np.asarray(lanes, np.int64)
    if not len(chosen) or chosen.min() < 0 or chosen.max() >= reader.lanes or len(np.unique(chosen)) < len(chosen):
        raise ReplayError(
            f"{reader.path}: lanes {chosen.tolist()} cannot be drawn from, the ring has 0 to {reader.lanes - 1}, "
            "each may be named once"
        )
    return chosen


def readable_rows(reader: RingReader, lanes: NDArray[np.int64]) -> int:
    """Committed rows of ``lanes`` now, final rows included."""
    snapshot = reader.snapshot()
    return int((snapshot.cursor - snapshot.oldest)[lanes].sum())


@dataclass(frozen=True, kw_only=True)
class Span:
    """Committed rows ``oldest`` to ``cursor - 1`` of some lanes at one moment; each array [L'], in the lanes' order."""

    lanes: NDArray[np.int64]
    oldest: NDArray[np.int64]
    cursor: NDArray[np.int64]


def readable_span(reader: RingReader, lanes: NDArray[np.int64], look_back: int = 0) -> Span:
    """What can be read of ``lanes`` now, with ``look_back`` rows before it (or row 0): at least one row.

    Raises: ReplayError where nothing was committed yet.
    """
    for _ in range(_REDRAWS):
        snapshot = reader.snapshot()
        oldest, cursor = snapshot.oldest[lanes], snapshot.cursor[lanes]
        if look_back:
            oldest = np.minimum(np.where(oldest > 0, oldest + look_back, 0), cursor)
        if (cursor > oldest).any():
            return Span(lanes=lanes, oldest=oldest, cursor=cursor)
        if not cursor.any():
            break
        # Rows are there, but the writer went round the whole ring within this one snapshot: take another.
    raise no_rows(reader, lanes)


def no_rows(reader: RingReader, lanes: NDArray[np.int64]) -> ReplayError:
    """The error of a draw that came too early."""
    return ReplayError(
        f"{reader.path}: no committed rows in lanes {lanes[:8].tolist()}; "
        "draw after the limiter says so (readable rows >= minimum_rows)"
    )


def drawable_starts(
    reader: RingReader,
    span: Span,
    count: int,
    propose: Proposal,
    fall_back: Callable[[NDArray[np.int64], NDArray[np.int64]], NDArray[np.int64]],
) -> Starts:
    """``count`` rows that ``propose`` draws, final ones drawn again.

    Where that takes too long (a span that is nearly all final rows) every drawable row is listed instead:
    ``fall_back(places, rows)`` picks ``count`` positions of that list.
    """
    role, slots = reader.columns["role"], reader.slots
    place, row = np.empty(count, np.int64), np.empty(count, np.int64)
    missing: Any = slice(None)
    missing_count = count
    for _ in range(_REDRAWS):
        place[missing], row[missing] = propose(missing_count)
        at = np.take(span.lanes * slots, place) + row % slots
        missing = np.flatnonzero(np.take(role, at, mode="clip") == ROLE_FINAL)
        missing_count = len(missing)
        if not missing_count:
            break
    else:
        place, row = _listed(reader, span)
        pick = fall_back(place, row)
        place, row = place[pick], row[pick]
    return Starts(
        lane=np.take(span.lanes, place), row=row, limit=np.take(span.cursor, place), probability=np.ones(count)
    )


def _listed(reader: RingReader, span: Span) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Every drawable row of a span: slow."""
    place = np.repeat(np.arange(len(span.lanes)), span.cursor - span.oldest)
    row = np.concatenate([np.arange(low, high) for low, high in zip(span.oldest, span.cursor, strict=True)])
    at = span.lanes[place] * reader.slots + row % reader.slots
    drawable = np.flatnonzero(reader.columns["role"][at] == ROLE_STEP)
    if not len(drawable):
        raise ReplayError(f"{reader.path}: all {len(row)} readable rows are final; draw after more steps came in")
    return place[drawable], row[drawable]
