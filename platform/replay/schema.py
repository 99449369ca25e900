"""From spaces to columns, and from columns to an Arrow schema and back."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from onibi.platform.errors import SpecError
from onibi.platform.replay.text_table import TextTable
from onibi.platform.spec import NUMBERS, TEXT_HASH, ArraySpec, ReplaySpec, StateSpec

OBSERVATION = "observation"
"""Name of the one observation leaf of a bare space, and prefix of the leaves of a nested one."""

_FIXED_WIDTH = "Box, Discrete, MultiDiscrete, MultiBinary, Text, and Dict or Tuple of these"
_WIDEST = 8
"""Bytes of a number: Arrow has no long double."""
_ACTION_BOUNDS = ("action_low", "action_high")


def ring_columns(spec: ReplaySpec) -> tuple[ArraySpec, ...]:
    """The ring's columns in storage order; checks that names are unique, those of states too, and dtypes have a fixed
    width.

    Raises: SpecError.
    """
    _check_action(spec)
    seen: set[str] = set()
    for column in (*spec.columns, *spec.states):
        if column.name in seen:
            raise SpecError(
                f"replay column {column.name!r} is declared twice; rename the extra column or observation leaf"
            )
        seen.add(column.name)
        if not _is_fixed_width(column):
            raise SpecError(
                f"replay column {column.name!r} has dtype {column.dtype!r} and shape {column.shape!r}; allowed are "
                f"numbers of a fixed width of up to {_WIDEST} bytes in this machine's byte order, by the name that "
                "NumPy has for them ('float32', 'bool'), and a tuple of sizes with no empty axis. Convert it in an "
                "environment wrapper"
            )
    for state in spec.states:
        if state.period < 1 or np.dtype(state.dtype).kind == "b":
            raise SpecError(
                f"replay state {state.name!r} has the period {state.period} and the dtype {state.dtype}; allowed are "
                "periods of at least 1, and numbers"
            )
    return spec.columns


def _is_fixed_width(column: ArraySpec) -> bool:
    name: Any = column.dtype  # whoever writes a spec by hand may have written anything
    shape: Any = column.shape
    if not isinstance(name, str) or not isinstance(shape, tuple):
        return False
    try:
        dtype = np.dtype(name)
    except TypeError:
        return False
    # Of bool the name alone: files are made by it.
    known = dtype.kind in "iuf" or name == "bool"
    sizes = all(isinstance(size, int | np.integer) and size >= 1 for size in shape)
    return known and dtype.isnative and dtype.itemsize <= _WIDEST and sizes


def _check_action(spec: ReplaySpec) -> None:
    """Actions are A discrete ones or a vector of D floats. Raises: SpecError."""
    action = spec.action
    if action is None:
        if spec.actions < 1 or spec.action_low or spec.action_high:
            raise SpecError(
                f"replay: {spec.actions} discrete actions with bounds {spec.action_low} to {spec.action_high}; allowed "
                "are 1 or more without bounds, or a continuous action (action, action_low, action_high)"
            )
        return
    wide = action.shape[0] if len(action.shape) == 1 else 0
    if (action.name, action.dtype) != ("action", "float32") or spec.actions or not wide:
        raise SpecError(
            f"replay: the action column is {action.name!r}, {action.dtype}{list(action.shape)}, beside {spec.actions} "
            "discrete actions; allowed is 'action', float32[D], beside 0. Flatten it in the rollout"
        )
    if not len(spec.action_low) == len(spec.action_high) == wide:
        raise SpecError(
            f"replay: the action has {wide} dimensions, its bounds have {len(spec.action_low)} and "
            f"{len(spec.action_high)}; give one low and one high each, infinite where there is none"
        )


def arrow_schema(spec: ReplaySpec) -> pa.Schema:
    """The schema of a row: a primitive per scalar, a fixed-size list (C order) per array.

    Field metadata: ``dtype``, ``shape`` ("84,84"), ``unit``, ``low``, ``high``, ``content`` (numbers, text hash),
    ``part`` (observation, fixed, extra).
    The schema's own metadata holds ``actions`` and ``keys_per_caption``, ``action_low`` and ``action_high`` of
    continuous actions, and ``states`` where there are any, so that ``spec_from_arrow`` restores all of the spec.
    """
    observations = {column.name for column in spec.observation}
    extras = {column.name for column in spec.extra}
    fields = []
    for column in ring_columns(spec):
        width = int(np.prod(column.shape, dtype=np.int64))
        primitive = pa.from_numpy_dtype(np.dtype(column.dtype)) if column.dtype != "bool" else pa.uint8()
        part = "observation" if column.name in observations else "extra" if column.name in extras else "fixed"
        metadata = {
            "dtype": column.dtype,
            "shape": ",".join(str(size) for size in column.shape),
            "unit": column.unit,
            "low": "" if column.low is None else repr(float(column.low)),
            "high": "" if column.high is None else repr(float(column.high)),
            "content": column.content,
            "part": part,
        }
        kind = pa.list_(pa.field("item", primitive, nullable=False), width) if column.shape else primitive
        fields.append(pa.field(column.name, kind, nullable=False, metadata=metadata))
    own = {"actions": str(spec.actions), "keys_per_caption": str(spec.keys_per_caption)}
    if spec.action is not None:
        own |= {name: ",".join(repr(float(bound)) for bound in getattr(spec, name)) for name in _ACTION_BOUNDS}
    if spec.states:
        own["states"] = json.dumps([dataclasses.asdict(state) for state in spec.states])
    return pa.schema(fields, metadata=own)


def spec_from_arrow(schema: pa.Schema) -> ReplaySpec:
    """The spec that ``arrow_schema`` was made from.

    Raises: SpecError where the schema was not written by Onibi.
    """
    own = schema.metadata or {}
    if b"actions" not in own or b"keys_per_caption" not in own:
        raise SpecError(
            f"the Arrow schema with fields {schema.names[:8]} lacks the metadata 'actions' and "
            f"'keys_per_caption'; it was not "
            "written by Onibi. Import the data with its own importer instead of opening it as replay"
        )
    parts: dict[str, list[ArraySpec]] = {"observation": [], "fixed": [], "extra": []}
    for column in schema:
        metadata = {key.decode(): value.decode() for key, value in (column.metadata or {}).items()}
        part = parts.get(metadata.get("part", ""))
        if part is None:
            raise SpecError(
                f"Arrow field {column.name!r} has metadata {metadata}; 'part' must be one of {sorted(parts)}"
            )
        part.append(
            ArraySpec(
                name=column.name,
                dtype=metadata["dtype"],
                shape=tuple(int(size) for size in metadata["shape"].split(",") if size),
                unit=metadata["unit"],
                low=float(metadata["low"]) if metadata["low"] else None,
                high=float(metadata["high"]) if metadata["high"] else None,
                content=metadata.get("content", NUMBERS),  # stores of 0.1.0 knew nothing else
            )
        )
    action = next((column for column in parts["fixed"] if column.name == "action" and column.shape), None)
    bounds = {
        name: tuple(map(float, own[name.encode()].decode().split(","))) if action else () for name in _ACTION_BOUNDS
    }
    spec = ReplaySpec(
        observation=tuple(parts["observation"]),
        actions=int(own[b"actions"]),
        keys_per_caption=int(own[b"keys_per_caption"]),
        extra=tuple(parts["extra"]),
        states=_states(own.get(b"states", b"[]")),
        action=action,
        **bounds,
    )
    if [column.name for column in spec.columns] != schema.names:
        raise SpecError(
            f"the Arrow schema has the columns {schema.names}, this version of Onibi expects "
            f"{[column.name for column in spec.columns]}; open it with the version that wrote it"
        )
    return spec


def _states(told: bytes) -> tuple[StateSpec, ...]:
    """Raises: SpecError."""
    try:
        return tuple(StateSpec(**{**state, "shape": tuple(state["shape"])}) for state in json.loads(told))
    except (ValueError, TypeError, KeyError) as error:
        raise SpecError(f"the Arrow schema's metadata 'states' are damaged: {error!r}") from error


def observation_specs(space: Any) -> tuple[ArraySpec, ...]:
    """One column per leaf of a Gymnasium observation space; nested names are joined by ".", Tuple items by their index.

    A Text leaf becomes one uint64 column of text hashes, marked by its ``content``; the texts themselves stand in a
    ``TextTable`` beside the rows. Boolean leaves are uint8: an Arrow bool is bit-packed and has no NumPy view.

    Args:
        space: a single environment's space: Box, Discrete, MultiDiscrete, MultiBinary, Text, or Dict/Tuple of them,
            nested at will.
    Raises: SpecError where a leaf has no fixed width (Sequence, Graph, OneOf) or names would not be unique.
    """
    return tuple(leaf.spec for leaf in _leaves(space, OBSERVATION, ()))


@dataclass(frozen=True)
class _Leaf:
    """A column and the keys that lead to its values, outermost first."""

    spec: ArraySpec
    path: tuple[Any, ...]


class ObservationLeaves:
    """The leaves of one space, looked up once: for callers that flatten at every step."""

    def __init__(self, space: Any, texts: TextTable | None = None) -> None:
        """Take apart a space; ``texts`` interns the texts of Text leaves.

        Raises: SpecError as ``observation_specs``, and for a Text leaf where there is no table to keep its texts.
        """
        self._leaves = tuple(_leaves(space, OBSERVATION, ()))
        self._texts = texts
        self.specs = tuple(leaf.spec for leaf in self._leaves)
        spoken = [column.name for column in self.specs if column.content == TEXT_HASH]
        if spoken and texts is None:
            raise SpecError(
                f"observation leaf {spoken[0]!r} is Text, which has no fixed width: its column holds hashes, and there "
                "is no table for the texts themselves here. Leave the leaf out with view.keys, turn it into a "
                "fixed-size array in a wrapper, or pass texts=TextTable() and keep that table beside the rows"
            )

    def flatten(self, value: Any) -> dict[str, NDArray[Any]]:
        """The leaves of a batched observation by their column names.

        Args:
            value: nested as the space, each leaf [E, ...]; of a Text leaf a sequence of E texts.

        Returns: each leaf [E, ...] in its column's dtype; copied only where the dtype differs. Text: [E] uint64.
        """
        flat = {}
        for leaf in self._leaves:
            found = value
            for key in leaf.path:
                found = found[key]
            if leaf.spec.content == TEXT_HASH:
                assert self._texts is not None, "checked by the constructor"
                flat[leaf.spec.name] = self._texts.intern(found)
            else:
                flat[leaf.spec.name] = np.asarray(found).astype(np.dtype(leaf.spec.dtype), copy=False)
        return flat


def _leaves(space: Any, name: str, path: tuple[Any, ...]) -> Iterator[_Leaf]:
    from gymnasium import spaces

    if isinstance(space, spaces.Dict):
        names = [str(key) for key in space.spaces]
        for key, child in space.spaces.items():
            if "." in str(key):
                raise SpecError(
                    f"observation key {key!r} under {name!r} contains '.', which joins nested names; rename it"
                )
            if names.count(str(key)) > 1:
                raise SpecError(f"observation key {key!r} under {name!r} reads like another one there; rename it")
            yield from _leaves(child, f"{name}.{key}", (*path, key))
    elif isinstance(space, spaces.Tuple):
        for index, child in enumerate(space.spaces):
            yield from _leaves(child, f"{name}.{index}", (*path, index))
    else:
        yield _Leaf(_leaf_spec(space, name), path)


def _leaf_spec(leaf: Any, name: str) -> ArraySpec:
    """The column of a space that is no container."""
    from gymnasium import spaces

    low: float | None = None
    high: float | None = None
    content = NUMBERS
    if isinstance(leaf, spaces.Box):
        dtype, shape = np.dtype(leaf.dtype), tuple(leaf.shape)
        if leaf.low.size and np.all(np.isfinite(leaf.low)) and np.all(np.isfinite(leaf.high)):
            low, high = _below(leaf.low.min().item()), _above(leaf.high.max().item())
    elif isinstance(leaf, spaces.Discrete):
        dtype, shape = np.dtype(leaf.dtype), ()
        low, high = _below(int(leaf.start)), _above(int(leaf.start) + int(leaf.n) - 1)
    elif isinstance(leaf, spaces.MultiDiscrete):
        dtype, shape = np.dtype(leaf.dtype), tuple(leaf.shape)
        start, count = np.asarray(leaf.start).reshape(-1).tolist(), np.asarray(leaf.nvec).reshape(-1).tolist()
        low, high = _below(min(start)), _above(max(a + b - 1 for a, b in zip(start, count, strict=True)))
    elif isinstance(leaf, spaces.MultiBinary):
        dtype, shape = np.dtype(np.int8), tuple(leaf.shape)
        low, high = 0.0, 1.0
    elif isinstance(leaf, spaces.Text):
        dtype, shape, content = np.dtype(np.uint64), (), TEXT_HASH
    else:
        raise SpecError(
            f"observation leaf {name!r} is {type(leaf).__name__}, which has no fixed width; allowed are "
            f"{_FIXED_WIDTH}. Leave the leaf out with view.keys, or turn it into a fixed-size array in a wrapper"
        )
    if dtype == np.bool_:
        dtype = np.dtype(np.uint8)
    return ArraySpec(name=name, dtype=dtype.name, shape=shape, low=low, high=high, content=content)


def _below(bound: float) -> float:
    """The largest float64 that is not above an int or float: int64 bounds may need more than its 53 bits."""
    return float(bound) if float(bound) <= bound else math.nextafter(float(bound), -math.inf)


def _above(bound: float) -> float:
    """The smallest float64 that is not below an int or float."""
    return float(bound) if float(bound) >= bound else math.nextafter(float(bound), math.inf)
