"""An actor-critic network over flat observations, forward and backward in NumPy, on its torch parameters' memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from onibi.learners.networks.actor_critic import ActorCriticNetwork
from onibi.learners.networks.leaves import flatten
from onibi.learners.networks.mlp import MlpEncoder
from onibi.learners.networks.normalizer import CLIP, VARIANCE_FLOOR
from onibi.learners.numpy_gradients.layers import Heads, ParameterGradients, Rows, TrunkLayers, array_of

_LARGEST_WIDTH = 256
"""Of a layer. Wider ones are worth several threads, which torch's kernels use and a NumPy step does not need."""


class FlatActorCritic:
    """Policy logits and value outputs side by side, [N, A + K], and the way back.

    Args:
        network: one that ``is_small_and_flat``.
    """

    def __init__(self, network: ActorCriticNetwork) -> None:
        self._gradients = ParameterGradients()
        actor, critic = network.actor.encoder, network.critic_encoder
        policy, value = network.actor.head.linear, network.value
        assert isinstance(actor, MlpEncoder), "it is small and flat"
        if critic is None:
            self._towers = [_Tower(actor, (policy, value), self._gradients)]
        else:
            assert isinstance(critic, MlpEncoder), "it is small and flat"
            self._towers = [_Tower(actor, (policy,), self._gradients), _Tower(critic, (value,), self._gradients)]

    def forward(self, observation: Mapping[str, NDArray[Any]]) -> Rows:
        """Each leaf [B, T + 1, ...] → [B · (T + 1), A + K]."""
        outputs = [tower.forward(observation) for tower in self._towers]
        return outputs[0] if len(outputs) == 1 else np.concatenate(outputs, axis=1)

    def backward(self, slopes: Rows) -> None:
        """Write all parameters' ``grad``, from slopes by what ``forward`` gave last; once after each ``forward``."""
        at = 0
        for tower in self._towers:
            tower.backward(slopes[:, at : at + tower.width])
            at += tower.width
        self._gradients.give()


class _Tower:
    """An ``MlpEncoder`` and the heads that read its features."""

    def __init__(self, encoder: MlpEncoder, heads: Sequence[nn.Linear], gradients: ParameterGradients) -> None:
        self.width = sum(head.out_features for head in heads)
        self._leaves, self._normalizer = encoder.input.leaves, encoder.normalizer
        self._trunk, self._heads = TrunkLayers(encoder.trunk, gradients), Heads(heads, gradients)
        self._features = np.empty((0, 0), np.float32)
        self._ones = np.empty(0, np.float32)

    def forward(self, observation: Mapping[str, NDArray[Any]]) -> Rows:
        flat = self._flat(observation)
        if self._normalizer is not None:
            deviation = np.sqrt(array_of(self._normalizer.variance) + np.float32(VARIANCE_FLOOR))
            flat = np.clip((flat - array_of(self._normalizer.mean)) / deviation, -CLIP, CLIP)
        self._features = self._trunk.forward(flat)
        return self._heads.forward(self._features)

    def backward(self, slopes: Rows) -> None:
        if len(self._ones) != len(slopes):
            self._ones = np.ones(len(slopes), np.float32)
        self._heads.backward(self._features, slopes, self._ones, self._trunk.slopes)
        self._trunk.backward(self._ones)

    def _flat(self, observation: Mapping[str, NDArray[Any]]) -> Rows:
        leaves = {leaf.name: observation[leaf.name] for leaf in self._leaves}
        rows = {name: values.reshape(-1, *values.shape[2:]) for name, values in leaves.items()}
        only = self._leaves[0]
        if len(rows) == 1 and not only.classes and rows[only.name].dtype == np.float32:
            return rows[only.name].reshape(-1, only.elements)  # nothing to put side by side, so nothing to copy
        return flatten(self._leaves, rows)


def is_small_and_flat(network: ActorCriticNetwork) -> bool:
    """Whether encoders are linear layers of at most 256 outputs, without memory, and actions are discrete."""
    if network.actor.core is not None or network.actor.head.log_std is not None:
        return False
    encoders = [network.actor.encoder, *([] if network.critic_encoder is None else [network.critic_encoder])]
    # An encoder of a class of its own may compute anything in its forward.
    return all(type(encoder) is MlpEncoder and encoder.trunk.largest_width <= _LARGEST_WIDTH for encoder in encoders)
