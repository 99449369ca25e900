"""Finished trajectories of a ring: where each lies and what it returned."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onibi.platform.replay.episode_pieces import UNKNOWN, EpisodePieces
from onibi.platform.replay.ring.reader import RingReader
from onibi.platform.replay.row_intake import RowIntake
from onibi.platform.replay.samplers.frame_stack import first_read
from onibi.platform.spec import ROLE_FINAL

_FIELDS = ("place", "begin", "end", "episode_return")


@dataclass(frozen=True, kw_only=True)
class Trajectories:
    """Whole, finished trajectories that can still be read; arrays [M]."""

    place: NDArray[np.int64]
    """Place of the lane among the intake's lanes."""
    begin: NDArray[np.int64]
    end: NDArray[np.int64]
    """Its final row; its steps are the rows from ``begin`` to ``end - 1``, at least one."""
    episode_return: NDArray[np.float64]
    """Undiscounted sum of the environment's own rewards."""

    def __len__(self) -> int:
        return len(self.begin)


class TrajectoryIntake:
    """Sums rewards as rows come in, and keeps a list of the trajectories that have ended.

    Finished is a piece that was seen to begin with step 0 of its episode, and whose last step terminated or truncated.
    Not finished are: the one that is being played, what a gap or a dead actor left of one, before it or behind it, one
    whose first rows were overwritten, or one of the ``look_back`` rows before these. One whose return is not finite is
    left out: no softmax has a place for it.
    """

    def __init__(self, reader: RingReader, lanes: NDArray[np.int64], look_back: int = 0) -> None:
        self._look_back = look_back
        self._pieces = EpisodePieces(len(lanes))
        self._intake = RowIntake(reader, lanes, ("role", "step", "reward", "terminated", "truncated"))
        self._sum = np.zeros(len(lanes))  # of the open piece's rewards
        self._ended = np.zeros(len(lanes), np.bool_)  # whether the lane's newest row ended its episode
        self._entire = np.zeros(len(lanes), np.bool_)  # whether the open piece began with its episode
        self._known = Trajectories(**_empty())

    @property
    def cursor(self) -> NDArray[np.int64]:
        """[L'] of the last ``take``."""
        return self._intake.taken

    def take(self) -> Trajectories:
        """Those that can be read now, by lane and age within what came at once."""
        rows = self._intake.take()
        marks = self._pieces.mark(rows)
        known = self._known
        if len(rows):
            place, row, columns = rows.place, rows.row, rows.columns
            head = np.ones(len(rows), np.bool_)
            head[1:] = (place[1:] != place[:-1]) | (marks.anchor[1:] != marks.anchor[:-1])
            first = np.flatnonzero(head)
            last = np.append(first[1:], len(rows)) - 1
            lane = place[first]
            goes_on = marks.anchor[first] < row[first]  # the piece was begun in an earlier intake
            total = np.add.reduceat(columns["reward"].astype(np.float64), first) + np.where(goes_on, self._sum[lane], 0)
            ended = (columns["terminated"] | columns["truncated"]) != 0
            ended_before = np.where(last > first, ended[np.maximum(last - 1, 0)], goes_on & self._ended[lane])
            entire = np.where(goes_on, self._entire[lane], columns["step"][first] == 0)
            entire &= marks.begin[first] != UNKNOWN
            whole = (columns["role"][last] == ROLE_FINAL) & ended_before & entire & np.isfinite(total)
            news = {"place": lane, "begin": marks.begin[first], "end": row[last], "episode_return": total}
            known = Trajectories(
                **{name: np.concatenate([getattr(known, name), news[name][whole]]) for name in _FIELDS}
            )
            self._sum[lane] = total  # of the lane's last piece: numpy stores in order
            self._ended[lane] = ended[last]
            self._entire[lane] = entire
        kept = first_read(known.begin, self._look_back) >= rows.oldest[known.place]
        if not kept.all():
            known = Trajectories(**{name: getattr(known, name)[kept] for name in _FIELDS})
        self._known = known
        return known

    def state(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "taken": self._intake.taken.tolist(),
            "pieces": self._pieces.state(),
            "sum": self._sum.tolist(),
            "ended": self._ended.tolist(),
            "entire": self._entire.tolist(),
            **{name: getattr(self._known, name).tolist() for name in _FIELDS},
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from ``state``. Raises: ReplayError where it belongs to another ring."""
        self._intake.restore(np.asarray(state["taken"], np.int64))
        self._pieces.restore(state["pieces"])
        self._sum = np.asarray(state["sum"], np.float64)
        self._ended = np.asarray(state["ended"], np.bool_)
        # Older checkpoints have none: what was open then is left out.
        self._entire = np.asarray(state.get("entire", np.zeros_like(self._ended)), np.bool_)
        dtypes = _empty()
        self._known = Trajectories(**{name: np.asarray(state[name], dtypes[name].dtype) for name in _FIELDS})


def _empty() -> dict[str, NDArray[Any]]:
    return {name: np.zeros(0, np.float64 if name == "episode_return" else np.int64) for name in _FIELDS}
