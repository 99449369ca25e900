"""A checked copy of a live ring as an Arrow table, taken while its writer goes on."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from onibi.platform.errors import ReplayError
from onibi.platform.replay.ring.reader import RingReader
from onibi.platform.replay.ring.row_table import PLACE_FIELDS, row_arrays, rows_schema

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
    names = schema.names[len(PLACE_FIELDS) :]
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
        batches.append(
            pa.RecordBatch.from_arrays(row_arrays(schema, lane.astype(np.int32), row, copied), schema=schema)
        )
    told = {
        "overtaken_rows": str(overtaken),
        "run_id": reader.layout.run_id,
        "inserted_rows": str(snapshot.inserted_rows),
    }
    return pa.Table.from_batches(batches, schema).replace_schema_metadata({**(schema.metadata or {}), **told})
