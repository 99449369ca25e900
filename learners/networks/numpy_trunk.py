"""The forward pass of an ``MlpEncoder`` in NumPy, for actors, and the parts that other encoders' twins share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onibi.learners.networks.leaves import FlatLeaf, flatten

_LAYER_NORM_EPSILON = 1e-5
_VARIANCE_FLOOR, _CLIP = 1e-6, 10.0  # as RunningNormalizer

Pair = tuple[NDArray[np.float32], NDArray[np.float32]]


@dataclass(frozen=True)
class NumpyTrunkForm:
    """What a ``NumpyTrunk`` is built of; a ``NumpyForm``."""

    leaves: tuple[FlatLeaf, ...]

    def make(self) -> NumpyTrunk:
        """One without arrays yet."""
        return NumpyTrunk(self.leaves)


class NumpyTrunk:
    """Flat observations to features, with the arrays of a published ``MlpEncoder``. A test compares it with torch.

    Args:
        leaves: as the encoder's.
    """

    def __init__(self, leaves: Sequence[FlatLeaf]) -> None:
        self._leaves = tuple(leaves)
        self._layers = NumpyLayers()
        self._normalizer = NumpyNormalizer("encoder.normalizer.")

    def load(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Take the arrays by their names in the torch module."""
        self._layers.load(arrays, "encoder.trunk.")
        self._normalizer.load(arrays)

    def __call__(self, observation: Mapping[str, NDArray[Any]]) -> NDArray[np.float32]:
        """Features of the observation.

        Args:
            observation: each leaf [E, ...]; not written to.
        Returns: [E, F] float32, overwritten by the next call.
        """
        return self._layers(self._normalizer(flatten(self._leaves, observation)))


@dataclass(frozen=True)
class LayerNormArrays:
    """Scale and shift of a LayerNorm."""

    weight: NDArray[np.float32]
    bias: NDArray[np.float32]

    def apply(self, features: NDArray[np.float32]) -> None:
        """Normalise [E, F] float32 in place."""
        features -= features.mean(axis=1, keepdims=True)
        variance = np.einsum("ef,ef->e", features, features) / np.float32(features.shape[1])
        features *= (1.0 / np.sqrt(variance + np.float32(_LAYER_NORM_EPSILON)))[:, None]
        features *= self.weight
        features += self.bias


def layer_norm(arrays: Mapping[str, NDArray[Any]], prefix: str) -> LayerNormArrays | None:
    """The LayerNorm of this name, copied; None where there is none."""
    if prefix + "weight" not in arrays:
        return None
    return LayerNormArrays(arrays[prefix + "weight"].copy(), arrays[prefix + "bias"].copy())


class NumpyNormalizer:
    """A published ``RunningNormalizer``; passes on what it is given where there is none of its name.

    Args:
        prefix: of its names among the arrays, with its dot.
    """

    def __init__(self, prefix: str) -> None:
        self._prefix = prefix
        self._shift_scale: Pair | None = None

    def load(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Take its arrays, where they are there."""
        self._shift_scale = None
        if self._prefix + "mean" in arrays:
            deviation = np.sqrt(arrays[self._prefix + "variance"] + np.float32(_VARIANCE_FLOOR))
            scale = np.reciprocal(deviation).astype(np.float32)
            self._shift_scale = (arrays[self._prefix + "mean"].copy(), scale)

    def __call__(self, features: NDArray[np.float32]) -> NDArray[np.float32]:
        """[E, F] float32 → [E, F] float32."""
        if self._shift_scale is None:
            return features
        features = (features - self._shift_scale[0]) * self._shift_scale[1]
        return np.clip(features, -_CLIP, _CLIP, out=features)


class NumpyLayers:
    """The layers of a published ``Trunk``: linear → LayerNorm (where there is one) → ReLU or tanh."""

    def __init__(self) -> None:
        self._layers: list[tuple[NDArray[np.float32], NDArray[np.float32], LayerNormArrays | None]] = []
        self._tanh = False
        self._buffers: list[NDArray[np.float32]] = []

    def load(self, arrays: Mapping[str, NDArray[Any]], prefix: str) -> None:
        """Take the arrays under ``prefix``; matrices are laid out anew for row vectors."""
        self._layers = []
        while f"{prefix}linear.{len(self._layers)}.weight" in arrays:
            at = len(self._layers)
            norm = layer_norm(arrays, f"{prefix}norm.{at}.")
            self._layers.append((*linear_pair(arrays, f"{prefix}linear.{at}."), norm))
        self._tanh = prefix + "tanh" in arrays

    def __call__(self, features: NDArray[np.float32]) -> NDArray[np.float32]:
        """[E, F] → [E, last width] float32, overwritten by the next call."""
        for (weight, bias, norm), buffer in zip(self._layers, self._buffers_for(len(features)), strict=True):
            features = np.matmul(features, weight, out=buffer)
            features += bias
            if norm is not None:
                norm.apply(features)
            if self._tanh:
                np.tanh(features, out=features)
            else:
                np.maximum(features, 0.0, out=features)
        return features

    def _buffers_for(self, envs: int) -> list[NDArray[np.float32]]:
        widths = [(envs, weight.shape[1]) for weight, _, _ in self._layers]
        if [buffer.shape for buffer in self._buffers] != widths:
            self._buffers = [np.empty(width, np.float32) for width in widths]
        return self._buffers


def linear_pair(arrays: Mapping[str, NDArray[Any]], prefix: str) -> Pair:
    """Weight [in, out] and bias [out] of a published ``nn.Linear``, copied."""
    return np.ascontiguousarray(arrays[prefix + "weight"].T), arrays[prefix + "bias"].copy()
