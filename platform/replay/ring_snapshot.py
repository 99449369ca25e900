"""A checked copy of a live ring as an Arrow table, taken while its writer goes on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from onibi.platform.errors import ReplayError
from onibi.platform.replay.ring_reader import RingReader
from onibi.platform.replay.schema import arrow_schema
from onibi.platform.spec import ReplaySpec

LANE, GENERATION = "lane", "generation"
"""The columns before those of the row: its lane, and its absolute number in it."""
FLAGS = ("terminated", "truncated")
"""Columns that are uint8 in the ring and bool in tables."""

_BLOCK_BYTES = 16 * 2**20
"""Rows copied between two end checks: the less, the fewer are lost where the writer overtakes the copy."""


def snapshot_table(
    reader: RingReader, columns: Sequence[str] | None = None, lanes: Sequence[int] | None = None
) -> pa.Table:
    """The committed rows of one moment, by lane and age, oldest first; heads are no rows and are left out.

    Every row is whole: what the writer overwrote (or may have) before its block was checked is left out and counted.

    Args:
        columns: names to copy (None: all); they stand in the ring's order, behind ``lane`` and ``generation``.
        lanes: lanes to copy (None: all).

    Returns: one chunk per checked block; types as ``rows_schema``. The schema's metadata also hold
        ``overtaken_rows`` (left out), ``run_id`` and ``inserted_rows`` (step rows in all of the ring's time).
    Raises: ReplayError for a column or lane that the ring does not have.
    """
    schema = rows_schema(reader.spec, columns)
    chosen = np.arange(reader.lanes) if lanes is None else np.unique(np.asarray(lanes, np.int64))
    if len(chosen) and (chosen[0] < 0 or chosen[-1] >= reader.lanes):
        raise ReplayError(f"{reader.path}: lanes {chosen.tolist()} asked for, the ring has 0 to {reader.lanes - 1}")
    names = schema.names[2:]
    row_bytes = sum(column.row_bytes for column in reader.spec.columns if column.name in names)
    block = max(1, _BLOCK_BYTES // max(1, row_bytes))
    snapshot = reader.snapshot()
    oldest, cursor = snapshot.oldest[chosen], snapshot.cursor[chosen]
    ends = np.cumsum(cursor - oldest)
    total = int(ends[-1]) if len(ends) else 0
    batches, overtaken = [], 0
    for begin in range(0, total, block):
        place = np.arange(begin, min(begin + block, total))
        index = np.searchsorted(ends, place, side="right")
        lane, row = chosen[index], place + (cursor - ends)[index]
        at = lane * reader.slots + row % reader.slots
        copied = {name: np.take(reader.columns[name], at, axis=0) for name in names}
        whole = row >= reader.oldest_now()[lane]  # the end check, after the last read
        if not whole.all():
            overtaken += int(np.count_nonzero(~whole))
            lane, row = lane[whole], row[whole]
            copied = {name: column[whole] for name, column in copied.items()}
        batches.append(rows_batch(schema, lane, row, copied))
    told = {
        "overtaken_rows": str(overtaken),
        "run_id": reader.layout.run_id,
        "inserted_rows": str(snapshot.inserted_rows),
    }
    return pa.Table.from_batches(batches, schema).replace_schema_metadata({**(schema.metadata or {}), **told})


def rows_schema(spec: ReplaySpec, columns: Sequence[str] | None = None) -> pa.Schema:
    """How rows stand in a table: ``lane`` int32, ``generation`` int64, then ``arrow_schema`` with its flags as bool.

    Without the first two columns it is still a schema that ``spec_from_arrow`` understands, if all columns are there.

    Args:
        columns: the row's columns (None: all); their order is the spec's.
    Raises: ReplayError for an unknown column.
    """
    whole = arrow_schema(spec)
    if unknown := set(columns or ()) - {*whole.names, LANE, GENERATION}:
        raise ReplayError(f"no replay columns {sorted(unknown)}; there are {sorted(whole.names)}")
    fields = [pa.field(LANE, pa.int32(), nullable=False), pa.field(GENERATION, pa.int64(), nullable=False)]
    for field in whole:
        if columns is None or field.name in columns:
            fields.append(field.with_type(pa.bool_()) if field.name in FLAGS else field)
    return pa.schema(fields, metadata=whole.metadata)


def rows_batch(
    schema: pa.Schema, lane: NDArray[np.int64], generation: NDArray[np.int64], columns: Mapping[str, NDArray[Any]]
) -> pa.RecordBatch:
    """Rows as a record batch of ``rows_schema``.

    Args:
        columns: the schema's columns by name, each [rows, ...] in the ring's dtype; no copy of them but of the flags.
    """
    arrays = [pa.array(lane.astype(np.int32)), pa.array(np.ascontiguousarray(generation))]
    for field in list(schema)[2:]:
        flat = np.ascontiguousarray(columns[field.name]).reshape(-1)
        if pa.types.is_boolean(field.type):
            arrays.append(pa.array(flat != 0))
            continue
        values = pa.array(flat.view(np.uint8) if flat.dtype == np.bool_ else flat)
        if pa.types.is_fixed_size_list(field.type):
            values = pa.FixedSizeListArray.from_arrays(values, type=field.type)
        arrays.append(values)
    return pa.RecordBatch.from_arrays(arrays, schema=schema)
