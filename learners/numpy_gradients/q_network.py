"""A Q-network forward and backward in NumPy, on its torch parameters' memory."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onibi.learners.networks.build import QNetwork
from onibi.learners.networks.heads import ActionValueHead
from onibi.learners.networks.noisy import NoisyLinear
from onibi.learners.numpy_gradients.encoders import encoder_by_hand, is_small
from onibi.learners.numpy_gradients.layers import Linear, ParameterGradients, Rows, array_of


class SmallQNetwork:
    """Outputs of all actions, what they are worth, and the way back from those of the actions taken.

    Args:
        network: one that ``is_small_q_network``.
    """

    def __init__(self, network: QNetwork) -> None:
        assert isinstance(network.head, ActionValueHead), "it is small"
        self._gradients, head = ParameterGradients(), network.head
        self._encoder = encoder_by_hand(network.encoder, self._gradients)
        self._advantage = Linear(head.advantage, self._gradients)
        self._value = None if head.value is None else Linear(head.value, self._gradients)
        self._actions, self._width = head.actions, head.outputs
        self._centres = None if network.centres is None else array_of(network.centres)
        self._features: Rows = np.empty((0, 0), np.float32)
        self._slopes: Rows = np.empty((0, 0, 0), np.float32)
        self._ones: Rows = np.empty(0, np.float32)

    def forward(self, observation: Mapping[str, NDArray[Any]]) -> Rows:
        """Each leaf [N, ...] → outputs [N, A, K]."""
        self._features = features = self._encoder.forward(observation)
        advantage, shape = self._advantage, (self._actions, self._width)
        outputs = advantage.forward(features).reshape(len(features), *shape)
        if self._value is not None:  # v + a − mean over actions of a; the mean is taken of the layer, not of the rows
            common = self._value.weight - advantage.weight.reshape(*shape, -1).mean(axis=0)
            outputs += (features @ common.T + (self._value.bias - advantage.bias.reshape(shape).mean(axis=0)))[:, None]
        return outputs

    def values(self, outputs: Rows) -> Rows:
        """Outputs [..., K] → values [...]; overwrites outputs of bins."""
        if self._centres is None:
            return outputs[..., 0]
        outputs -= outputs.max(axis=-1, keepdims=True)
        np.exp(outputs, out=outputs)
        decoded: Rows = (outputs @ self._centres) / outputs.sum(axis=-1)
        return decoded

    def backward(self, action: NDArray[np.int64], slopes: Rows) -> None:
        """Write all parameters' ``grad``; once after each ``forward``.

        Args:
            action: [N], taken.
            slopes: [N, K], of the loss by the outputs of these actions; no loss hangs on those of others.
        """
        rows = len(slopes)
        if len(self._ones) != rows:
            self._ones = np.ones(rows, np.float32)
            self._slopes = np.empty((rows, self._actions, self._width), np.float32)
        of_advantage, features, back = self._slopes, self._features, self._encoder.slopes
        if self._value is None:
            of_advantage.fill(0.0)
            of_advantage[np.arange(rows), action] = slopes
        else:
            np.multiply(slopes[:, None], np.float32(-1.0 / self._actions), out=of_advantage)
            of_advantage[np.arange(rows), action] += slopes
        flat = of_advantage.reshape(rows, -1)
        self._advantage.backward(features, flat, self._ones)
        np.matmul(flat, self._advantage.weight, out=back)
        if self._value is not None:
            self._value.backward(features, slopes, self._ones)
            back += slopes @ self._value.weight
        self._encoder.backward(self._ones)
        self._gradients.give()


def is_small_q_network(network: QNetwork) -> bool:
    """Whether the encoder is one that ``encoder_by_hand`` knows, and the head has outputs of its own and no noise."""
    head = network.head
    if type(head) is not ActionValueHead or isinstance(head.advantage, NoisyLinear):
        return False
    return is_small(network.encoder)
