"""Batches on their way to the learner's device: from pinned memory, on a stream of their own, while it computes.

On the CPU tensors share the arrays' memory and nothing is copied.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from onibi.platform.replay.samplers.draws import Batch
from onibi.platform.replay.samplers.windows import Windows

_UPDATES_BEHIND = 1
"""How many updates the device may be behind when the next batch is taken: only the newest batch may still be read."""


@dataclass(frozen=True)
class _Block:
    """A contiguous array with its copy. The array is kept, so that no other one gets its place in memory."""

    array: NDArray[Any]
    tensor: Tensor
    copied: Any  # a CUDA event; None where the copy was made at once


class DeviceCopies:
    """Arrays of batches as tensors on one device.

    Args:
        device: where tensors are wanted.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        on_cuda = device.type == "cuda"
        self._stream = torch.cuda.Stream(device) if on_cuda else None  # type: ignore[no-untyped-call]
        self._lock = threading.Lock()
        self._blocks: list[_Block] = []
        self._read: list[_Block] = []
        self._updates: deque[Any] = deque()

    def empty(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray[Any]:
        """Memory for a batch's arrays: pinned for CUDA, which then copies from it by itself."""
        if self._stream is None:
            return np.empty(shape, dtype)
        size = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
        pinned: NDArray[np.uint8] = torch.empty(size, dtype=torch.uint8, pin_memory=True).numpy()
        return pinned.view(dtype).reshape(shape)

    def send(self, batch: Batch) -> None:
        """Begin to copy a batch's observations, in any thread."""
        if self._stream is None:
            return
        with torch.cuda.stream(self._stream):
            for array in _contiguous(batch):
                tensor = torch.from_numpy(array).to(self._device, non_blocking=True)
                copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
                copied.record()
                self._keep(_Block(array, tensor, copied))

    def send_missing(self, batch: Batch) -> None:
        """Begin to copy what no other thread has sent."""
        if self._stream is None:
            return
        with self._lock:
            there = {id(block.array) for block in self._blocks}
        if not all(id(array) in there for array in _contiguous(batch)):
            self.send(batch)

    def tensor(self, array: NDArray[Any]) -> Tensor:
        """An array on the device: a view of what ``send`` copied where it is part of that, else copied now."""
        block = None
        if self._blocks:
            with self._lock:
                block = next((each for each in self._blocks if _within(array, each.array)), None)
        if block is None:
            return torch.from_numpy(array).to(self._device, non_blocking=True)
        if block.copied is not None:
            stream = torch.cuda.current_stream(self._device)
            stream.wait_event(block.copied)
            block.tensor.record_stream(stream)  # or its memory could go to the next copy while it is read
        self._read.append(block)
        offset = (_address(array) - _address(block.array)) // array.itemsize
        return block.tensor.as_strided(array.shape, [stride // array.itemsize for stride in array.strides], offset)

    def learned(self) -> None:
        """Call it after each update: forgets what it read, and waits until the batch before it is no longer read.

        So a batch's arrays may be filled anew once two more batches were taken.
        """
        if self._read:
            with self._lock:
                self._blocks = [each for each in self._blocks if not any(each is read for read in self._read)]
            self._read.clear()
        if self._stream is None:
            return
        event = torch.cuda.Event()  # type: ignore[no-untyped-call]
        event.record(torch.cuda.current_stream(self._device))
        self._updates.append(event)
        while len(self._updates) > _UPDATES_BEHIND:
            self._updates.popleft().synchronize()

    def _keep(self, block: _Block) -> None:
        with self._lock:
            # A batch that nobody learned from is filled anew: its old copy is of no use.
            self._blocks = [each for each in self._blocks if each.array is not block.array]
            self._blocks.append(block)


def _contiguous(batch: Batch) -> Iterable[NDArray[Any]]:
    """The arrays that hold a batch's observations; those that are strided views are in the array they view."""
    whole = batch.pairs if isinstance(batch, Windows) and batch.pairs else batch.observation
    return [array for array in whole.values() if array.flags.c_contiguous]


def _address(array: NDArray[Any]) -> int:
    return int(array.__array_interface__["data"][0])


def _within(part: NDArray[Any], whole: NDArray[Any]) -> bool:
    return part.dtype == whole.dtype and _address(whole) <= _address(part) < _address(whole) + whole.nbytes
