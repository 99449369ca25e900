"""The one writer of a ring's words and rows: the commit protocol (docs/replay.md)."""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onibi.platform.errors import LeaseError, ReplayError
from onibi.platform.fragment import StateRows
from onibi.platform.replay.fragment_border import FragmentBorder
from onibi.platform.replay.fragment_check import FragmentCheck
from onibi.platform.replay.ring.commit import REGISTERED, RETIRED, Commit, by_lane, copy_blocks
from onibi.platform.replay.ring.file import (
    Fill,
    MappedRing,
    create_ring_file,
    lock_ring,
    may_lack_rows,
    remove_ring,
    write_owner,
)
from onibi.platform.replay.ring.layout import RingLayout, read_header
from onibi.platform.replay.ring.reader import RingReader
from onibi.platform.replay.ring.row_copy import copy_rows
from onibi.platform.spec import ROLE_FINAL, ReplaySpec


@dataclass(frozen=True, kw_only=True)
class Insertion:
    """What became of one fragment."""

    repeated: bool
    """Its sequence was committed before: acknowledged, nothing written."""
    gap: bool = False
    """Fragments before it are missing; open episodes of the group were closed."""
    foreign_heads: int = 0
    """Lanes whose first observation is not the head in the ring; their open episode was closed."""
    step_rows: int = 0
    """Step rows committed."""


