"""Copies of blocks of rows, bit for bit, whatever lies how."""

from __future__ import annotations

import numpy as np
import pytest

from onibi.platform.replay.ring.row_copy import copy_rows


def random_bits(rng, shape, dtype):
    dtype = np.dtype(dtype)
    if dtype == np.bool_:
        return rng.random(shape) < 0.5
    return np.frombuffer(rng.bytes(int(np.prod(shape)) * dtype.itemsize), dtype).reshape(shape)


@pytest.mark.parametrize("dtype", ["uint8", "bool", "int16", "float16", "float32", "float64", "int64"])
@pytest.mark.parametrize("shape", [(), (1,), (3,), (4096,), (84, 84), (9, 9, 5)])
@pytest.mark.parametrize("rows", [1, 6, 700])
def test_a_block_of_a_wider_array_is_copied_bit_for_bit_and_nothing_beside_it(dtype, shape, rows):
    rng = np.random.default_rng(0)
    source = random_bits(rng, (3, rows + 1, *shape), dtype)
    target = random_bits(rng, (4, rows + 9, *shape), dtype).copy()
    expected = target.copy()
    expected[1:4, 5 : 5 + rows] = source[:, :rows]
    copy_rows(target[1:4, 5 : 5 + rows], source[:, :rows])
    assert target.tobytes() == expected.tobytes()  # NaN of every kind included


@pytest.mark.parametrize(
    "arrange",
    [
        lambda source: np.asfortranarray(source),
        lambda source: source[:, ::-1],
        lambda source: source[..., ::2],
        lambda source: np.ascontiguousarray(source.swapaxes(0, 1)).swapaxes(0, 1),
        lambda source: np.frombuffer(b"x" + source.tobytes(), np.uint8)[1:].view(source.dtype).reshape(source.shape),
    ],
    ids=["Fortran order", "backwards", "every second", "rows first", "not aligned"],
)
def test_a_source_may_lie_anyhow(arrange):
    source = arrange(random_bits(np.random.default_rng(0), (3, 64, 4096), "float32"))
    target = np.zeros((3, 70, *source.shape[2:]), np.float32)
    copy_rows(target[:, 4:68], source)
    assert target[:, 4:68].tobytes() == source.tobytes()
    assert not target[:, :4].any()
    assert not target[:, 68:].any()
