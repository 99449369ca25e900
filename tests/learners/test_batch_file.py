from __future__ import annotations

import numpy as np
import pytest
from safetensors.numpy import load_file

from onibi.learners.batch_file import MIXED_REWARD, save_batch


@pytest.fixture
def batch(specs, make_windows):
    windows = make_windows(specs["mixed"], 8, 3, np.random.default_rng(0))
    windows.reward[2, 1] = np.nan
    return windows


def test_a_saved_batch_holds_every_array_bit_for_bit(batch, tmp_path):
    mixed = batch.reward * 2
    path = save_batch(tmp_path / "new", batch, mixed, 41)
    assert path == tmp_path / "new" / "not-finite-000000041.safetensors"
    found = load_file(path)
    np.testing.assert_array_equal(found[MIXED_REWARD], mixed)
    np.testing.assert_array_equal(found["reward"], batch.reward)
    for name, array in batch.observation.items():
        np.testing.assert_array_equal(found[f"observation.{name}"], array)
        assert found[f"observation.{name}"].dtype == array.dtype
    assert {"bootstrap_observation.observation.room", "used", "weight", "lane", "generation"} <= found.keys()


def test_views_of_one_memory_are_saved_as_what_they_show(batch, tmp_path):
    pair = np.arange(8 * 2 * 4, dtype=np.float32).reshape(8, 2, 2, 2)
    name = "observation.position"
    batch.pairs = {name: pair}
    batch.observation[name], batch.bootstrap_observation[name] = pair[:, 0], pair[:, 1]
    found = load_file(save_batch(tmp_path, batch, batch.reward, 1))
    np.testing.assert_array_equal(found[f"bootstrap_observation.{name}"], pair[:, 1])


def test_a_folder_that_cannot_be_made_is_replaced_by_a_temporary_one(batch, tmp_path):
    (tmp_path / "taken").write_text("a file", encoding="utf-8")
    for folder in (tmp_path / "taken" / "artifacts", None):
        path = save_batch(folder, batch, batch.reward, 3)
        assert path.is_file()
        assert tmp_path not in path.parents
        path.unlink()
        path.parent.rmdir()
