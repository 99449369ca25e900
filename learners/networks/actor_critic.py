"""Networks of actor-critic learners: encoder → memory (where asked) → policy head, and a value head beside it.

The actor is a module of its own: it alone is published, and rollouts run it (in NumPy where it is flat). The critic
reads the actor's features, or those of an encoder of its own.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Annotated, cast

import torch
from pydantic import Field
from torch import Tensor, nn

from onibi.learners.action_distributions import ActionDistribution, categorical, diagonal_gaussian
from onibi.learners.networks.build import Encoder, build_encoder
from onibi.learners.networks.core_settings import CoreSettings
from onibi.learners.networks.recurrent import RecurrentCore
from onibi.learners.value_losses import ValueHead
from onibi.platform.config import Settings
from onibi.platform.spec import ACTION_MASK, ReplaySpec

_POLICY_GAIN = 0.01
"""Of the policy head's orthogonal initialisation: at the start all actions are (nearly) equally likely."""
_VALUE_GAIN = 0.01
"""Of the value head's: at the start every observation has (nearly) the value 0."""
_RELU_GAIN, _TANH_GAIN = math.sqrt(2.0), 5.0 / 3.0
"""Of the layers before them, which keep the size of the features."""


@dataclass(frozen=True, kw_only=True)
class ActorForm:
    """What an actor is built of; enough to build it where it acts.

    Args:
        network: settings of the encoder, ``auto`` resolved.
        core: the memory; None for none.
        initial_log_std: log σ that a Gaussian policy starts with.
    """

    network: Settings
    core: CoreSettings | None
    initial_log_std: Annotated[float, Field(ge=-5.0, le=2.0)]


class PolicyHead(nn.Module):
    """Features [N, F] → a distribution over actions.

    Args:
        features: F.
        spec: discrete actions, or the shape of continuous ones.
        initial_log_std: log σ to start with, for continuous ones.
    """

    def __init__(self, features: int, spec: ReplaySpec, initial_log_std: float) -> None:
        super().__init__()
        continuous = spec.action is not None
        width = spec.action.shape[0] if spec.action is not None else spec.actions
        self.linear = nn.Linear(features, width)
        nn.init.orthogonal_(self.linear.weight, _POLICY_GAIN)
        nn.init.zeros_(self.linear.bias)
        self.log_std = nn.Parameter(torch.full((width,), initial_log_std)) if continuous else None

    def distribution(self, outputs: Tensor, mask: Tensor | None) -> ActionDistribution:
        """What ``linear`` gives [..., A or D], and which discrete actions are allowed [..., A] → the distribution."""
        if self.log_std is not None:
            return diagonal_gaussian(outputs, self.log_std)
        return categorical(outputs, mask)

    def forward(self, features: Tensor, mask: Tensor | None) -> ActionDistribution:
        """[..., F] → the distribution."""
        return self.distribution(self.linear(features), mask)


