"""Windows as one Arrow record batch: several draws in one message, read at the other end without a copy."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from onibi.platform.errors import ReplayError
from onibi.platform.replay.windows import Windows

_LEAVES = ("pairs", "extra", "row_extra", "trail")
"""Fields of ``Windows`` that hold arrays by name; in a batch their columns are ``pairs.NAME``, ``extra.NAME`` …"""
_DERIVED = ("observation", "bootstrap_observation")
"""Fields that are views of ``pairs``."""


def stacked_windows(like: Windows, draws: int) -> tuple[Windows, list[Windows]]:
    """Room for several draws one behind the other: all of it, and each draw's part, C-contiguous like ``like``."""
    room = {name: np.empty((draws * len(array), *array.shape[1:]), array.dtype) for name, array in window_arrays(like)}
    size = like.batch_size
    room["weight"][:] = np.tile(like.weight, draws)  # the one array that allocate() fills and uniform draws leave alone
    parts = [
        windows_of({name: array[begin * size : (begin + 1) * size] for name, array in room.items()})
        for begin in range(draws)
    ]
    return windows_of(room), parts


def to_windows_batch(windows: Windows) -> pa.RecordBatch:
    """One row per window; scalars as primitives, arrays as fixed-size lists in C order. Copies nothing."""
    arrays, columns = [], []
    for name, array in window_arrays(windows):
        flat = np.ascontiguousarray(array).reshape(-1)
        kind = "uint8" if array.dtype == np.bool_ else array.dtype.name
        values = pa.Array.from_buffers(
            pa.from_numpy_dtype(np.dtype(kind)), len(flat), [None, pa.py_buffer(flat.view(np.uint8))]
        )
        width = int(np.prod(array.shape[1:], dtype=np.int64))
        if array.ndim > 1:
            values = pa.FixedSizeListArray.from_arrays(values, width)
        metadata = {"dtype": array.dtype.name, "shape": ",".join(map(str, array.shape[1:]))}
        columns.append(pa.field(name, values.type, nullable=False, metadata=metadata))
        arrays.append(values)
    return pa.RecordBatch.from_arrays(arrays, schema=pa.schema(columns, {"onibi_batch": "windows"}))


def from_windows_batch(batch: pa.RecordBatch) -> Windows:
    """The windows of a batch: read-only views of its memory.

    Raises: ReplayError where the batch was not made by ``to_windows_batch``.
    """
    if (batch.schema.metadata or {}).get(b"onibi_batch") != b"windows":
        raise ReplayError(
            f"a record batch with the columns {batch.schema.names[:8]} holds no windows; pass what "
            "to_windows_batch gave"
        )
    arrays = {}
    for field, column in zip(batch.schema, batch.columns, strict=True):
        shape = [int(size) for size in field.metadata[b"shape"].decode().split(",") if size]
        values = column.flatten() if pa.types.is_fixed_size_list(field.type) else column
        flat = values.to_numpy(zero_copy_only=True)
        arrays[field.name] = flat.view(field.metadata[b"dtype"].decode()).reshape(batch.num_rows, *shape)
    return windows_of(arrays)


def window_arrays(windows: Windows) -> Iterator[tuple[str, NDArray[Any]]]:
    """(name, array) of all that windows consist of; leaves as ``pairs.NAME``, ``extra.NAME`` ….

    Raises: ReplayError where the windows have no ``pairs``: they were not made by a sampler.
    """
    if windows.observation.keys() != windows.pairs.keys():
        raise ReplayError("these windows have no pairs; only those of a sampler's allocate() can be sent")
    for field in fields(Windows):
        value = getattr(windows, field.name)
        if field.name in _LEAVES:
            yield from ((f"{field.name}.{name}", array) for name, array in value.items())
        elif field.name not in _DERIVED:
            yield field.name, value


def windows_of(arrays: dict[str, NDArray[Any]]) -> Windows:
    """The windows that ``window_arrays`` took apart."""
    leaves: dict[str, dict[str, NDArray[Any]]] = {part: {} for part in _LEAVES}
    plain = {}
    for name, array in arrays.items():
        part, _, leaf = name.partition(".")
        if part in leaves:
            leaves[part][leaf] = array
        else:
            plain[name] = array
    pairs = leaves["pairs"]
    return Windows(
        observation={name: pair[:, 0] for name, pair in pairs.items()},
        bootstrap_observation={name: pair[:, 1] for name, pair in pairs.items()},
        pairs=pairs,
        extra=leaves["extra"],
        row_extra=leaves["row_extra"],
        trail=leaves["trail"],
        **plain,
    )
