"""The forward pass of an MLP Q-network in NumPy, for actors: an import of torch costs 218 MB and 1.3 s a process."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onibi.learners.networks.leaves import FlatLeaf, flatten

_LAYER_NORM_EPSILON = 1e-5
_VARIANCE_FLOOR, _CLIP = 1e-6, 10.0  # as RunningNormalizer

_Pair = tuple[NDArray[np.float32], NDArray[np.float32]]
_Layer = tuple[NDArray[np.float32], NDArray[np.float32], _Pair | None]


class NumpyMlp:
    """Greedy values from the arrays of a published ``QNetwork`` over an ``MlpEncoder``. A test compares it with torch.

    Args:
        leaves: as the encoder's.
        actions: A.
    """

    def __init__(self, leaves: Sequence[FlatLeaf], actions: int) -> None:
        self._leaves, self._actions = tuple(leaves), actions
        self._layers: list[_Layer] = []
        self._shift_scale: _Pair | None = None
        self._head: _Pair | None = None
        self._value: _Pair | None = None
        self._centres: NDArray[np.float32] | None = None

    def load(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Take the arrays by their names in the torch module; matrices are laid out anew for row vectors."""
        layers: list[_Layer] = []
        while f"encoder.trunk.linear.{len(layers)}.weight" in arrays:
            at = len(layers)
            norm = f"encoder.trunk.norm.{at}."
            normed = norm + "weight" in arrays
            scale_bias = (arrays[norm + "weight"].copy(), arrays[norm + "bias"].copy()) if normed else None
            layers.append((*_linear(arrays, f"encoder.trunk.linear.{at}."), scale_bias))
        self._layers = layers
        self._shift_scale = None
        if "encoder.normalizer.mean" in arrays:
            deviation = np.sqrt(arrays["encoder.normalizer.variance"] + np.float32(_VARIANCE_FLOOR))
            scale = np.reciprocal(deviation).astype(np.float32)
            self._shift_scale = (arrays["encoder.normalizer.mean"].copy(), scale)
        if "head.embedding.weight" in arrays:
            mean = _mean_embedding(arrays)
            self._head = _scaled(_linear(arrays, "head.values.advantage."), mean)
            dueling = "head.values.value.weight" in arrays
            self._value = _scaled(_linear(arrays, "head.values.value."), mean) if dueling else None
        else:
            self._head = _linear(arrays, "head.advantage.")
            self._value = _linear(arrays, "head.value.") if "head.value.weight" in arrays else None
        self._centres = arrays["centres"].copy() if "centres" in arrays else None

    def action_values(self, observation: Mapping[str, NDArray[Any]]) -> NDArray[np.float32]:
        """Values of all actions.

        Args:
            observation: each leaf [E, ...].
        Returns: [E, A] float32. Raises: RuntimeError before the first ``load``.
        """
        if self._head is None:
            raise RuntimeError("action_values before load")
        features = flatten(self._leaves, observation)
        if self._shift_scale is not None:
            features = np.clip((features - self._shift_scale[0]) * self._shift_scale[1], -_CLIP, _CLIP)
        for weight, bias, norm in self._layers:
            features = features @ weight
            features += bias
            if norm is not None:
                features -= features.mean(axis=1, keepdims=True)
                variance = np.einsum("ef,ef->e", features, features) / np.float32(features.shape[1])
                features *= (1.0 / np.sqrt(variance + np.float32(_LAYER_NORM_EPSILON)))[:, None]
                features *= norm[0]
                features += norm[1]
            np.maximum(features, 0.0, out=features)
        weight, bias = self._head
        outputs = (features @ weight + bias).reshape(len(features), self._actions, -1)
        if self._value is not None:
            weight, bias = self._value
            outputs += (features @ weight + bias)[:, None] - outputs.mean(axis=1, keepdims=True)
        if self._centres is None:
            return outputs[:, :, 0] if outputs.shape[2] == 1 else outputs.mean(axis=2)  # of quantiles
        outputs -= outputs.max(axis=2, keepdims=True)
        np.exp(outputs, out=outputs)
        values: NDArray[np.float32] = (outputs @ self._centres) / outputs.sum(axis=2)
        return values


def _linear(arrays: Mapping[str, NDArray[Any]], prefix: str) -> _Pair:
    return np.ascontiguousarray(arrays[prefix + "weight"].T), arrays[prefix + "bias"].copy()


def _mean_embedding(arrays: Mapping[str, NDArray[Any]]) -> NDArray[np.float32]:
    """[F]: an implicit quantile head's embedding, averaged over its fractions."""
    weight, bias = _linear(arrays, "head.embedding.")
    orders, fractions = np.arange(len(weight), dtype=np.float32), arrays["head.fractions"]
    cosines = np.cos(np.float32(np.pi) * orders * fractions[:, None])
    return np.maximum(cosines @ weight + bias, 0.0).mean(axis=0)  # type: ignore[no-any-return]


def _scaled(layer: _Pair, scale: NDArray[np.float32]) -> _Pair:
    """The layer that reads features without their scale as this one reads them with it."""
    weight, bias = layer
    return np.ascontiguousarray(weight * scale[:, None]), bias
