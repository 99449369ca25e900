"""Rows of a query as text or as an Arrow file, batch by batch."""

from __future__ import annotations

import csv
import json
import math
import os
from collections.abc import Iterable, Iterator, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any, Literal, TextIO

import pyarrow as pa

FileFormat = Literal["csv", "json", "arrow"]


def limited(batches: Iterable[pa.RecordBatch], rows: int | None) -> Iterator[pa.RecordBatch]:
    """The first ``rows`` rows; all where None."""
    left = rows
    for batch in batches:
        if left is None:
            yield batch
            continue
        if left <= 0:
            return
        yield batch.slice(0, left)
        left -= min(left, batch.num_rows)


def write_csv(schema: pa.Schema, batches: Iterable[pa.RecordBatch], file: TextIO) -> int:
    """A header and a line a row; lists and maps as JSON in one cell. Returns: rows."""
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(schema.names)
    rows = 0
    for batch in batches:
        for values in zip(*(column.to_pylist() for column in batch.columns), strict=True):
            writer.writerow([_as_json(value) if isinstance(value, list | dict | tuple) else value for value in values])
        rows += batch.num_rows
    return rows


def write_json(schema: pa.Schema, batches: Iterable[pa.RecordBatch], file: TextIO) -> int:
    """An object a row and line (JSON lines); NaN and infinities, which JSON does not have, as null. Returns: rows.

    Of columns of one name the later ones get a number: an object has each name once.
    """
    rows, names = 0, _unique(schema.names)
    for batch in batches:
        for values in zip(*(column.to_pylist() for column in batch.columns), strict=True):
            file.write(_as_json(dict(zip(names, values, strict=True))) + "\n")
        rows += batch.num_rows
    return rows


def write_arrow(schema: pa.Schema, batches: Iterable[pa.RecordBatch], path: Path) -> int:
    """An Arrow IPC file with zstd buffers. Returns: rows. Raises: OSError."""
    rows = 0
    options = pa.ipc.IpcWriteOptions(compression="zstd")
    with path.open("wb") as file, pa.ipc.new_file(file, schema, options=options) as writer:
        for batch in batches:
            writer.write_batch(batch)
            rows += batch.num_rows
    return rows


def write_file(schema: pa.Schema, batches: Iterable[pa.RecordBatch], output_format: FileFormat, path: Path) -> int:
    """One of the three by its name. Returns: rows. Raises: OSError.

    The file gets its name when it is whole: what was there before stays as it is where a query fails or is ended.
    """
    if path.exists() and not path.is_file():  # a pipe, a device: they have no whole
        return _write(schema, batches, output_format, path)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        rows = _write(schema, batches, output_format, part)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
    return rows


def _write(schema: pa.Schema, batches: Iterable[pa.RecordBatch], output_format: FileFormat, path: Path) -> int:
    if output_format == "arrow":
        return write_arrow(schema, batches, path)
    with path.open("w", encoding="utf-8", newline="") as file:
        return (write_csv if output_format == "csv" else write_json)(schema, batches, file)


def _unique(names: list[str]) -> list[str]:
    taken: set[str] = set()
    unique = []
    for name in names:
        free, number = name, 1
        while free in taken or (number > 1 and free in names):
            free, number = f"{name}_{number}", number + 1
        taken.add(free)
        unique.append(free)
    return unique


def fitting_columns(widths: Sequence[int], room: int) -> list[int]:
    """Which columns of a table stand in a line, from the left; one that does not fit makes place for the next.

    Args:
        widths: of each column, its borders included.
        room: of the line.
    Returns: places of the columns, rising; the first one in any case.
    """
    chosen, left = [0], room - widths[0]
    for place, width in enumerate(widths[1:], start=1):
        if width <= left:
            chosen.append(place)
            left -= width
    return chosen


def cell(value: Any, width: int) -> str:
    """A value for a table on a terminal: floats short, of long lists the first items and their length."""
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, list):
        for most in (8, 3, 1):
            shown = ", ".join(cell(item, width) for item in value[:most])
            text = f"[{shown}, … {len(value)}]" if len(value) > most else f"[{shown}]"
            if len(text) <= width:
                break
        return text
    text = "" if value is None else str(value)
    return text if len(text) <= width else text[: width - 1] + "…"


def _as_json(value: Any) -> str:
    return json.dumps(_plain(value), default=str, ensure_ascii=False)


def _plain(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Decimal):  # DuckDB's sums of integers have 128 bits
        return int(value) if value == value.to_integral_value() else float(value)
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value
