"""An actor-critic network, forward and backward in NumPy, on its torch parameters' memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from onibi.learners.networks.actor_critic import ActorCriticNetwork
from onibi.learners.numpy_gradients.encoders import encoder_by_hand, is_small
from onibi.learners.numpy_gradients.layers import Heads, ParameterGradients, Rows


class SmallActorCritic:
    """Policy logits and value outputs side by side, [N, A + K], and the way back.

    Args:
        network: one that ``is_small_actor_critic``.
    """

    def __init__(self, network: ActorCriticNetwork) -> None:
        self._gradients = ParameterGradients()
        actor, critic = network.actor.encoder, network.critic_encoder
        policy, value = network.actor.head.linear, network.value
        if critic is None:
            self._towers = [_Tower(actor, (policy, value), self._gradients)]
        else:
            self._towers = [_Tower(actor, (policy,), self._gradients), _Tower(critic, (value,), self._gradients)]

    def forward(self, observation: Mapping[str, NDArray[Any]]) -> Rows:
        """Each leaf [B, T + 1, ...] → [B · (T + 1), A + K]."""
        rows = {name: values.reshape(-1, *values.shape[2:]) for name, values in observation.items()}
        outputs = [tower.forward(rows) for tower in self._towers]
        return outputs[0] if len(outputs) == 1 else np.concatenate(outputs, axis=1)

    def backward(self, slopes: Rows) -> None:
        """Write all parameters' ``grad``, from slopes by what ``forward`` gave last; once after each ``forward``."""
        at = 0
        for tower in self._towers:
            tower.backward(slopes[:, at : at + tower.width])
            at += tower.width
        self._gradients.give()


class _Tower:
    """An encoder and the heads that read its features."""

    def __init__(self, encoder: nn.Module, heads: Sequence[nn.Linear], gradients: ParameterGradients) -> None:
        self.width = sum(head.out_features for head in heads)
        self._encoder, self._heads = encoder_by_hand(encoder, gradients), Heads(heads, gradients)
        self._features = np.empty((0, 0), np.float32)
        self._ones = np.empty(0, np.float32)

    def forward(self, observation: Mapping[str, NDArray[Any]]) -> Rows:
        self._features = self._encoder.forward(observation)
        return self._heads.forward(self._features)

    def backward(self, slopes: Rows) -> None:
        if len(self._ones) != len(slopes):
            self._ones = np.ones(len(slopes), np.float32)
        self._heads.backward(self._features, slopes, self._ones, self._encoder.slopes)
        self._encoder.backward(self._ones)


def is_small_actor_critic(network: ActorCriticNetwork) -> bool:
    """Whether encoders are those that ``encoder_by_hand`` knows, without memory, and actions are discrete."""
    if network.actor.core is not None or network.actor.head.log_std is not None:
        return False
    return all(map(is_small, [network.actor.encoder, network.critic_encoder or network.actor.encoder]))
