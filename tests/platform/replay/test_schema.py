"""Spaces to columns, columns to Arrow and back."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from gymnasium import spaces

from onibi.platform.annotation.captions import text_hash
from onibi.platform.errors import SpecError
from onibi.platform.replay.schema import (
    ObservationLeaves,
    arrow_schema,
    observation_specs,
    ring_columns,
    spec_from_arrow,
)
from onibi.platform.replay.text_table import TextTable
from onibi.platform.spec import TEXT_HASH, ArraySpec, ReplaySpec

NESTED = spaces.Dict(
    {
        "image": spaces.Box(0, 255, (8, 8, 3), np.uint8),
        "inner": spaces.Dict({"compass": spaces.Discrete(4, start=1), "buttons": spaces.MultiBinary(3)}),
        "pair": spaces.Tuple((spaces.MultiDiscrete([2, 5]), spaces.Box(-np.inf, np.inf, (2,), np.float64))),
        "lit": spaces.Box(0, 1, (), np.bool_),
    }
)


def test_nested_space_becomes_one_column_per_leaf():
    found = {c.name: (c.dtype, c.shape, c.low, c.high) for c in observation_specs(NESTED)}
    assert found == {
        "observation.image": ("uint8", (8, 8, 3), 0.0, 255.0),
        "observation.inner.compass": ("int64", (), 1.0, 4.0),
        "observation.inner.buttons": ("int8", (3,), 0.0, 1.0),
        "observation.pair.0": ("int64", (2,), 0.0, 4.0),
        "observation.pair.1": ("float64", (2,), None, None),
        "observation.lit": ("uint8", (), 0.0, 1.0),
    }


@pytest.mark.parametrize("dtype", [">f4", "?", "bogus", np.float32, None])
def test_a_dtype_that_no_file_can_hold_is_refused_by_name(dtype):
    column = ArraySpec(name="observation", dtype=dtype, shape=(4,))
    with pytest.raises(SpecError, match=r"replay column 'observation' has dtype .* by the name that NumPy has"):
        arrow_schema(ReplaySpec(observation=(column,), actions=2))


@pytest.mark.parametrize("shape", [[4], 4, (2.0,), (0,), (-1,)])
def test_a_shape_that_is_no_tuple_of_sizes_is_refused_by_name(shape):
    column = ArraySpec(name="observation", dtype="float32", shape=shape)
    with pytest.raises(SpecError, match="replay column 'observation' has dtype 'float32' and shape"):
        arrow_schema(ReplaySpec(observation=(column,), actions=2))


def test_bare_space_is_named_observation():
    (column,) = observation_specs(spaces.Box(-1, 1, (4,), np.float32))
    assert (column.name, column.dtype, column.shape) == ("observation", "float32", (4,))


@pytest.mark.parametrize("space", [NESTED, spaces.Box(-1, 1, (4,), np.float32), spaces.Discrete(3)])
def test_batched_observation_is_flattened_to_its_columns(space):
    from gymnasium.vector.utils import batch_space

    batched = batch_space(space, 5)
    batched.seed(0)
    value = batched.sample()
    flat = ObservationLeaves(space).flatten(value)
    for column in observation_specs(space):
        assert flat[column.name].shape == (5, *column.shape)
        assert flat[column.name].dtype == column.dtype
    if space is NESTED:
        np.testing.assert_array_equal(flat["observation.inner.compass"], value["inner"]["compass"])
        np.testing.assert_array_equal(flat["observation.pair.1"], value["pair"][1])
        assert flat["observation.image"] is value["image"]  # no copy
    assert ObservationLeaves(space).specs == observation_specs(space)


@pytest.mark.parametrize(
    "leaf",
    [
        spaces.Sequence(spaces.Discrete(2)),
        spaces.Graph(spaces.Discrete(2), spaces.Discrete(2)),
        spaces.OneOf((spaces.Discrete(2), spaces.Discrete(3))),
    ],
)
def test_leaf_without_a_fixed_width_is_refused_by_name(leaf):
    with pytest.raises(SpecError, match=rf"'observation\.words' is {type(leaf).__name__}, which has no fixed width"):
        observation_specs(spaces.Dict({"words": leaf}))


def test_text_leaf_is_a_column_of_hashes_and_needs_a_table_for_its_texts():
    space = spaces.Dict({"goal": spaces.Text(8)})
    (column,) = observation_specs(space)
    assert (column.name, column.dtype, column.shape, column.content) == ("observation.goal", "uint64", (), TEXT_HASH)
    spec = ReplaySpec(observation=(column,), actions=1)
    assert arrow_schema(spec).field("observation.goal").metadata[b"content"] == b"text hash"
    assert spec_from_arrow(arrow_schema(spec)) == spec
    with pytest.raises(SpecError, match=r"'observation\.goal' is Text.*no table for the texts"):
        ObservationLeaves(space)
    texts = TextTable()
    flat = ObservationLeaves(space, texts).flatten({"goal": ("find", "", "find")})
    assert flat["observation.goal"].tolist() == [text_hash("find"), 0, text_hash("find")]
    assert texts.to_arrow().to_pylist() == [{"text_hash": text_hash("find"), "text": "find"}]


def test_schema_of_the_first_release_is_read_as_numbers():
    fields = []
    for field in arrow_schema(SPEC):
        old = {key: value for key, value in field.metadata.items() if key != b"content"}
        fields.append(field.with_metadata(old))
    assert spec_from_arrow(pa.schema(fields, metadata=arrow_schema(SPEC).metadata)) == SPEC


@pytest.mark.parametrize("start", [0, 2**53 + 1, -(2**53) - 1, 2**62 + 3])
def test_bounds_of_wide_integers_include_them(start):
    (column,) = observation_specs(spaces.Discrete(4, start=start))
    assert column.low <= start
    assert column.high >= start + 3
    assert abs(column.low - start) < 2**12


def test_keys_that_are_no_strings_are_followed_and_those_that_read_alike_refused():
    space = spaces.Dict({1: spaces.Discrete(2), "b": spaces.Discrete(2)})
    flat = ObservationLeaves(space).flatten({1: np.array([1]), "b": np.array([0])})
    assert flat["observation.1"].tolist() == [1]
    with pytest.raises(SpecError, match="reads like another one"):
        observation_specs(spaces.Dict({1: spaces.Discrete(2), "1": spaces.Discrete(2)}))


def test_key_with_a_dot_is_refused_as_it_could_mean_two_leaves():
    with pytest.raises(SpecError, match=r"contains '\.'"):
        observation_specs(spaces.Dict({"a.b": spaces.Discrete(2)}))


SPEC = ReplaySpec(
    observation=observation_specs(NESTED),
    actions=7,
    keys_per_caption=3,
    extra=(ArraySpec(name="logits", dtype="float32", shape=(7,), unit="nats", low=-1.5, high=0.1),),
)


def test_spec_survives_the_way_through_an_arrow_file(tmp_path):
    schema = arrow_schema(SPEC)
    with pa.OSFile(str(tmp_path / "x.arrow"), "wb") as sink, pa.ipc.new_file(sink, schema):
        pass
    with pa.ipc.open_file(str(tmp_path / "x.arrow")) as file:
        assert spec_from_arrow(file.schema) == SPEC


def test_arrow_fields_tell_type_shape_and_unit():
    schema = arrow_schema(SPEC)
    assert schema.names == [column.name for column in ring_columns(SPEC)]
    assert schema.field("reward").type == pa.float32()
    assert schema.field("observation.image").type.list_size == 8 * 8 * 3
    assert schema.field("observation.image").metadata[b"shape"] == b"8,8,3"
    assert schema.field("logits").metadata[b"unit"] == b"nats"


def test_schema_of_another_program_or_layout_is_refused():
    with pytest.raises(SpecError, match="was not written by Onibi"):
        spec_from_arrow(pa.schema([("reward", pa.float32())]))
    fields = [field for field in arrow_schema(SPEC) if field.name != "reward"]
    with pytest.raises(SpecError, match="open it with the version that wrote it"):
        spec_from_arrow(pa.schema(fields, metadata=arrow_schema(SPEC).metadata))


def test_column_declared_twice_or_of_no_fixed_width_is_refused():
    twice = ReplaySpec(observation=(), actions=1, extra=(ArraySpec(name="reward", dtype="float32"),))
    with pytest.raises(SpecError, match="'reward' is declared twice"):
        ring_columns(twice)
    for wrong in (ArraySpec(name="x", dtype="object"), ArraySpec(name="x", dtype="int8", shape=(0,))):
        with pytest.raises(SpecError, match="column 'x' has dtype"):
            ring_columns(ReplaySpec(observation=(wrong,), actions=1))
