"""How a ring's row numbers become a log's: the log's never come back, a new ring begins at 0."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from onibi.platform.replay.log.segment_format import RingOrigin
from onibi.platform.replay.log.segment_writer import OpenedLog
from onibi.platform.replay.ring.reader import RingReader


def ring_origin(opened: OpenedLog, ring: RingReader) -> tuple[RingOrigin, tuple[int, ...], NDArray[np.int64]]:
    """How the ring's row numbers become the log's; next generations of lanes that this ring does not have; and [L] the
    ring's first rows that are not in the log.

    ``opened.unknown_rows`` numbers are left free in every lane: rows of the same ring that a group of which nothing can
    be read may hold are logged again, under numbers of their own.
    """
    known = np.zeros(ring.lanes, np.int64)
    given = opened.next_generation[: ring.lanes]
    known[: len(given)] = given
    others = tuple(number + opened.unknown_rows for number in opened.next_generation[ring.lanes :])
    last = opened.last
    if last and (last.ring.created_unix_ns, len(last.ring.first_generation)) == (ring.created_unix_ns, ring.lanes):
        first = np.array(last.ring.first_generation, np.int64)
        next_row = np.maximum(known - first, 0)
    else:
        # Another ring: its rows do not go on where the last one's ended. One number stays free, and says so. Rows that
        # it was given from this log are not logged again; another log that it is new to begins with them.
        begin, behind = ring.restored
        next_row = np.where(known > 0, behind, begin)
        first = np.where(known > 0, known + 1 - next_row, 0)
    first += opened.unknown_rows
    return RingOrigin(created_unix_ns=ring.created_unix_ns, first_generation=tuple(first.tolist())), others, next_row