class ActorNetwork(nn.Module):
    """Encoder, memory and policy head.

    Args:
        form: what to build.
        spec: row layout.
    """

    def __init__(self, form: ActorForm, spec: ReplaySpec) -> None:
        super().__init__()
        self.encoder = build_encoder(form.network, spec.observation)
        features = self.encoder.features
        assert isinstance(features, int)
        self.core = None if form.core is None else RecurrentCore(form.core, features)
        self.features = features if self.core is None else self.core.features
        self.head = PolicyHead(self.features, spec, form.initial_log_std)

    def outputs(self, observation: Mapping[str, Tensor], state: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """One step: each leaf [E, ...] and the state [E, S] → logits or means [E, A or D], and the next state."""
        features = self.encoder(observation)
        if self.core is not None:
            assert state is not None, "a network with memory is given its state"
            features, state = self.core.step(features, state)
        return self.head.linear(features), state


@dataclass(frozen=True)
class SlabOutputs:
    """What an actor-critic network gives for slabs.

    Args:
        policy: over the actions of the rows, leading axes [B, T].
        values: [B, T + 1, K] float32, outputs of the value head, the observation behind the last row included.
    """

    policy: ActionDistribution
    values: Tensor


class ActorCriticNetwork(nn.Module):
    """An actor and a critic.

    Args:
        actor: its features are shared where there is no encoder for the critic.
        critic_encoder: the critic's own, or None.
        value_head: form of the value's outputs, and those that stand for 0.
    """

    def __init__(self, actor: ActorNetwork, critic_encoder: nn.Module | None, value_head: ValueHead) -> None:
        super().__init__()
        self.actor = actor
        self.critic_encoder = critic_encoder
        features = actor.features if critic_encoder is None else critic_encoder.features
        assert isinstance(features, int)
        self.value = nn.Linear(features, value_head.outputs)
        nn.init.orthogonal_(self.value.weight, _VALUE_GAIN)
        with torch.no_grad():
            self.value.bias.copy_(value_head.initial_bias())

    def forward(
        self,
        observation: Mapping[str, Tensor],
        states: Tensor | None,
        begins: Tensor | None,
        autocast: AbstractContextManager[object],
    ) -> SlabOutputs:
        """All rows in one pass, encoder and heads over rows and lanes at once.

        Args:
            observation: each leaf [B, T + 1, ...].
            states: [B, T, S] float32, before each row, as the actor had it; the first one and those where a piece
                begins are read. None without memory.
            begins: [B, T] bool, where an episode piece begins. None without memory.
            autocast: the precision of encoders and memory; heads compute in float32.
        """
        lanes, rows = next(iter(observation.values())).shape[:2]
        flat = {name: leaf.flatten(0, 1) for name, leaf in observation.items()}
        with autocast:
            features: Tensor = self.actor.encoder(flat)
            if self.actor.core is not None:
                assert states is not None, "a network with memory is given its states"
                assert begins is not None, "and where pieces begin"
                features = self._remember(features.view(lanes, rows, -1), states, begins).flatten(0, 1)
            read_by_critic = features if self.critic_encoder is None else self.critic_encoder(flat)
        mask = observation.get(ACTION_MASK)
        # The heads read the last rows' observations, too, and outputs are cut: features would have to be copied.
        outputs = self.actor.head.linear(features.float()).unflatten(0, (lanes, rows))[:, :-1]
        policy = self.actor.head.distribution(outputs, None if mask is None else mask[:, :-1])
        return SlabOutputs(policy, self.value(read_by_critic.float()).unflatten(0, (lanes, rows)))

    def learn_statistics(self, observation: Mapping[str, Tensor]) -> None:
        """Merge rows, each leaf [N, ...], into the encoders' running statistics, where they keep any."""
        for encoder in (self.actor.encoder, self.critic_encoder):
            if encoder is not None:
                cast("Encoder", encoder).learn_statistics(observation)

    def _remember(self, features: Tensor, states: Tensor, begins: Tensor) -> Tensor:
        core = self.actor.core
        assert core is not None, "called where there is one"
        restart = states.transpose(0, 1)
        # What stands behind the last row follows it: where it begins another episode, nothing reads its value.
        cuts = torch.cat((begins, torch.zeros_like(begins[:, :1])), dim=1).transpose(0, 1)
        restart = torch.cat((restart, torch.zeros_like(restart[:1])))
        outputs, _ = core.unroll(features.transpose(0, 1), states[:, 0], cuts, restart)
        return outputs.transpose(0, 1)


def build_actor_critic(
    form: ActorForm, spec: ReplaySpec, value_head: ValueHead, *, shared_encoder: bool, seed: int
) -> ActorCriticNetwork:
    """A freshly initialised network: linear layers orthogonal, policy uniform, values 0.

    Args:
        form: of the actor.
        spec: row layout.
        value_head: form of the value's outputs.
        shared_encoder: whether the critic reads the actor's features.
        seed: of the initial parameters; the global generator is left as it was.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        actor = ActorNetwork(form, spec)
        critic_encoder = None if shared_encoder else build_encoder(form.network, spec.observation)
        for encoder in (actor.encoder, critic_encoder):
            if encoder is not None:
                _orthogonal_trunk(encoder)
        return ActorCriticNetwork(actor, critic_encoder, value_head)


def _orthogonal_trunk(encoder: nn.Module) -> None:
    """Orthogonal weights and biases of 0 in the trunk's linear layers (Andrychowicz et al. 2021, arXiv 2006.05990)."""
    trunk = getattr(encoder, "trunk", None)
    if trunk is None:
        return
    for layer in trunk.linear:
        nn.init.orthogonal_(layer.weight, _TANH_GAIN if trunk.saturating else _RELU_GAIN)
        nn.init.zeros_(layer.bias)
