"""The reused arrays that a rollout fills, lane-major, with each lane's rows in time order."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onibi.platform.spec import ReplaySpec


class FragmentBuffer:
    """Columns [E, R, ...] with room for ``rows`` rows a lane, the head row included."""

    def __init__(self, spec: ReplaySpec, envs: int, rows: int) -> None:
        self._rows = rows
        self._lanes = np.arange(envs)
        self._filled: NDArray[np.int32] = np.zeros(envs, np.int32)
        self._aligned = True  # all lanes hold equally many rows: plain slices instead of fancy indices
        self._columns: dict[str, NDArray[Any]] = {}
        for column in spec.columns:
            name, dtype = ("caption_hash", "uint64") if column.name == "caption_id" else (column.name, column.dtype)
            self._columns[name] = np.zeros((envs, rows, *column.shape), dtype)

    def clear(self) -> None:
        """Forget all rows."""
        self._filled[:] = 0
        self._aligned = True

    def put(self, row: Mapping[str, Any]) -> None:
        """Write the named columns of every lane's next row, each value [E, ...] or a scalar, without ending the row.

        The observation is put before the environment steps: many environments reuse their observation arrays.
        """
        where: Any = (slice(None), int(self._filled[0])) if self._aligned else (self._lanes, self._filled)
        for name, value in row.items():
            self._columns[name][where] = value

    def end_row(self) -> None:
        """Every lane's next row is complete; all its columns must have been put."""
        self._filled += 1

    def append_final(self, row: Mapping[str, Any], lanes: NDArray[np.bool_]) -> None:
        """A whole further row for the lanes marked in ``lanes`` [E]; columns not named are 0."""
        chosen = np.flatnonzero(lanes)
        for name, column in self._columns.items():
            value = row.get(name, 0)
            column[chosen, self._filled[chosen]] = value[chosen] if np.ndim(value) else value
        self._filled[chosen] += 1
        self._aligned = False

    def cut(
        self, head_observation: Mapping[str, NDArray[Any]], head: Mapping[str, Any]
    ) -> tuple[dict[str, NDArray[Any]], NDArray[np.int32]]:
        """Put the head row behind each lane's rows; columns [E, longest + 1, ...] and rows per lane [E]."""
        rows_per_lane = self._filled.copy()
        self.put(dict.fromkeys(self._columns, 0))
        self.put({**head_observation, **head})
        longest = int(rows_per_lane.max()) + 1
        return {
            name: np.ascontiguousarray(column[:, :longest]) for name, column in self._columns.items()
        }, rows_per_lane
