"""The forward pass of an ``MlpEncoder`` in NumPy, for actors: an import of torch costs 218 MB and 1.3 s a process."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onibi.learners.networks.leaves import FlatLeaf, flatten

_LAYER_NORM_EPSILON = 1e-5
_VARIANCE_FLOOR, _CLIP = 1e-6, 10.0  # as RunningNormalizer

Pair = tuple[NDArray[np.float32], NDArray[np.float32]]
_Layer = tuple[NDArray[np.float32], NDArray[np.float32], Pair | None]


class NumpyTrunk:
    """Flat observations to features, with the arrays of a published ``MlpEncoder``. A test compares it with torch.

    Args:
        leaves: as the encoder's.
    """

    def __init__(self, leaves: Sequence[FlatLeaf]) -> None:
        self._leaves = tuple(leaves)
        self._layers: list[_Layer] = []
        self._shift_scale: Pair | None = None
        self._tanh = False
        self._buffers: list[NDArray[np.float32]] = []

    def load(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Take the arrays by their names in the torch module; matrices are laid out anew for row vectors."""
        layers: list[_Layer] = []
        while f"encoder.trunk.linear.{len(layers)}.weight" in arrays:
            at = len(layers)
            norm = f"encoder.trunk.norm.{at}."
            normed = norm + "weight" in arrays
            scale_bias = (arrays[norm + "weight"].copy(), arrays[norm + "bias"].copy()) if normed else None
            layers.append((*linear_pair(arrays, f"encoder.trunk.linear.{at}."), scale_bias))
        self._layers = layers
        self._tanh = "encoder.trunk.tanh" in arrays
        self._shift_scale = None
        if "encoder.normalizer.mean" in arrays:
            deviation = np.sqrt(arrays["encoder.normalizer.variance"] + np.float32(_VARIANCE_FLOOR))
            scale = np.reciprocal(deviation).astype(np.float32)
            self._shift_scale = (arrays["encoder.normalizer.mean"].copy(), scale)

    def __call__(self, observation: Mapping[str, NDArray[Any]]) -> NDArray[np.float32]:
        """Features of the observation.

        Args:
            observation: each leaf [E, ...]; not written to.
        Returns: [E, F] float32, overwritten by the next call.
        """
        features = flatten(self._leaves, observation)
        if self._shift_scale is not None:
            features = (features - self._shift_scale[0]) * self._shift_scale[1]
            np.clip(features, -_CLIP, _CLIP, out=features)
        buffers = self._buffers_for(len(features))
        for (weight, bias, norm), buffer in zip(self._layers, buffers, strict=True):
            features = np.matmul(features, weight, out=buffer)
            features += bias
            if norm is not None:
                features -= features.mean(axis=1, keepdims=True)
                variance = np.einsum("ef,ef->e", features, features) / np.float32(features.shape[1])
                features *= (1.0 / np.sqrt(variance + np.float32(_LAYER_NORM_EPSILON)))[:, None]
                features *= norm[0]
                features += norm[1]
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
