"""The forward pass of an action-value head in NumPy, for actors without torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onibi.learners.networks.numpy_trunk import Pair


class NumpyQHead:
    """Values of all actions by the arrays of a published ``ActionValueHead`` or ``ImplicitQuantileHead``.

    Args:
        actions: A.
    """

    def __init__(self, actions: int) -> None:
        self._actions = actions
        self._advantage: Pair | None = None
        self._value: Pair | None = None
        self._advantage_deviation: Pair | None = None
        self._value_deviation: Pair | None = None
        self._centres: NDArray[np.float32] | None = None

    def load(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Take the arrays by their names in the torch module; matrices are laid out anew for row vectors."""
        values = "head.values." if "head.embedding.weight" in arrays else "head."
        embedding = _mean_embedding(arrays) if "head.embedding.weight" in arrays else None
        self._advantage, self._advantage_deviation = _layer(arrays, values + "advantage.", embedding)
        self._value, self._value_deviation = None, None
        if values + "value.weight" in arrays:
            self._value, self._value_deviation = _layer(arrays, values + "value.", embedding)
        self._centres = arrays["centres"].copy() if "centres" in arrays else None

    @property
    def noise_size(self) -> int:
        """Standard normals that a row of noise has, as the torch head's; 0 where the weights loaded are not noisy."""
        layers = (self._advantage_deviation, self._value_deviation)
        return sum(sum(layer[0].shape) for layer in layers if layer is not None)

    def __call__(self, features: NDArray[np.float32], noise: NDArray[np.float32] | None = None) -> NDArray[np.float32]:
        """Values of all actions.

        Args:
            features: [E, F] float32.
            noise: [E, noise_size] standard normals for a noisy head; None gives the means.
        Returns: [E, A] float32. Raises: RuntimeError before the first ``load``.
        """
        if self._advantage is None:
            raise RuntimeError("values are asked for before load")
        flat = _applied(features, self._advantage, self._advantage_deviation, noise)
        outputs = flat.reshape(len(features), self._actions, -1)
        if self._value is not None:
            if noise is not None and self._advantage_deviation is not None:
                noise = noise[:, sum(self._advantage_deviation[0].shape) :]
            value = _applied(features, self._value, self._value_deviation, noise)
            outputs += value[:, None] - outputs.mean(axis=1, keepdims=True)
        if self._centres is None:
            return outputs[:, :, 0] if outputs.shape[2] == 1 else outputs.mean(axis=2)  # of quantiles
        outputs -= outputs.max(axis=2, keepdims=True)
        np.exp(outputs, out=outputs)
        values: NDArray[np.float32] = (outputs @ self._centres) / outputs.sum(axis=2)
        return values


def _layer(
    arrays: Mapping[str, NDArray[Any]], prefix: str, scale: NDArray[np.float32] | None
) -> tuple[Pair, Pair | None]:
    """A layer of the head and, where it is noisy, its deviations likewise; both read features times ``scale``."""
    layers: list[Pair] = []
    for ending in ("", "_deviation"):
        if f"{prefix}weight{ending}" in arrays:
            layer = _linear(arrays, prefix, ending)
            layers.append(layer if scale is None else _scaled(layer, scale))
    return layers[0], layers[1] if len(layers) > 1 else None


def _applied(
    features: NDArray[np.float32], layer: Pair, deviation: Pair | None, noise: NDArray[np.float32] | None
) -> NDArray[np.float32]:
    """[E, q]: the layer's means, and the noise on them as in ``NoisyLinear``; the first normals of a row are read."""
    outputs: NDArray[np.float32] = features @ layer[0] + layer[1]
    if noise is None or deviation is None:
        return outputs
    inputs, width = deviation[0].shape
    shaped = np.sign(noise[:, : inputs + width]) * np.sqrt(np.abs(noise[:, : inputs + width]))
    outputs += shaped[:, inputs:] * ((features * shaped[:, :inputs]) @ deviation[0] + deviation[1])
    return outputs


def _linear(arrays: Mapping[str, NDArray[Any]], prefix: str, ending: str = "") -> Pair:
    return np.ascontiguousarray(arrays[f"{prefix}weight{ending}"].T), arrays[f"{prefix}bias{ending}"].copy()


def _mean_embedding(arrays: Mapping[str, NDArray[Any]]) -> NDArray[np.float32]:
    """[F]: an implicit quantile head's embedding, averaged over its fractions."""
    weight, bias = _linear(arrays, "head.embedding.")
    orders, fractions = np.arange(len(weight), dtype=np.float32), arrays["head.fractions"]
    cosines = np.cos(np.float32(np.pi) * orders * fractions[:, None])
    return np.maximum(cosines @ weight + bias, 0.0).mean(axis=0)  # type: ignore[no-any-return]


def _scaled(layer: Pair, scale: NDArray[np.float32]) -> Pair:
    """The layer that reads features without their scale as this one reads them with it."""
    weight, bias = layer
    return np.ascontiguousarray(weight * scale[:, None]), bias
