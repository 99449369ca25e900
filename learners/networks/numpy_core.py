"""One step of a recurrent core in NumPy, for actors without torch; a test compares it with ``recurrent.py``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onibi.learners.networks.core_settings import CoreSettings, state_size

_LAYER_NORM_EPSILON = 1e-5
_GATES = {"lstm": 4, "gru": 3}

Floats = NDArray[np.float32]


class NumpyCore:
    """An LSTM or GRU by the arrays of a published ``RecurrentCore``.

    Args:
        settings: cell, size, norm.
        prefix: of the core's names among the arrays, with its dot.
    """

    def __init__(self, settings: CoreSettings, prefix: str) -> None:
        self.size, self.state_size = settings.size, state_size(settings)
        self._cell, self._prefix = settings.cell, prefix
        self._into, self._back = np.zeros((0, 0), np.float32), np.zeros((0, 0), np.float32)
        self._bias, self._back_bias = np.zeros(0, np.float32), np.zeros(0, np.float32)
        self._norm: tuple[Floats, Floats] | None = None

    def load(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Take the arrays by their names in the torch module. Raises: ValueError where they are of another size."""
        cell = self._prefix + "cell."
        into, back = arrays[cell + "weight_ih_l0"], arrays[cell + "weight_hh_l0"]
        if back.shape != (_GATES[self._cell] * self.size, self.size):
            raise ValueError(f"{cell}weight_hh_l0 has shape {back.shape}: not {self._cell} of size {self.size}")
        # σ(x) = ½ + ½ tanh(x/2): with the halves taken into the matrices one tanh serves all gates of an LSTM.
        halves = np.full(len(into), 0.5, np.float32)
        candidate = slice(2 * self.size, 3 * self.size)  # g of i f g o, n of r z n
        halves[candidate] = 1.0
        self._into = np.ascontiguousarray((into * halves[:, None]).T)
        self._back = np.ascontiguousarray((back * halves[:, None]).T)
        bias, back_bias = arrays[cell + "bias_ih_l0"] * halves, arrays[cell + "bias_hh_l0"] * halves
        if self._cell == "lstm":
            bias, back_bias = bias + back_bias, np.zeros_like(back_bias)
        self._bias, self._back_bias = bias, back_bias
        norm = self._prefix + "norm."
        normed = norm + "weight" in arrays
        self._norm = (arrays[norm + "weight"].copy(), arrays[norm + "bias"].copy()) if normed else None

    def step(self, features: Floats, state: Floats) -> tuple[Floats, Floats]:
        """One step of every environment.

        Args:
            features: [E, F] float32.
            state: [E, S] float32, before the step; not written to.
        Returns: output [E, H] and the next state [E, S].
        """
        following = self._lstm(features, state) if self._cell == "lstm" else self._gru(features, state)
        output = following[:, : self.size]
        if self._norm is None:
            return output, following
        centred = output - output.mean(axis=1, keepdims=True)
        variance = np.einsum("eh,eh->e", centred, centred) / np.float32(self.size)
        centred *= (1.0 / np.sqrt(variance + np.float32(_LAYER_NORM_EPSILON)))[:, None]
        return centred * self._norm[0] + self._norm[1], following

    def _lstm(self, features: Floats, state: Floats) -> Floats:
        size = self.size
        gates = features @ self._into
        gates += state[:, :size] @ self._back
        gates += self._bias
        np.tanh(gates, out=gates)
        gates[:, : 2 * size] = 0.5 * gates[:, : 2 * size] + 0.5  # input, forget
        gates[:, 3 * size :] = 0.5 * gates[:, 3 * size :] + 0.5  # output
        following = np.empty_like(state)
        memory = following[:, size:]
        np.multiply(gates[:, size : 2 * size], state[:, size:], out=memory)
        memory += gates[:, :size] * gates[:, 2 * size : 3 * size]
        np.multiply(gates[:, 3 * size :], np.tanh(memory), out=following[:, :size])
        return following

    def _gru(self, features: Floats, state: Floats) -> Floats:
        size = self.size
        into = features @ self._into + self._bias
        back = state @ self._back + self._back_bias
        gates = 0.5 * np.tanh(into[:, : 2 * size] + back[:, : 2 * size]) + np.float32(0.5)
        reset, keep = gates[:, :size], gates[:, size:]
        candidate = np.tanh(into[:, 2 * size :] + reset * back[:, 2 * size :])
        following: Floats = candidate + keep * (state - candidate)
        return following
