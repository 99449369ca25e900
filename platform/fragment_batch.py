"""A fragment as one Arrow record batch: what crosses processes. No copy either way for whole arrays."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from onibi.platform.errors import ReplayError
from onibi.platform.fragment import CaptionText, EpisodeStatistics, Fragment, KeyText, StateRows

_HEAD_KEYS = ("actor", "incarnation", "sequence", "env_steps")
_EPISODE_FIGURES = tuple(each.name for each in dataclasses.fields(EpisodeStatistics) if each.name != "extra")


def to_batch(fragment: Fragment) -> pa.RecordBatch:
    """E × R rows, lane-major; scalars as primitives, arrays as fixed-size lists in C order.

    A state is a list column, null but in the rows that keep one: the others take no room. The schema's metadata hold
    what is not rows: ``fragment`` (identity, rows per lane), ``captions``, ``texts``, ``episodes``.
    """
    fields, arrays = [], []
    for name, column in fragment.columns.items():
        rows = column.shape[0] * column.shape[1]
        flat = np.ascontiguousarray(column).reshape(-1)
        if flat.dtype == np.bool_:
            flat = flat.view(np.uint8)
        values = pa.Array.from_buffers(pa.from_numpy_dtype(flat.dtype), len(flat), [None, pa.py_buffer(flat)])
        if column.ndim > 2:
            values = pa.FixedSizeListArray.from_arrays(values, len(flat) // rows)
        shape = ",".join(map(str, column.shape[2:]))
        metadata = {"dtype": column.dtype.name, "shape": shape}
        fields.append(pa.field(name, values.type, nullable=False, metadata=metadata))
        arrays.append(values)
    for name, kept in fragment.states.items():
        values = _state_column(kept, fragment.envs, len(arrays[0]))
        metadata = {"dtype": kept.values.dtype.name, "shape": ",".join(map(str, kept.values.shape[1:])), "state": "1"}
        fields.append(pa.field(name, values.type, metadata=metadata))
        arrays.append(values)
    head: dict[str, Any] = {name: getattr(fragment, name) for name in _HEAD_KEYS}
    head["rows_per_lane"] = fragment.rows_per_lane.tolist()
    captions = [[caption.text, [[key.text, key.askable] for key in caption.keys]] for caption in fragment.new_captions]
    others = {
        "fragment": json.dumps(head),
        "captions": json.dumps(captions),
        "texts": json.dumps(fragment.new_texts),
        "episodes": json.dumps(_episode_columns(fragment.episodes)),
    }
    return pa.RecordBatch.from_arrays(arrays, schema=pa.schema(fields, others))


def from_batch(batch: pa.RecordBatch) -> Fragment:
    """The fragment of a batch; its columns are read-only views of the batch's memory.

    Raises: ReplayError where the batch was not made by ``to_batch``.
    """
    metadata = batch.schema.metadata or {}
    if not {b"fragment", b"captions", b"texts", b"episodes"} <= set(metadata):
        raise ReplayError(f"a record batch with the columns {batch.schema.names[:8]} is no fragment; send to_batch(…)")
    head = json.loads(metadata[b"fragment"])
    rows_per_lane: NDArray[np.int32] = np.array(head.pop("rows_per_lane"), np.int32)
    envs = len(rows_per_lane)
    columns: dict[str, NDArray[Any]] = {}
    states: dict[str, StateRows] = {}
    for field, column in zip(batch.schema, batch.columns, strict=True):
        shape = [int(size) for size in field.metadata[b"shape"].decode().split(",") if size]
        if b"state" in field.metadata:
            states[field.name] = _state_rows(column, envs, shape)
            continue
        values = column.values if pa.types.is_fixed_size_list(field.type) else column
        array = values.to_numpy(zero_copy_only=True)
        if field.metadata[b"dtype"] == b"bool":
            array = array.view(np.bool_)
        columns[field.name] = array.reshape(envs, batch.num_rows // envs, *shape)
    captions = [
        CaptionText(text, tuple(KeyText(key, askable) for key, askable in keys))
        for text, keys in json.loads(metadata[b"captions"])
    ]
    episodes = list(map(EpisodeStatistics, *json.loads(metadata[b"episodes"])))
    texts = json.loads(metadata[b"texts"])
    return Fragment(
        rows_per_lane=rows_per_lane,
        columns=columns,
        states=states,
        new_captions=captions,
        new_texts=texts,
        episodes=episodes,
        **head,
    )


def _state_column(kept: StateRows, envs: int, rows: int) -> pa.LargeListArray:
    at = kept.lane * (rows // envs) + kept.row
    order = np.argsort(at)
    width = int(np.prod(kept.values.shape[1:], dtype=np.int64))
    length = np.zeros(rows, np.int64)
    length[at] = width
    offsets = np.concatenate([[0], np.cumsum(length)])
    return pa.LargeListArray.from_arrays(
        pa.array(offsets), pa.array(kept.values[order].reshape(-1)), mask=pa.array(length == 0)
    )


def _state_rows(column: pa.LargeListArray, envs: int, shape: list[int]) -> StateRows:
    at = np.flatnonzero(np.diff(column.offsets.to_numpy()))
    lane, row = np.divmod(at, len(column) // envs)
    return StateRows(lane, row, column.values.to_numpy(zero_copy_only=True).reshape(-1, *shape))


def _episode_columns(episodes: Sequence[EpisodeStatistics]) -> list[list[Any]]:
    """One list for each field, in the fields' order, ``extra`` (the last) only where there is any.

    Random CartPoles end thousands of episodes a second: a mapping for each would cost more than their rows.
    """
    columns: list[list[Any]] = [[getattr(episode, name) for episode in episodes] for name in _EPISODE_FIGURES]
    extras = [episode.extra for episode in episodes]
    return [*columns, extras] if any(extras) else columns