class RingWriter:
    """Writes one ring file; holds its lock from opening to ``close``, or to the death of the process.

    Thread-compatible: calls must not overlap. In a forked child the writer is closed, and raises when used.
    """

    def __init__(self, path: Path, layout: RingLayout, lock: int) -> None:
        """Take over a locked file; use ``create`` or ``open``."""
        self.path, self.layout = path, layout
        self._lock = lock
        self._fence = threading.Lock()
        self._ring = MappedRing(path, layout, writable=True)
        self._by_lane = {name: by_lane(column, layout) for name, column in self._ring.columns.items()}
        self._check = FragmentCheck(path, layout)
        self._border = FragmentBorder(path, layout, self._ring.columns)
        _writers.add(self)

    @classmethod
    def create(
        cls,
        path: Path | str,
        spec: ReplaySpec,
        *,
        groups: int,
        lanes_per_group: int,
        slots: int,
        window_rows: int,
        run_id: str,
    ) -> RingWriter:
        """Reserve a new, empty ring.

        Raises: ReplayError where the file exists, the memory is not there, or ``slots`` are too few.
        """
        layout = RingLayout(
            spec=spec,
            groups=groups,
            lanes_per_group=lanes_per_group,
            slots=slots,
            window_rows=window_rows,
            run_id=run_id,
        )
        return cls.of_layout(Path(path), layout)

    @classmethod
    def of_layout(cls, path: Path, layout: RingLayout, fill: Fill | None = None) -> RingWriter:
        """As ``create``; ``fill`` puts rows into the ring first. Raises: what it raises, too."""
        lock = create_ring_file(path, layout, fill)
        try:
            return cls(path, layout, lock)
        except BaseException:  # it cannot be mapped: nobody else knows of the file
            os.close(lock)
            remove_ring(path)
            raise

    @classmethod
    def open(cls, path: Path | str, run_id: str) -> RingWriter:
        """Go on with a ring that its last writer left, however it ended.

        Nothing is repaired: a commit that was begun and not finished is simply made again with the same number, and
        what it may have overwritten already stays below ``oldest``.
        Raises: ReplayError where another process writes it, the run differs, the header is damaged, or the machine was
            started anew meanwhile and the ring lies on a disk.
        """
        path = Path(path)
        found = read_header(path).layout
        if may_lack_rows(path):
            raise ReplayError(
                f"{path}: the machine was started anew since this ring was made; what its pages on the disk hold is "
                "not certain. Remove the file; the rows that the log sealed are whole"
            )
        if found.run_id != run_id:
            raise ReplayError(
                f"{path} belongs to run {found.run_id!r}, not to {run_id!r}. Resume that run, or remove the file"
            )
        lock = lock_ring(path)
        try:
            writer = cls(path, read_header(path).layout, lock)
        except BaseException:
            os.close(lock)
            raise
        try:
            writer._check_words()
            write_owner(path)
        except BaseException:
            writer.close()
            raise
        return writer

    def close(self) -> None:
        """Free the lock and forget the memory. The file stays. May be called again."""
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1
        self._by_lane = {}  # views keep the memory mapped
        self._border.release()
        self._ring.release()
        _writers.discard(self)

    def reader(self) -> RingReader:
        """A reader of the same mapping; it ends with the writer."""
        return RingReader(self.path, self._ring)

    def committed(self) -> NDArray[np.int64]:
        """[G] the number of the last commit of each group."""
        return self._words("committed").copy()

    def record(self, name: str) -> NDArray[np.int64]:
        """A copy of a committed word: [G, lanes per group] of ``cursor``, ``oldest``, ``open``; else [G, 1]."""
        parity = self._words("committed") & 1
        groups = np.arange(self.layout.groups)
        chosen: NDArray[np.int64] = self._words(name).reshape(2, self.layout.groups, -1)[parity, groups]
        return chosen

    def lease(self, group: int) -> tuple[int, int]:
        """(incarnation, committed sequence) of a group; incarnation 0: no actor's. Raises: ReplayError for no group."""
        self._check_group(group)
        parity = int(self._words("committed")[group]) & 1
        return int(self._words("incarnation")[parity, group]), int(self._words("sequence")[parity, group])

    def register(self, group: int) -> int:
        """Begin the group's next incarnation: a commit that closes its open episodes and nothing else.

        Returns: the new incarnation. Raises: ReplayError where the ring has no such group.
        """
        incarnation = self.lease(group)[0] + 1
        self._run(self._plan(group, incarnation, REGISTERED, close=self._from_lane(0)))
        return incarnation

    def retire(self, group: int) -> None:
        """Give up a group whose actor is gone: its rows are no longer drawn, its fragments are refused.

        ``register`` takes the group again, for any actor; its lanes' rows go on counting. Nothing is written where the
        group is free already.
        """
        if not self.is_free(group):
            incarnation = self.register(group)  # of nobody: what the actor still sends is refused from here on
            self._run(self._plan(group, incarnation, RETIRED, release=self._from_lane(0)))

    def release_lanes(self, group: int, first: int) -> None:
        """Stop drawing the rows of a group's lanes from its lane ``first`` on, and close their open episodes.

        For an actor that is replaced by one with fewer environments; the group's lease and other lanes stay.
        """
        incarnation, sequence = self.lease(group)
        lanes = self._from_lane(first)
        if (self.record("open")[group, lanes] != 0).any():  # closed by a commit of its own: heads are rows from then on
            self._run(self._plan(group, incarnation, sequence, close=lanes))
        if (self.record("oldest")[group, lanes] < self.record("cursor")[group, lanes]).any():
            self._run(self._plan(group, incarnation, sequence, release=lanes))

    def is_free(self, group: int) -> bool:
        """Whether no actor has the group: it never registered, or was retired since."""
        incarnation, sequence = self.lease(group)
        return incarnation == 0 or sequence == RETIRED

    def insert(
        self,
        group: int,
        *,
        incarnation: int,
        sequence: int,
        rows_per_lane: NDArray[np.int32],
        columns: Mapping[str, NDArray[Any]],
        states: Mapping[str, StateRows] | None = None,
    ) -> Insertion:
        """Commit the rows and head rows of a fragment at once.

        Args:
            rows_per_lane: [E] committed rows of the group's first E lanes, 0 allowed.
            columns: every ring column [E, R, ...], R > max(rows_per_lane); row ``rows_per_lane[e]`` is lane e's head.
            states: of committed rows, by the name of the ring's state; one that is not named is kept of none.

        Raises:
            LeaseError: the incarnation is not the registered one.
            ReplayError: the fragment is too large or does not fit the ring's columns. Nothing was written then.
        """
        registered, last = self.lease(group)
        if incarnation != registered or registered == 0 or last == RETIRED:
            why = "Its actor has been replaced, or must register again"
            if last == RETIRED:
                why = "The group was retired, as nothing was heard of its actor: it must register again"
            raise LeaseError(
                f"{self.path}: group {group} is registered with incarnation {registered}, the fragment has "
                f"{incarnation}. {'Call register first' if registered == 0 else why}"
            )
        if sequence <= last:
            return Insertion(repeated=True)
        rows, step_rows = self._check.rows(group, rows_per_lane, columns)
        states = states or {}
        self._check.states(group, rows, states)
        gap = sequence > last + 1
        envs = len(rows)
        record, lanes = int(self._words("committed")[group]) & 1, self._lanes(group)
        cursor, is_open = self._words("cursor")[record, lanes][:envs], self._words("open")[record, lanes][:envs] != 0
        border = self._border.meet(group, cursor, is_open, columns)
        close = np.zeros(self.layout.lanes_per_group, np.bool_)
        close[:envs] = is_open if gap else border.foreign
        self._border.check(group, border, rows, is_open & ~close[:envs], columns["role"])
        plan = self._plan(group, incarnation, sequence, close=close, rows=rows, step_rows=step_rows)
        self._run(replace(plan, columns=columns, states=states))
        foreign = int(np.count_nonzero(border.foreign))
        return Insertion(repeated=False, gap=gap, foreign_heads=foreign, step_rows=step_rows)

    def _run(self, commit: Commit) -> None:
        for _ in self._stores(commit):
            pass

    def _plan(
        self,
        group: int,
        incarnation: int,
        sequence: int,
        *,
        close: NDArray[np.bool_] | None = None,
        release: NDArray[np.bool_] | None = None,
        rows: NDArray[np.int64] | None = None,
        step_rows: int = 0,
    ) -> Commit:
        """The next commit of a group: heads of the lanes in ``close`` become rows, rows of those in ``release`` leave.

        ``release`` only where nothing is open: a released head could not be put back by a shorter commit after a cut.
        """
        close = np.zeros(self.layout.lanes_per_group, np.bool_) if close is None else close
        rows = np.zeros(0, np.int64) if rows is None else rows
        committed = int(self._words("committed")[group])
        unfinished = int(self._words("writing")[group]) > committed
        last, next_ = committed & 1, (committed + 1) & 1
        lanes = self._lanes(group)
        cursor, is_open = self._words("cursor")[last, lanes], self._words("open")[last, lanes]
        closing = close & (is_open != 0)
        first = cursor + closing
        envs = len(rows)
        ahead = first.copy()
        ahead[:envs] += rows
        oldest = np.maximum(self._words("oldest")[last, lanes], ahead + 1 - self.layout.slots)
        if unfinished:  # its rows may be overwritten already, whatever shorter commit comes now
            oldest = np.maximum(oldest, self._words("oldest")[next_, lanes])
        if release is not None:
            oldest = np.where(release, ahead, oldest)
        now_open = is_open * ~closing
        now_open[:envs] = 1
        return Commit(
            group=group,
            number=committed + 1,
            cursor=ahead,
            oldest=oldest,
            open=now_open,
            incarnation=incarnation,
            sequence=sequence,
            inserted=int(self._words("inserted")[last, group]) + step_rows,
            closed=np.where(closing, cursor, -1),
            first=first[:envs],
            rows=rows + 1,
            columns={},
            states={},
        )

    def _stores(self, commit: Commit) -> Iterator[str]:
        """Every store of a commit in its order, each followed by a yield of its name: tests end the process at each."""
        yield from self._store_record(commit)
        self._words("writing")[commit.group] = commit.number
        yield "writing"
        # A full fence: large copies use stores that may overtake earlier ones, and readers must see `writing` before
        # any of them.
        with self._fence:
            pass
        yield from self._store_columns(commit)
        with self._fence:
            pass
        self._words("committed")[commit.group] = commit.number
        yield "committed"

    def _store_record(self, commit: Commit) -> Iterator[str]:
        record, lanes = commit.number & 1, self._lanes(commit.group)
        # `oldest` first: where this record was begun before, readers look at its `oldest` now.
        self._words("oldest")[record, lanes] = commit.oldest
        yield "oldest"
        self._words("cursor")[record, lanes] = commit.cursor
        yield "cursor"
        self._words("open")[record, lanes] = commit.open
        yield "open"
        for name in ("incarnation", "sequence", "inserted"):
            self._words(name)[record, commit.group] = getattr(commit, name)
            yield name

    def _store_columns(self, commit: Commit) -> Iterator[str]:
        slots, base = self.layout.slots, commit.group * self.layout.lanes_per_group
        columns = self._ring.columns
        for lane in np.flatnonzero(commit.closed >= 0).tolist():
            at = (base + lane) * slots + int(commit.closed[lane]) % slots
            for name in self.layout.spec.step_columns:  # a cut-off attempt may have left an action and reward here
                columns[name][at] = 0
                yield f"clear {name}"
            columns["role"][at] = ROLE_FINAL
            yield "close head"
        blocks = copy_blocks(commit.first % slots, commit.rows, slots)
        for name, source in commit.columns.items():
            target = self._by_lane[name]
            for begin, lanes, row, slot, count in blocks:
                copy_rows(
                    target[base + begin : base + begin + lanes, slot : slot + count],
                    source[begin : begin + lanes, row : row + count],
                )
                yield f"column {name}"
        for name, kept in commit.states.items():
            self._ring.states[name].put(base, commit.first, kept)
            yield f"state {name}"

    def _check_words(self) -> None:
        writing, committed = self._words("writing"), self._words("committed")
        good = bool(((writing == committed) | (writing == committed + 1)).all()) and bool((committed >= 0).all())
        cursor, oldest, is_open = (self.record(name) for name in ("cursor", "oldest", "open"))
        good = good and bool(((oldest >= 0) & (oldest <= cursor) & (cursor - oldest < self.layout.slots)).all())
        good = good and bool(((is_open == 0) | (is_open == 1)).all())
        if not good:
            raise ReplayError(
                f"{self.path}: the header is damaged (commit words, cursors and oldest rows disagree). Remove the file"
            )

    def _check_group(self, group: int) -> None:
        if not 0 <= group < self.layout.groups:
            raise ReplayError(
                f"{self.path}: group {group} does not exist, the ring has groups 0 to {self.layout.groups - 1}; "
                "start the shard with a larger max_actors"
            )

    def _from_lane(self, first: int) -> NDArray[np.bool_]:
        return np.arange(self.layout.lanes_per_group) >= first

    def _lanes(self, group: int) -> slice:
        return slice(group * self.layout.lanes_per_group, (group + 1) * self.layout.lanes_per_group)

    def _words(self, name: str) -> NDArray[np.int64]:
        try:
            return self._ring.words[name]
        except KeyError:
            raise ReplayError(
                f"{self.path}: this writer is closed; open the ring again in the process that writes it"
            ) from None


_writers: weakref.WeakSet[RingWriter] = weakref.WeakSet()


def _close_in_child() -> None:
    """A forked child must not keep the lock alive when its parent dies; closing its copy frees nothing now."""
    for writer in list(_writers):
        writer.close()


os.register_at_fork(after_in_child=_close_in_child)
