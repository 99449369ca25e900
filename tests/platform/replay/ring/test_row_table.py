"""Rows as Arrow arrays: every dtype of the ring, flags, arrays in rows, and names that are taken."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from onibi.platform.errors import ReplayError, SpecError
from onibi.platform.replay.ring.row_table import row_arrays, rows_schema
from onibi.platform.replay.schema import ring_columns
from onibi.platform.spec import ArraySpec, ReplaySpec

OBSERVATION = ArraySpec(name="observation", dtype="float32")
NUMBERS = ["bool", "int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64", "float16", "float32"]


def spec_of(*extra):
    return ReplaySpec(observation=(OBSERVATION,), actions=2, keys_per_caption=1, extra=extra)


@pytest.mark.parametrize("dtype", [*NUMBERS, "float64"])
@pytest.mark.parametrize("shape", [(), (2, 3)])
def test_a_column_of_any_dtype_comes_back_from_a_table(dtype, shape):
    spec, rng = spec_of(ArraySpec(name="mine", dtype=dtype, shape=shape)), np.random.default_rng(0)
    columns = {c.name: rng.integers(0, 2, (5, *c.shape)).astype(c.dtype) for c in spec.columns}
    schema = rows_schema(spec)
    arrays = row_arrays(schema, np.arange(5, dtype=np.int32), np.arange(5), columns)
    table = pa.Table.from_arrays(arrays, schema=schema)
    table.validate(full=True)
    mine = table["mine"].combine_chunks()
    values = mine.flatten() if shape else mine
    assert values.to_numpy(zero_copy_only=False).astype(dtype).reshape(5, *shape).tolist() == columns["mine"].tolist()
    assert table["terminated"].to_pylist() == columns["terminated"].astype(bool).tolist()
    assert table["lane"].to_pylist() == table["generation"].to_pylist() == list(range(5))


def test_columns_are_not_copied():
    spec = spec_of(ArraySpec(name="mine", dtype="float32", shape=(4,)))
    columns = {c.name: np.zeros((5, *c.shape), c.dtype) for c in spec.columns}
    schema = rows_schema(spec)
    arrays = dict(zip(schema.names, row_arrays(schema, np.zeros(5, np.int32), np.arange(5), columns), strict=True))
    assert arrays["mine"].flatten().buffers()[1].address == columns["mine"].ctypes.data
    assert arrays["reward"].buffers()[1].address == columns["reward"].ctypes.data


@pytest.mark.parametrize("name", ["lane", "generation"])
def test_a_column_with_a_name_of_the_tables_own_is_refused(name):
    with pytest.raises(SpecError, match=rf"replay columns \['{name}'\] have names of tables' own"):
        rows_schema(spec_of(ArraySpec(name=name, dtype="float32")))


def test_some_columns_stand_in_the_rows_order_and_unknown_ones_are_refused():
    schema = rows_schema(spec_of(), ["reward", "action", "lane"])
    assert schema.names == ["lane", "generation", "action", "reward"]
    with pytest.raises(ReplayError, match=r"no replay columns \['revard'\]"):
        rows_schema(spec_of(), ["revard"])


@pytest.mark.skipif(np.dtype(np.longdouble).itemsize == 8, reason="no numbers wider than 8 bytes here")
def test_numbers_that_arrow_has_no_type_for_are_refused_by_name():
    with pytest.raises(SpecError, match=r"'mine' has dtype 'float128' .* fixed width of up to 8 bytes"):
        ring_columns(spec_of(ArraySpec(name="mine", dtype="float128")))
