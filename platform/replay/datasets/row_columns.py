"""Rows of a log as NumPy columns: what converters and checks work on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from onibi.platform.spec import ReplaySpec

Columns = Mapping[str, NDArray[Any]]
"""Ring columns by name, each [rows, ...] in the ring's dtype."""


@dataclass(frozen=True, kw_only=True)
class LaneRows:
    """Rows of one lane in the order of their generations."""

    lane: int
    generation: NDArray[np.int64]  # [N], rising
    columns: Columns

    def __len__(self) -> int:
        return len(self.generation)

    def part(self, begin: int, end: int) -> LaneRows:
        """Rows ``begin`` to ``end - 1``; views, no copies."""
        return LaneRows(
            lane=self.lane,
            generation=self.generation[begin:end],
            columns={name: values[begin:end] for name, values in self.columns.items()},
        )


def row_columns(spec: ReplaySpec, table: pa.Table) -> dict[str, NDArray[Any]]:
    """The ring columns of a rows table.

    Args:
        table: with all columns of the spec; ``lane``, ``generation`` and others are left out.
    Returns: each [rows, ...] in the ring's dtype, flags as uint8; views of the table's memory where it is one chunk.
    """
    columns = {}
    for column in spec.columns:
        chunk = table.column(column.name).combine_chunks()
        if pa.types.is_fixed_size_list(chunk.type):
            chunk = chunk.flatten()
        flat = chunk.to_numpy(zero_copy_only=False)
        dtype = np.dtype(column.dtype)
        # Arrow stores the ring's bool columns as bytes, and the ring's byte flags as Arrow bool.
        flat = flat.astype(dtype, copy=False)
        columns[column.name] = flat.reshape(-1, *column.shape)
    return columns


def lanes_of(spec: ReplaySpec, table: pa.Table) -> Iterator[LaneRows]:
    """The lanes of a rows table one after the other, each with its rows by generation."""
    lane = table.column("lane").to_numpy()
    generation = table.column("generation").to_numpy()
    columns = row_columns(spec, table)
    order = np.lexsort((generation, lane))
    borders = np.flatnonzero(np.diff(lane[order])) + 1
    for rows in np.split(order, borders):
        if len(rows):
            yield LaneRows(
                lane=int(lane[rows[0]]),
                generation=generation[rows],
                columns={name: values[rows] for name, values in columns.items()},
            )


def joined(parts: Sequence[LaneRows]) -> LaneRows:
    """Rows of one lane, one part after the other."""
    if len(parts) == 1:
        return parts[0]
    return LaneRows(
        lane=parts[0].lane,
        generation=np.concatenate([part.generation for part in parts]),
        columns={name: np.concatenate([part.columns[name] for part in parts]) for name in parts[0].columns},
    )
