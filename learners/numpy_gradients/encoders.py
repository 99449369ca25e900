"""Encoders forward and backward in NumPy on the memory of their torch modules: flat observations, NetHack views."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional

from onibi.learners.networks.leaves import flatten
from onibi.learners.networks.mlp import MlpEncoder
from onibi.learners.networks.nethack import NethackEncoder
from onibi.learners.networks.normalizer import CLIP, VARIANCE_FLOOR, RunningNormalizer
from onibi.learners.networks.numpy_nethack import ids_of, numbers_of
from onibi.learners.numpy_gradients.layers import Activated, Linear, ParameterGradients, Rows, TrunkLayers, array_of

_LARGEST_WIDTH = 256
"""Of a layer. Wider ones are worth several threads, which torch's kernels use and a NumPy step does not need."""


class EncoderByHand(Protocol):
    """An encoder and the way back through it."""

    def forward(self, observation: Mapping[str, NDArray[Any]]) -> Rows:
        """Each leaf [N, ...] → [N, F]; kept for ``backward``, which overwrites it."""

    @property
    def slopes(self) -> Rows:
        """[N, F], where to write the slopes of the loss by what ``forward`` gave."""

    def backward(self, ones: Rows) -> None:
        """Write all gradients, from what stands in ``slopes``; once after each ``forward``. ``ones`` is [N] of 1."""


def is_small(encoder: nn.Module) -> bool:
    """Whether ``encoder_by_hand`` knows the encoder, and it is of layers of at most 256 outputs."""
    # An encoder of a class of its own may compute anything in its forward.
    if type(encoder) is NethackEncoder:
        return encoder.form is not None and encoder.first_width <= _LARGEST_WIDTH and _is_narrow(encoder)
    return type(encoder) is MlpEncoder and _is_narrow(encoder)


def encoder_by_hand(encoder: nn.Module, gradients: ParameterGradients) -> EncoderByHand:
    """The twin of an encoder that ``is_small``; its gradients are kept in ``gradients``."""
    if isinstance(encoder, NethackEncoder):
        return _Nethack(encoder, gradients)
    assert isinstance(encoder, MlpEncoder), "it is small"
    return _Flat(encoder, gradients)


class _Flat:
    """An ``MlpEncoder``."""

    def __init__(self, encoder: MlpEncoder, gradients: ParameterGradients) -> None:
        self._leaves, self._normalizer = encoder.input.leaves, encoder.normalizer
        self._trunk = TrunkLayers(encoder.trunk, gradients)

    def forward(self, observation: Mapping[str, NDArray[Any]]) -> Rows:
        only, flat = self._leaves[0], observation[self._leaves[0].name]
        if len(self._leaves) > 1 or only.classes or flat.dtype != np.float32:
            flat = flatten(self._leaves, observation)
        else:  # nothing to put side by side, so nothing to copy
            flat = flat.reshape(-1, only.elements)
        return self._trunk.forward(_normalised(self._normalizer, flat))

    @property
    def slopes(self) -> Rows:
        return self._trunk.slopes

    def backward(self, ones: Rows) -> None:
        self._trunk.backward(ones)


class _Nethack:
    """A ``NethackEncoder`` without its optional towers."""

    def __init__(self, encoder: NethackEncoder, gradients: ParameterGradients) -> None:
        assert encoder.form is not None, "it is small"
        self._form, self._normalizer = encoder.form, encoder.blstats_normalizer
        self._first_row = np.array(encoder.form.first_row, np.int64)
        self._bag = None if encoder.bag is None else gradients.arrays(encoder.bag)
        self._numbers = None if encoder.numbers is None else Linear(encoder.numbers, gradients)
        self._first = Activated(encoder.first_width, encoder.norm, gradients, tanh=False)
        self._trunk = TrunkLayers(encoder.trunk, gradients) if len(encoder.trunk.linear) else None
        self._inputs: Rows = np.empty((0, 0), np.float32)
        self._rows = self._counts = np.empty(0, np.int64)

    def forward(self, observation: Mapping[str, NDArray[Any]]) -> Rows:
        outputs = self._first.of_rows(len(next(iter(observation.values()))))
        if self._numbers is None:
            outputs.fill(0.0)
        else:
            self._inputs = numbers_of(self._form, observation, self._figures)
            self._numbers.forward(self._inputs, outputs)
        if self._bag is not None:
            outputs += self._bag_sum(observation, self._bag[0])
        features = self._first.forward()
        return features if self._trunk is None else self._trunk.forward(features)

    @property
    def slopes(self) -> Rows:
        return self._first.slopes if self._trunk is None else self._trunk.slopes

    def backward(self, ones: Rows) -> None:
        if self._trunk is not None:
            self._trunk.backward(ones, self._first.slopes)
        slopes = self._first.backward(ones)
        if self._numbers is not None:
            self._numbers.backward(self._inputs, slopes, ones)
        if self._bag is not None:
            gradient = torch.from_numpy(self._bag[1]).zero_()
            bags = torch.from_numpy(np.repeat(np.arange(len(slopes)), self._counts))
            gradient.index_add_(0, torch.from_numpy(self._rows), torch.from_numpy(slopes)[bags])

    def _bag_sum(self, observation: Mapping[str, NDArray[Any]], bag: Rows) -> Rows:
        """[N, first layer]: the sum of the rows of all cells and words that are not 0."""
        ids = ids_of(self._form, observation)
        present = ids > 0
        self._rows, self._counts = (ids + self._first_row)[present], present.sum(axis=1)
        begins = torch.from_numpy(np.cumsum(self._counts) - self._counts)
        # Torch sums rows of a table several times as fast as NumPy does.
        return array_of(
            functional.embedding_bag(torch.from_numpy(self._rows), torch.from_numpy(bag), begins, mode="sum")
        )

    def _figures(self, figures: Rows) -> Rows:
        return _normalised(self._normalizer, figures)


def _normalised(normalizer: RunningNormalizer | None, flat: Rows) -> Rows:
    """As the normalizer's ``forward``; as it is where there is none."""
    if normalizer is None:
        return flat
    deviation = np.sqrt(array_of(normalizer.variance) + np.float32(VARIANCE_FLOOR))
    normalised: Rows = np.clip((flat - array_of(normalizer.mean)) / deviation, -CLIP, CLIP)
    return normalised


def _is_narrow(encoder: MlpEncoder | NethackEncoder) -> bool:
    return encoder.trunk.largest_width <= _LARGEST_WIDTH
