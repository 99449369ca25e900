"""Several draws as one Arrow record batch, a draw a row: one message, read at the other end without a copy."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from onibi.platform.errors import ReplayError
from onibi.platform.replay.samplers.draws import Batch
from onibi.platform.replay.samplers.fifo_sampler import Slab
from onibi.platform.replay.samplers.sequences import Sequences
from onibi.platform.replay.samplers.windows import Windows

_KINDS: dict[str, type[Windows] | type[Sequences] | type[Slab]] = {
    "windows": Windows,
    "sequences": Sequences,
    "slab": Slab,
}
_DERIVED = ("observation", "bootstrap_observation")
"""Fields of ``Windows`` that are views of ``pairs``."""


def draw_arrays(draw: Batch) -> Iterator[tuple[str, NDArray[Any]]]:
    """(name, array) of all that a draw consists of; what is kept by name, as ``pairs.NAME``, ``observation.NAME`` ….

    Raises: ReplayError where windows have no ``pairs``: they were not made by a sampler.
    """
    derived: tuple[str, ...] = ()
    if isinstance(draw, Windows):
        if draw.observation.keys() != draw.pairs.keys():
            raise ReplayError("these windows have no pairs; only those of a sampler's allocate() can be sent")
        derived = _DERIVED
    for field in fields(draw):
        value = getattr(draw, field.name)
        if field.name in derived:
            continue
        if isinstance(value, dict):
            yield from ((f"{field.name}.{name}", array) for name, array in value.items())
        else:
            yield field.name, value


def draw_of(like: type[Batch], arrays: Mapping[str, NDArray[Any]]) -> Batch:
    """The draw that ``draw_arrays`` took apart."""
    values: dict[str, Any] = {}
    for name, array in arrays.items():
        part, dot, leaf = name.partition(".")
        if dot:
            values.setdefault(part, {})[leaf] = array
        else:
            values[part] = array
    if like is Windows:
        pairs = values.setdefault("pairs", {})
        for place, name in enumerate(_DERIVED):
            values[name] = {leaf: pair[:, place] for leaf, pair in pairs.items()}
    elif "observation" not in values:
        values["observation"] = {}
    return like(**values)


class DrawsRoom:
    """Memory for draws one behind the other; each part is filled by a sampler's ``draw(out=part)``.

    Args:
        like: a draw whose shapes, dtypes and weights all parts have.
        draws: how many there is room for.
    """

    def __init__(self, like: Batch, draws: int) -> None:
        self._kind = next(name for name, kind in _KINDS.items() if isinstance(like, kind))
        self._arrays = {name: np.empty((draws, *array.shape), array.dtype) for name, array in draw_arrays(like)}
        if "weight" in self._arrays:  # the one array that allocate() fills and uniform draws leave alone
            self._arrays["weight"][:] = dict(draw_arrays(like))["weight"]
        self.parts: Sequence[Batch] = [
            draw_of(type(like), {name: array[number] for name, array in self._arrays.items()})
            for number in range(draws)
        ]

    def put(self, number: int, drawn: Batch) -> None:
        """Keep a draw that was made into the part with this number: some of its arrays may lie elsewhere."""
        for name, array in draw_arrays(drawn):
            place = self._arrays[name][number]
            if not np.may_share_memory(place, array):
                np.copyto(place, array)

    def to_record_batch(self, draws: int) -> pa.RecordBatch:
        """The first so many: a row each, arrays as fixed-size lists in C order. Copies nothing."""
        columns, names = [], []
        for name, array in self._arrays.items():
            flat = array[:draws].reshape(-1)
            kind = "uint8" if array.dtype == np.bool_ else array.dtype.name
            values = pa.Array.from_buffers(
                pa.from_numpy_dtype(np.dtype(kind)), len(flat), [None, pa.py_buffer(flat.view(np.uint8))]
            )
            columns.append(pa.FixedSizeListArray.from_arrays(values, int(np.prod(array.shape[1:], dtype=np.int64))))
            metadata = {"dtype": array.dtype.name, "shape": ",".join(map(str, array.shape[1:]))}
            names.append(pa.field(name, columns[-1].type, nullable=False, metadata=metadata))
        return pa.RecordBatch.from_arrays(columns, schema=pa.schema(names, {"onibi_draws": self._kind}))


def to_record_batch(draw: Batch) -> pa.RecordBatch:
    """One draw, as ``DrawsRoom.to_record_batch``."""
    room = DrawsRoom(draw, 1)
    room.put(0, draw)
    return room.to_record_batch(1)


def from_record_batch(batch: pa.RecordBatch, row: int) -> Batch:
    """One of the draws in a batch: read-only views of its memory.

    Raises: ReplayError where the batch holds no draws.
    """
    kind = (batch.schema.metadata or {}).get(b"onibi_draws", b"").decode()
    if kind not in _KINDS:
        raise ReplayError(
            f"a record batch with the columns {batch.schema.names[:8]} holds no draws; pass what to_record_batch gave"
        )
    arrays = {}
    for field, column in zip(batch.schema, batch.slice(row, 1).columns, strict=True):
        shape = [int(size) for size in field.metadata[b"shape"].decode().split(",") if size]
        flat = column.flatten().to_numpy(zero_copy_only=True)
        arrays[field.name] = flat.view(field.metadata[b"dtype"].decode()).reshape(shape)
    return draw_of(_KINDS[kind], arrays)
