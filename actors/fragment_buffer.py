"""The reused arrays that a rollout fills, lane-major, with each lane's rows in time order."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onibi.platform.fragment import StateRows
from onibi.platform.replay.ring.state_ring import is_kept
from onibi.platform.spec import ROLE_FINAL, ReplaySpec


class FragmentBuffer:
    """Columns [E, R, ...] with room for ``rows`` rows a lane, the head row included.

    A column that is never put stays 0.
    """

    def __init__(self, spec: ReplaySpec, envs: int, rows: int) -> None:
        self._lanes = np.arange(envs)
        self._filled: NDArray[np.int32] = np.zeros(envs, np.int32)
        self._row = 0  # of all lanes, while they are aligned
        self._aligned = True  # all lanes hold equally many rows: plain slices instead of fancy indices
        self._columns: dict[str, NDArray[Any]] = {}
        for column in spec.columns:
            name, dtype = ("caption_hash", "uint64") if column.name == "caption_id" else (column.name, column.dtype)
            self._columns[name] = np.zeros((envs, rows, *column.shape), dtype)
        self._put: set[str] = set()
        self._periods = {state.name: state.period for state in spec.states}
        self._kept: dict[str, list[tuple[NDArray[np.int64], NDArray[np.int64], NDArray[Any]]]] = {}
        self._no_states = {state.name: np.zeros((0, *state.shape), state.dtype) for state in spec.states}

    def clear(self) -> None:
        """Forget all rows."""
        self._filled[:] = 0
        self._row, self._aligned = 0, True
        self._kept = {name: [] for name in self._periods}

    def put_states(self, states: Mapping[str, NDArray[Any]], step: NDArray[Any]) -> None:
        """Keep the states [E, ...] of every lane's next row where its ``step`` [E] is one that keeps them."""
        for name, period in self._periods.items():
            lanes = np.flatnonzero(is_kept(step, period))
            if len(lanes):
                self._kept[name].append((lanes, self._filled[lanes].astype(np.int64), states[name][lanes]))

    def cut_states(self) -> dict[str, StateRows]:
        """What was kept since ``clear``, by name, in arrays of their own."""
        none = np.zeros(0, np.int64)
        return {
            name: StateRows(*map(np.concatenate, zip((none, none, self._no_states[name]), *kept, strict=True)))
            for name, kept in self._kept.items()
        }

    def put(self, row: Mapping[str, Any]) -> None:
        """Write the named columns of every lane's next row, each value [E, ...] or a scalar, without ending the row.

        The observation is put before the environment steps: many environments reuse their observation arrays.
        """
        columns = self._columns
        if self._aligned:
            at = self._row
            for name, value in row.items():
                columns[name][:, at] = value
        else:
            where = (self._lanes, self._filled)
            for name, value in row.items():
                columns[name][where] = value
        self._put.update(row)

    def end_row(self) -> None:
        """Every lane's next row is complete; all its columns must have been put."""
        self._filled += 1
        self._row += 1

    def append_final(self, row: Mapping[str, Any], lanes: NDArray[np.intp]) -> None:
        """A whole further row for ``lanes`` (their numbers); columns not named are 0."""
        at = (lanes, self._filled[lanes])
        for name in self._put.union(row):
            value = row.get(name, 0)
            self._columns[name][at] = value[lanes] if np.ndim(value) else value
        self._put.update(row)
        self._filled[lanes] += 1
        self._aligned = False

    def zero_final_rows(self, kept: Iterable[str]) -> None:
        """Set all columns but ``kept`` to 0 in rows whose role is final: for lanes whose reset step was put as a step.

        Once a fragment, as it would cost too much at every step.
        """
        longest = int(self._filled.max())
        final = self._columns["role"][:, :longest] == ROLE_FINAL
        final &= np.arange(longest) < self._filled[:, None]
        where = np.nonzero(final)
        for name in self._put.difference(kept, ("role",)):
            self._columns[name][where] = 0

    def cut(
        self, head_observation: Mapping[str, NDArray[Any]], head: Mapping[str, Any]
    ) -> tuple[dict[str, NDArray[Any]], NDArray[np.int32]]:
        """Put the head row behind each lane's rows; columns [E, longest + 1, ...] and rows per lane [E]."""
        rows_per_lane = self._filled.copy()
        self.put({**dict.fromkeys(self._put, 0), **head_observation, **head})
        longest = int(rows_per_lane.max()) + 1
        return {
            name: np.ascontiguousarray(column[:, :longest]) for name, column in self._columns.items()
        }, rows_per_lane
