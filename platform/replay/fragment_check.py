"""Whether a fragment fits a ring: columns, sizes, and the rows at the ends of episodes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onibi.platform.errors import ReplayError
from onibi.platform.fragment import StateRows
from onibi.platform.replay.ring.layout import RingLayout, smallest_slots
from onibi.platform.spec import ROLE_FINAL


class FragmentCheck:
    """Checks fragments before anything of them is written."""

    def __init__(self, path: Path, layout: RingLayout) -> None:
        self._path, self._layout = path, layout
        self._dtypes = {column.name: (np.dtype(column.dtype), column.shape) for column in layout.spec.columns}

    def rows(
        self, group: int, rows_per_lane: NDArray[np.int32], columns: Mapping[str, NDArray[Any]]
    ) -> tuple[NDArray[np.int64], int]:
        """Check a fragment's columns against the ring. Returns: [E] committed rows per lane, and the step rows in all.

        Raises: ReplayError, naming the column or row.
        """
        layout = self._layout
        given = np.asarray(rows_per_lane)
        rows = given.astype(np.int64) if given.dtype.kind in "iu" else np.zeros(0, np.int64)
        if rows.ndim != 1 or not 1 <= len(rows) <= layout.lanes_per_group or rows.min() < 0:
            raise ReplayError(
                f"{self._where(group)}: rows_per_lane is {given.tolist()}; it needs 1 to {layout.lanes_per_group} "
                "lanes of 0 or more rows, in integers"
            )
        if columns.keys() != self._dtypes.keys():
            raise ReplayError(
                f"{self._where(group)}: columns missing {sorted(self._dtypes.keys() - columns.keys())}, "
                f"unknown {sorted(columns.keys() - self._dtypes.keys())}; actor and shard must be started with "
                f"one ReplaySpec"
            )
        longest = int(rows.max())
        least = smallest_slots(longest, layout.window_rows)
        if least > layout.slots:
            raise ReplayError(
                f"{self._where(group)}: 4 x ({longest} rows + 1 head row + {layout.window_rows} window rows) = {least} "
                f"slots per lane are needed, the ring has {layout.slots}. Raise replay.capacity_rows or shorten the "
                "fragments"
            )
        height = np.shape(columns["role"])[1] if np.ndim(columns["role"]) == 2 else 0
        leading = (len(rows), height)
        for name, (dtype, shape) in self._dtypes.items():
            column = np.asarray(columns[name])
            if column.dtype != dtype or column.shape != leading + shape or height <= longest:
                raise ReplayError(
                    f"{self._where(group)}: column {name!r} is {column.dtype}{list(column.shape)}, allowed is "
                    f"{dtype}{list(leading + shape)} with at least {longest} + 1 rows; actor and shard must be started "
                    "with one ReplaySpec"
                )
            if not isinstance(columns[name], np.ndarray):  # it would fail in the middle of its commit
                raise ReplayError(
                    f"{self._where(group)}: column {name!r} is a {type(columns[name]).__name__}, allowed is a NumPy "
                    "array"
                )
        return rows, int(rows.sum()) - self._final_rows(group, rows, columns, height)

    def states(self, group: int, rows: NDArray[np.int64], states: Mapping[str, StateRows]) -> None:
        """Check states against the ring and the fragment's committed ``rows`` [E]. Raises: ReplayError, naming one."""
        known = {state.name: state for state in self._layout.spec.states}
        for name, kept in states.items():
            spec = known.get(name)
            if spec is None:
                raise ReplayError(
                    f"{self._where(group)}: unknown state {name!r}, the ring has {sorted(known)}; actor and shard must "
                    "be started with one ReplaySpec"
                )
            places = kept.lane, kept.row
            count = {place.shape for place in places} | {kept.values.shape[:1]}
            if len(count) > 1 or kept.lane.ndim != 1 or any(place.dtype.kind != "i" for place in places):
                raise ReplayError(
                    f"{self._where(group)}: state {name!r} has lanes {kept.lane.dtype}{list(kept.lane.shape)}, rows "
                    f"{kept.row.dtype}{list(kept.row.shape)} and values {list(kept.values.shape)}; allowed are as many "
                    "signed integers each as there are values"
                )
            if kept.values.dtype != spec.dtype or kept.values.shape[1:] != spec.shape:
                raise ReplayError(
                    f"{self._where(group)}: state {name!r} is {kept.values.dtype}{list(kept.values.shape[1:])}, "
                    f"allowed is {spec.dtype}{list(spec.shape)}"
                )
            inside = (kept.lane >= 0) & (kept.lane < len(rows)) & (kept.row >= 0)
            if not (inside & (kept.row < rows[kept.lane * inside])).all():
                raise ReplayError(f"{self._where(group)}: state {name!r} is of rows that the fragment does not commit")

    def _final_rows(self, group: int, rows: NDArray[np.int64], columns: Mapping[str, NDArray[Any]], height: int) -> int:
        """How many committed rows are final. The row after a terminated or truncated step must be: `role` alone ends
        windows. Only the few rows that have a role or a flag are looked at: most of a fragment has neither.
        """
        role = columns["role"]
        marked = np.flatnonzero(role)
        ended = np.flatnonzero(columns["terminated"] | columns["truncated"])
        if not marked.size and not ended.size:
            return 0
        lane, row = np.divmod(marked, height)
        committed = row < rows[lane]
        unknown = committed & (role[lane, row] > ROLE_FINAL)
        if unknown.any():
            at = int(lane[unknown][0]), int(row[unknown][0])
            raise ReplayError(
                f"{self._where(group)}: lane {at[0]}, row {at[1]} has the role {int(role[at])}; allowed are 0 (a step) "
                "and 1 (final)"
            )
        ends, ending = np.divmod(ended, height)
        inside = ending + 1 < rows[ends]
        wrong = role[ends[inside], ending[inside] + 1] != ROLE_FINAL
        if wrong.any():
            first, last = int(ends[inside][wrong][0]), int(ending[inside][wrong][0])
            raise ReplayError(
                f"{self._where(group)}: lane {first}, row {last} ends its episode, but row {last + 1} is not final. "
                "Write the final observation as a row of its own (role final) before the next episode's first"
            )
        return int(np.count_nonzero(committed))

    def _where(self, group: int) -> str:
        return f"{self._path}: fragment of group {group}"
