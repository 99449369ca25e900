"""Whether a fragment fits a ring: columns, sizes, and the rows at the ends of episodes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onibi.platform.errors import ReplayError
from onibi.platform.replay.ring_layout import RingLayout, smallest_slots
from onibi.platform.spec import ROLE_FINAL


class FragmentCheck:
    """Checks fragments before anything of them is written."""

    def __init__(self, path: Path, layout: RingLayout) -> None:
        self._path, self._layout = path, layout
        self._dtypes = {column.name: (np.dtype(column.dtype), column.shape) for column in layout.spec.columns}

    def rows(
        self, group: int, rows_per_lane: NDArray[np.int32], columns: Mapping[str, NDArray[Any]]
    ) -> NDArray[np.int64]:
        """Check a fragment's columns against the ring. Returns: [E] committed rows per lane.

        Raises: ReplayError, naming the column or row.
        """
        where = f"{self._path}: fragment of group {group}"
        layout = self._layout
        given = np.asarray(rows_per_lane)
        rows = given.astype(np.int64) if given.dtype.kind in "iu" else np.zeros(0, np.int64)
        if rows.ndim != 1 or not 1 <= len(rows) <= layout.lanes_per_group or rows.min() < 0:
            raise ReplayError(
                f"{where}: rows_per_lane is {given.tolist()}; it needs 1 to {layout.lanes_per_group} lanes of 0 or "
                f"more rows, in integers"
            )
        if columns.keys() != self._dtypes.keys():
            raise ReplayError(
                f"{where}: columns missing {sorted(self._dtypes.keys() - columns.keys())}, "
                f"unknown {sorted(columns.keys() - self._dtypes.keys())}; actor and shard must be started with "
                f"one ReplaySpec"
            )
        longest = int(rows.max())
        least = smallest_slots(longest, layout.window_rows)
        if least > layout.slots:
            raise ReplayError(
                f"{where}: 4 x ({longest} rows + 1 head row + {layout.window_rows} window rows) = {least} slots "
                f"per lane are "
                f"needed, the ring has {layout.slots}. Raise replay.capacity_rows or shorten the fragments"
            )
        height = np.shape(columns["role"])[1] if np.ndim(columns["role"]) == 2 else 0
        for name, (dtype, shape) in self._dtypes.items():
            column = np.asarray(columns[name])
            expected = (len(rows), height, *shape)
            if column.dtype != dtype or column.shape != expected or height <= longest:
                raise ReplayError(
                    f"{where}: column {name!r} is {column.dtype}{list(column.shape)}, allowed is "
                    f"{dtype}{list(expected)} "
                    f"with at least {longest} + 1 rows; actor and shard must be started with one ReplaySpec"
                )
        _check_episodes(where, rows, columns, height)
        return rows


def _check_episodes(where: str, rows: NDArray[np.int64], columns: Mapping[str, NDArray[Any]], height: int) -> None:
    """The row after a terminated or truncated step is final: `role` alone ends windows."""
    role = columns["role"]
    unknown = (role > ROLE_FINAL) & (np.arange(height) < rows[:, None])
    if unknown.any():
        lane, row = (int(index[0]) for index in np.nonzero(unknown))
        raise ReplayError(
            f"{where}: lane {lane}, row {row} has the role {int(role[lane, row])}; allowed are 0 (a step) and 1 (final)"
        )
    ended = (columns["terminated"] | columns["truncated"])[:, :-1].astype(np.bool_)
    follower_is_committed = np.arange(1, height) < rows[:, None]
    wrong = ended & follower_is_committed & (columns["role"][:, 1:] != ROLE_FINAL)
    if wrong.any():
        lane, row = (int(index[0]) for index in np.nonzero(wrong))
        raise ReplayError(
            f"{where}: lane {lane}, row {row} ends its episode, but row {row + 1} is not final. Write the "
            f"final observation "
            "as a row of its own (role final) before the next episode's first"
        )
