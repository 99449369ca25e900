"""Episodes as they lie in a log, put together again from its segments.

    row          step  step  step  final | step  step  step   (log ends)
    step            0     1     2      3 |    0     1     2
    flags                      T         |
    piece        whole: 3 steps, 4 observations | open: 2 steps, 3 observations

A *piece* is what the log holds of an episode without a gap. Where the log ends behind a step row, the observation that
this step led to is not in it: the row gives the piece its last observation, and its own step is left out.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from pyarrow import Table

from onibi.platform.replay.datasets.row_columns import LaneRows, joined, lanes_of
from onibi.platform.spec import ROLE_FINAL, ReplaySpec


@dataclass(frozen=True, kw_only=True)
class EpisodePiece:
    """The rows of one episode that follow each other in a lane; the last one is read for its observation alone."""

    shard: int
    rows: LaneRows  # T + 1 rows

    @property
    def steps(self) -> int:
        """T."""
        return len(self.rows) - 1

    @property
    def episode_id(self) -> int:
        """As the actor gave it, unique in the run."""
        return int(self.rows.columns["episode_id"][0])

    @property
    def begun(self) -> bool:
        """Its first step is the episode's first."""
        return int(self.rows.columns["step"][0]) == 0

    @property
    def ended(self) -> bool:
        """The environment ended it: its last step is flagged terminated or truncated."""
        last = self.steps - 1
        return last >= 0 and bool(self.rows.columns["terminated"][last] | self.rows.columns["truncated"][last])

    @property
    def final_stored(self) -> bool:
        """The last row is a final row, so no step was left out for want of the observation that it led to."""
        return int(self.rows.columns["role"][-1]) == ROLE_FINAL

    @property
    def episode_return(self) -> float:
        """Undiscounted sum of the environment's rewards over the steps of the piece."""
        return float(self.rows.columns["reward"][: self.steps].sum(dtype=np.float64))


def episode_pieces(spec: ReplaySpec, tables: Iterable[tuple[int, Table]]) -> Iterator[EpisodePiece]:
    """Pieces in the order in which they end, those open at the log's end last.

    Args:
        tables: (shard, rows table) of each segment, in the order of the segments; one is in memory at a time, and
            beside it the open episode of each lane.
    """
    waiting: dict[tuple[int, int], list[LaneRows]] = {}
    for shard, table in tables:
        for rows in lanes_of(spec, table):
            parts = waiting.pop((shard, rows.lane), [])
            for begin, end, complete in _spans(rows, parts[-1] if parts else None):
                if begin == 0 and end == 0:  # what waits ended with the segment before
                    yield from _piece(shard, parts)
                    parts = []
                    continue
                parts.append(rows.part(begin, end))
                if complete:
                    yield from _piece(shard, parts)
                    parts = []
            if parts:
                # A copy: a view would keep its whole segment in memory for as long as the episode goes on.
                parts[-1] = _copied(parts[-1])
                waiting[shard, rows.lane] = parts
    for (shard, _), parts in sorted(waiting.items(), key=lambda item: item[0]):
        yield from _piece(shard, parts)


def piece_ends(rows: LaneRows) -> NDArray[np.intp]:
    """Indices of rows behind which a piece ends: final rows, and rows whose follower is not the lane's next."""
    breaks = (rows.columns["role"] == ROLE_FINAL)[:-1] | (np.diff(rows.generation) != 1)
    last = [len(rows) - 1] if len(rows) and rows.columns["role"][-1] == ROLE_FINAL else []
    return np.concatenate([np.flatnonzero(breaks), np.array(last, np.intp)])


def _spans(rows: LaneRows, before: LaneRows | None) -> Iterator[tuple[int, int, bool]]:
    """(begin, end, whether a piece ends there); (0, 0, True) first where these rows do not follow the waiting ones."""
    if before is not None and int(rows.generation[0]) != int(before.generation[-1]) + 1:
        yield 0, 0, True
    begin = 0
    for end in piece_ends(rows).tolist():
        yield begin, end + 1, True
        begin = end + 1
    if begin < len(rows):
        yield begin, len(rows), False


def _piece(shard: int, parts: list[LaneRows]) -> Iterator[EpisodePiece]:
    piece = EpisodePiece(shard=shard, rows=joined(parts))
    if piece.steps > 0:  # a lone row has no step that leads anywhere
        yield piece


def _copied(rows: LaneRows) -> LaneRows:
    return LaneRows(
        lane=rows.lane,
        generation=rows.generation.copy(),
        columns={name: values.copy() for name, values in rows.columns.items()},
    )
