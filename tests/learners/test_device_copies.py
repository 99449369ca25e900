from __future__ import annotations

import numpy as np
import pytest
import torch

from onibi.learners.device_copies import DeviceCopies, _Block


def copies_of(array):
    """Copies that hold a tensor of other numbers in the array's place: where it is read, that is seen."""
    copies = DeviceCopies(torch.device("cpu"))
    copies._keep(_Block(array, torch.from_numpy(array + 1000), None))
    return copies


@pytest.mark.parametrize(
    "view",
    [
        lambda whole: whole,
        lambda whole: whole[:, 0],
        lambda whole: whole[:, 1],
        lambda whole: whole[2:5, 1, ::2],
        lambda whole: whole.transpose(1, 0, 2),
        lambda whole: whole[3, 1, 4],
    ],
)
def test_any_view_of_what_was_sent_is_a_view_of_its_copy(view):
    whole = np.arange(6 * 2 * 8, dtype=np.int32).reshape(6, 2, 8)
    part = np.asarray(view(whole)) if np.ndim(view(whole)) else whole[3, 1, 4:5]
    np.testing.assert_array_equal(copies_of(whole).tensor(part).numpy(), part + 1000)


def test_what_was_not_sent_is_taken_as_it_is():
    whole = np.zeros((4, 2), np.float32)
    other = np.ones((4, 2), np.float32)
    copies = copies_of(whole)
    tensor = copies.tensor(other)
    assert tensor.data_ptr() == other.ctypes.data  # shared, on the CPU
    assert tensor.tolist() == other.tolist()
    assert copies.tensor(whole.view(np.int32)[:2]).dtype == torch.int32  # of another dtype: not from the copy


def test_what_an_update_has_read_is_forgotten_after_it_and_nothing_else():
    first, second = np.zeros(3, np.float32), np.zeros(3, np.float32)
    copies = copies_of(first)
    copies._keep(_Block(second, torch.from_numpy(second + 2000), None))
    assert copies.tensor(first)[0] == 1000
    copies.learned()
    assert copies.tensor(first)[0] == 0
    assert copies.tensor(second)[0] == 2000


def test_on_the_cpu_sending_copies_nothing(specs, make_windows):
    copies = DeviceCopies(torch.device("cpu"))
    windows = make_windows(specs["flat"], 4, 2, np.random.default_rng(0))
    copies.send(windows)
    observation = windows.observation["observation"]
    assert copies.tensor(observation).data_ptr() == observation.ctypes.data
    assert copies.empty((2, 3), np.dtype(np.int16)).shape == (2, 3)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_on_cuda_pinned_pairs_arrive_whole_while_their_arrays_are_filled_anew(specs, make_windows):
    copies = DeviceCopies(torch.device("cuda"))
    windows = make_windows(specs["flat"], 512, 2, np.random.default_rng(0))
    name = "observation"
    buffers = [copies.empty((512, 2, 4), np.dtype(np.float32)) for _ in range(2)]
    for turn in range(200):
        pair = buffers[turn % 2]
        pair[:] = turn
        windows.pairs = {name: pair}
        windows.observation[name], windows.bootstrap_observation[name] = pair[:, 0], pair[:, 1]
        copies.send(windows)
        seen = copies.tensor(pair[:, 0]).sum() + copies.tensor(pair[:, 1]).sum()
        copies.learned()
        assert seen.item() == turn * 512 * 2 * 4
