"""How rows stand in Arrow tables, in memory and on disk: where each lies, then its columns, flags as bool."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from onibi.platform.errors import ReplayError, SpecError
from onibi.platform.replay.schema import arrow_schema
from onibi.platform.spec import ReplaySpec

PLACE_FIELDS = (
    pa.field("lane", pa.int32(), nullable=False),
    pa.field("generation", pa.int64(), nullable=False),
)
"""Stand before the columns of ``arrow_schema``: whose row, and its absolute number in its lane."""
FLAGS = ("terminated", "truncated")
"""Columns that are uint8 in the ring and bool in tables."""


def rows_schema(spec: ReplaySpec, columns: Sequence[str] | None = None) -> pa.Schema:
    """``lane`` int32, ``generation`` int64, then the fields of ``arrow_schema`` with its flags as bool.

    Without the first two columns it is still a schema that ``spec_from_arrow`` understands, if all columns are there;
    of states it knows nothing.

    Args:
        spec: row layout of the run.
        columns: the row's columns (None: all); their order is the spec's.
    Raises: ReplayError for an unknown column, SpecError where a column of the run is called ``lane`` or ``generation``.
    """
    row, places = arrow_schema(replace(spec, states=())), [field.name for field in PLACE_FIELDS]
    if taken := set(places) & set(row.names):
        raise SpecError(f"replay columns {sorted(taken)} have names of tables' own; rename the extra columns")
    if unknown := set(columns or ()) - {*row.names, *places}:
        raise ReplayError(f"no replay columns {sorted(unknown)}; there are {sorted(row.names)}")
    chosen = [field for field in row if columns is None or field.name in columns]
    fields = [field.with_type(pa.bool_()) if field.name in FLAGS else field for field in chosen]
    return pa.schema([*PLACE_FIELDS, *fields], metadata=row.metadata)


def row_arrays(
    schema: pa.Schema, lane: NDArray[np.int32], generation: NDArray[np.int64], columns: Mapping[str, NDArray[Any]]
) -> list[pa.Array]:
    """The arrays of a table of ``rows_schema``; they share the columns' memory, but for the flags.

    Args:
        schema: which columns, and their types.
        lane: [N], with ``generation`` [N] the place of each row.
        columns: each [N, ...] in the ring's dtypes.
    """
    arrays = [pa.array(lane), pa.array(generation)]
    for field in list(schema)[len(PLACE_FIELDS) :]:
        flat = np.ascontiguousarray(columns[field.name]).reshape(-1)
        if pa.types.is_boolean(field.type):
            arrays.append(pa.array(flat.astype(np.bool_)))
            continue
        values = pa.array(flat.view(np.uint8) if flat.dtype == np.bool_ else flat)  # Arrow packs its bools in bits
        if pa.types.is_fixed_size_list(field.type):
            values = pa.FixedSizeListArray.from_arrays(values, type=field.type)
        arrays.append(values)
    return arrays
