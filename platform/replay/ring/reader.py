"""The reader's side of a ring: consistent snapshots, the end check, and the mapped columns (docs/replay.md)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onibi.platform.errors import ReplayError
from onibi.platform.replay.ring.file import MappedRing
from onibi.platform.replay.ring.layout import read_header
from onibi.platform.replay.ring.state_ring import StateRing
from onibi.platform.spec import ReplaySpec

_ROUNDS = 1_000_000
"""Retries of a read of the header before something must be broken; one commit at most is missed per round."""


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """What could be read at one moment. Rows ``oldest`` to ``cursor - 1`` of a lane are committed; of row ``cursor``,
    only the observation may be read, and that only where ``open``. All arrays [L], but ``committed`` and ``inserted``
    [G].
    """

    cursor: NDArray[np.int64]
    oldest: NDArray[np.int64]
    open: NDArray[np.bool_]
    committed: NDArray[np.int64]
    inserted: NDArray[np.int64]

    @property
    def readable_rows(self) -> int:
        """Committed rows that are still there, final rows included."""
        return int((self.cursor - self.oldest).sum())

    @property
    def inserted_rows(self) -> int:
        """Step rows inserted since the ring was created: the limiter's ``inserted``."""
        return int(self.inserted.sum())


class _Closed(dict[str, Any]):
    """In place of a closed reader's arrays: says so, whatever is asked for."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __missing__(self, name: str) -> Any:
        raise ReplayError(f"{self._path}: this reader is closed ({name!r} was asked for); open a new RingReader")


class RingReader:
    """Maps a ring for reading, in the writer's process or any other of the machine.

    ``columns[name]`` is a read-only view ``[L × slots, ...]``; row k of lane l lies at ``l × slots + k mod slots``.
    What was read counts only if ``oldest_now`` afterwards is not above the earliest row read.
    """

    def __init__(self, path: Path | str, ring: MappedRing | None = None) -> None:
        """Map the ring at ``path``, or use a mapping of it that this process has already (and its owner ends).

        Raises: ReplayError where it is missing, foreign, damaged or cut off.
        """
        self.path = path = Path(path)
        header = read_header(path)
        self.layout = header.layout
        self.created_unix_ns = header.created_unix_ns
        """Tells this ring from all others, an earlier or later one of the same run included."""
        self._borrowed = ring is not None
        self._ring = ring or MappedRing(path, self.layout, writable=False)
        self._words = self._ring.words
        self.columns: dict[str, NDArray[Any]] = self._ring.columns
        self.states: dict[str, StateRing] = self._ring.states
        self._groups = np.arange(self.layout.groups)
        self._last: tuple[tuple[bytes, ...], Snapshot] | None = None

    @property
    def spec(self) -> ReplaySpec:
        """The row layout."""
        return self.layout.spec

    @property
    def lanes(self) -> int:
        """L."""
        return self.layout.lanes

    @property
    def slots(self) -> int:
        """Slots per lane."""
        return self.layout.slots

    @property
    def restored(self) -> NDArray[np.int64]:
        """[2, L] rows that were put into the ring when it was made, from a log: the first, and that behind the last.
        A copy.
        """
        return self._words["restored"].copy()

    def snapshot(self) -> Snapshot:
        """The committed record of every group, and what may be overwritten left out; its arrays are read-only.

        While no commit begins or ends, the same one is returned.
        """
        committed_words = self._words["committed"]
        for _ in range(_ROUNDS):
            # These words never fall: where they are what they were, so is all that they vouch for.
            now, last = self._vouching_words(), self._last
            if last is not None and last[0] == now:
                return last[1]
            committed = committed_words.copy()
            parity = committed & 1
            cursor = self._per_lane("cursor", parity)
            oldest = self._per_lane("oldest", parity)
            is_open = self._per_lane("open", parity)
            inserted = self._words["inserted"][parity, self._groups]
            if np.array_equal(committed, committed_words):
                snapshot = Snapshot(
                    cursor=cursor,
                    # The ring may have lapped this snapshot meanwhile: an empty span, not a negative one.
                    oldest=np.minimum(np.maximum(oldest, self.oldest_now()), cursor),
                    open=is_open != 0,
                    committed=committed,
                    inserted=inserted,
                )
                for array in vars(snapshot).values():
                    array.flags.writeable = False
                self._last = now, snapshot
                return snapshot
        raise self._never_still()

    def oldest_now(self) -> NDArray[np.int64]:
        """[L] the first row of each lane that no store has touched or may be touching: the end check.

        Call it after the last read, in the thread that joined all readers.
        """
        writing_words = self._words["writing"]
        for _ in range(_ROUNDS):
            writing = writing_words.copy()
            oldest = self._per_lane("oldest", writing & 1)
            if np.array_equal(writing, writing_words):
                return oldest
        raise self._never_still()

    def oldest_ceiling(self) -> NDArray[np.int64]:
        """[L] at least what ``oldest_now`` would say, several times as fast: the larger of both records.

        ``oldest`` never falls, and a record has it before `writing` announces the record. So rows from the ceiling on
        are whole; it may be ahead by the commit that is about to be announced: ask ``oldest_now`` about rows below it.
        """
        first, second = self._words["oldest"]
        ceiling: NDArray[np.int64] = np.maximum(first, second)
        return ceiling

    def oldest_words(self) -> bytes:
        """Both records of ``oldest``: while they stay what they were, so does ``oldest_ceiling``."""
        return self._words["oldest"].tobytes()

    def close(self) -> None:
        """Forget the memory; it is unmapped when the last array handed out is gone. A mapping that another one owns
        stays.
        """
        if not self._borrowed:
            self._ring.release()
        self._words, self.columns, self.states = _Closed(self.path), _Closed(self.path), _Closed(self.path)
        self._last = None

    def _vouching_words(self) -> tuple[bytes, ...]:
        return tuple(self._words[name].tobytes() for name in ("committed", "writing", "oldest"))

    def _per_lane(self, name: str, parity: NDArray[np.int64]) -> NDArray[np.int64]:
        words = self._words[name].reshape(2, self.layout.groups, self.layout.lanes_per_group)
        return words[parity, self._groups].reshape(-1)

    def _never_still(self) -> ReplayError:
        return ReplayError(
            f"{self.path}: the commit words never stood still for one read; is something else than Onibi writing "
            f"this file?"
        )
