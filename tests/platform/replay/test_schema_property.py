"""Random nested spaces: to columns and back, through a ring and out again, bit for bit."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from gymnasium import spaces
from gymnasium.vector.utils import batch_space
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from onibi.platform.errors import SpecError
from onibi.platform.replay.ring.reader import RingReader
from onibi.platform.replay.ring.snapshot import snapshot_table
from onibi.platform.replay.ring.writer import RingWriter
from onibi.platform.replay.schema import ObservationLeaves, arrow_schema, observation_specs, spec_from_arrow
from onibi.platform.replay.text_table import TextTable
from onibi.platform.spec import TEXT_HASH, ArraySpec, ReplaySpec

INTEGERS = ("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64")
FLOATS = ("float16", "float32", "float64")
ENVS, STEPS = 2, 3
SHAPES = st.lists(st.integers(1, 3), max_size=3).map(tuple)


@st.composite
def boxes(draw):
    dtype = np.dtype(draw(st.sampled_from((*INTEGERS, *FLOATS, "bool"))))
    shape = draw(SHAPES)
    if dtype == np.bool_:
        return spaces.Box(0, 1, shape, dtype)
    if dtype.kind == "f":
        low, high = draw(st.sampled_from([(-np.inf, np.inf), (-1.5, 2.25), (-np.inf, 0.0), (0.0, 6.0e4)]))
        return spaces.Box(low, high, shape, dtype)
    whole = np.iinfo(dtype)
    low, high = draw(st.sampled_from([(whole.min, whole.max), (0, 1), (0, 100)]))
    return spaces.Box(low, high, shape, dtype)


LEAVES = st.one_of(
    boxes(),
    st.builds(spaces.Discrete, st.integers(1, 9), start=st.integers(-(2**40), 2**40)),
    st.lists(st.integers(1, 9), min_size=1, max_size=4).map(spaces.MultiDiscrete),
    st.sampled_from(["int8", "uint16", "int32"]).map(lambda dtype: spaces.MultiDiscrete([[2, 3], [4, 5]], dtype=dtype)),
    st.one_of(st.integers(1, 5), st.just([2, 3])).map(spaces.MultiBinary),
    st.integers(1, 12).map(spaces.Text),
)
NAMES = st.text(st.characters(codec="utf-8", exclude_characters="."), min_size=1, max_size=6)
SPACES = st.recursive(
    LEAVES,
    lambda children: st.one_of(
        st.dictionaries(NAMES, children, min_size=1, max_size=3).map(spaces.Dict),
        st.lists(children, min_size=1, max_size=3).map(spaces.Tuple),
    ),
    max_leaves=6,
)
EXTRAS = st.lists(
    st.builds(
        ArraySpec,
        name=st.sampled_from(["logits", "action_log_prob", "state é"]),
        dtype=st.sampled_from((*INTEGERS, *FLOATS, "bool")),
        shape=SHAPES,
        unit=st.sampled_from(["", "nats", "m/s²"]),
        low=st.none() | st.floats(allow_nan=False, allow_infinity=False),
        high=st.none() | st.floats(allow_nan=False, allow_infinity=False),
    ),
    max_size=2,
    unique_by=lambda column: column.name,
).map(tuple)
# The same examples in every run; no deadline on a busy machine.
EXAMPLES = settings(
    max_examples=60, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow], database=None
)


def walked(space, value, name="observation"):
    """(column name, leaf space, values of all rows) in order: the slow, obvious way through a batched value."""
    if isinstance(space, spaces.Dict):
        for key in space.spaces:
            yield from walked(space[key], value[key], f"{name}.{key}")
    elif isinstance(space, spaces.Tuple):
        for index, child in enumerate(space.spaces):
            yield from walked(child, value[index], f"{name}.{index}")
    else:
        yield name, space, value


@EXAMPLES
@given(space=SPACES, extra=EXTRAS, actions=st.integers(1, 99), keys=st.integers(1, 5))
def test_spec_of_any_space_survives_the_way_through_arrow(space, extra, actions, keys):
    spec = ReplaySpec(observation=observation_specs(space), actions=actions, keys_per_caption=keys, extra=extra)
    message = arrow_schema(spec).serialize()
    assert spec_from_arrow(pa.ipc.read_schema(message)) == spec


@EXAMPLES
@given(space=SPACES, extra=EXTRAS, seed=st.integers(0, 2**31))
def test_values_of_any_space_come_out_of_a_ring_and_its_snapshot_as_they_went_in(space, extra, seed):
    count = ENVS * (STEPS + 1)
    batched = batch_space(space, count)
    batched.seed(seed)
    value = batched.sample()
    texts = TextTable()
    leaves = ObservationLeaves(space, texts)
    flat = leaves.flatten(value)
    spec = ReplaySpec(observation=leaves.specs, actions=2, extra=extra)
    rng = np.random.default_rng(seed)
    columns = {column.name: np.zeros((ENVS, STEPS + 1, *column.shape), column.dtype) for column in spec.columns} | {
        name: np.ascontiguousarray(array).reshape(ENVS, STEPS + 1, *array.shape[1:]) for name, array in flat.items()
    }
    for column in extra:
        raw = rng.integers(0, 2 if column.dtype == "bool" else 256, (ENVS, STEPS + 1, column.row_bytes), np.uint8)
        columns[column.name] = raw.view(column.dtype).reshape(ENVS, STEPS + 1, *column.shape)
    with tempfile.TemporaryDirectory(prefix="onibi-test-", dir="/dev/shm") as folder:
        path = Path(folder) / "x.ring"
        writer = RingWriter.create(path, spec, groups=1, lanes_per_group=ENVS, slots=40, window_rows=2, run_id="r")
        writer.insert(
            0,
            incarnation=writer.register(0),
            sequence=0,
            rows_per_lane=np.full(ENVS, STEPS, np.int32),
            columns=columns,
        )
        reader = RingReader(path)
        assert reader.spec == spec
        table = snapshot_table(reader)
        for name, leaf, values in walked(space, value):
            (column,) = (column for column in spec.observation if column.name == name)
            stored = reader.columns[name].reshape(ENVS, 40, *column.shape)[:, : STEPS + 1].reshape(count, *column.shape)
            if column.content == TEXT_HASH:
                assert [texts[hashed] for hashed in stored] == list(values)
                continue
            original = np.asarray(values)
            assert original.shape == stored.shape
            assert original.tobytes() == stored.tobytes()  # a bool is stored as the byte that it is
            if not isinstance(leaf, spaces.Box) or leaf.dtype != np.bool_:
                assert original.dtype == stored.dtype
            if column.low is not None:
                assert all(column.low <= number <= column.high for number in original.reshape(-1).tolist())
        for column in (*spec.observation, *extra):
            chunk = table[column.name].combine_chunks()
            if pa.types.is_fixed_size_list(chunk.type):
                chunk = chunk.flatten()
            expected = columns[column.name][:, :STEPS]
            assert chunk.to_numpy(zero_copy_only=False).tobytes() == expected.tobytes()
        writer.close()


@EXAMPLES
@given(space=SPACES)
def test_text_is_refused_wherever_it_stands_if_nobody_keeps_the_texts(space):
    has_text = any(isinstance(leaf, spaces.Text) for _, leaf, _ in walked(space, _Anything()))
    if not has_text:
        ObservationLeaves(space)
        return
    with pytest.raises(SpecError, match="is Text"):
        ObservationLeaves(space)


class _Anything:
    """Stands in for a value whose leaves nobody looks at."""

    def __getitem__(self, key):
        return self
