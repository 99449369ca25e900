"""Where the episode piece of each new row begins, told by the ``role`` of the row before alone (docs/replay.md)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onibi.platform.replay.row_intake import NewRows
from onibi.platform.spec import ROLE_FINAL

UNKNOWN = -(1 << 62)
"""``begin`` of a piece whose first row was overwritten before it was looked at."""


@dataclass(frozen=True, kw_only=True)
class PieceMarks:
    """Of each new row, [m]."""

    begin: NDArray[np.int64]
    """First row of the row's piece, ``UNKNOWN`` where that was never seen. A final row belongs to the piece it ends."""
    anchor: NDArray[np.int64]
    """The same, but the first row that was seen of it where its begin is unknown."""


class EpisodePieces:
    """Follows the open piece of each lane from one intake to the next.

    A piece is what lies between two final rows: an episode, or the part of one before or after a gap. ``step`` and
    ``episode_id`` do not tell: after a gap they go on.
    """

    def __init__(self, lanes: int) -> None:
        self._next = np.zeros(lanes, np.int64)  # the row that would go on with what was seen
        self._begin = np.zeros(lanes, np.int64)  # of the open piece; row 0 begins one
        self._anchor = np.zeros(lanes, np.int64)

    def mark(self, rows: NewRows) -> PieceMarks:
        """Marks of all new rows; ``rows.columns`` holds ``role``. Call it once for each intake."""
        count = len(rows)
        if not count:
            return PieceMarks(begin=np.zeros(0, np.int64), anchor=np.zeros(0, np.int64))
        place, row = rows.place, rows.row
        final = rows.columns["role"] == ROLE_FINAL
        enters = np.ones(count, np.bool_)  # the first new row of its lane
        enters[1:] = place[1:] != place[:-1]
        opens = enters.copy()
        opens[1:] |= final[:-1]
        begin, anchor = row.copy(), row.copy()
        first = np.flatnonzero(enters)
        lane = place[first]
        goes_on = row[first] == self._next[lane]
        begin[first] = np.where(goes_on, self._begin[lane], UNKNOWN)
        anchor[first] = np.where(goes_on, self._anchor[lane], row[first])
        origin = np.maximum.accumulate(np.where(opens, np.arange(count), 0))
        begin, anchor = begin[origin], anchor[origin]

        last = np.append(first[1:], count) - 1
        after = row[last] + 1
        self._next[lane] = after
        self._begin[lane] = np.where(final[last], after, begin[last])
        self._anchor[lane] = np.where(final[last], after, anchor[last])
        return PieceMarks(begin=begin, anchor=anchor)

    def state(self) -> dict[str, Any]:
        """Plain values."""
        return {"next": self._next.tolist(), "begin": self._begin.tolist(), "anchor": self._anchor.tolist()}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from ``state``."""
        self._next, self._begin, self._anchor = (np.asarray(state[n], np.int64) for n in ("next", "begin", "anchor"))
