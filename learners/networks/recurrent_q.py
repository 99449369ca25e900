"""Q-networks with a memory: encoder → recurrent core → action-value head, over sequences or step by step."""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from onibi.learners.networks.build import Encoder, build_encoder
from onibi.learners.networks.core_settings import CoreSettings
from onibi.learners.networks.heads import ActionValueHead, ImplicitQuantileHead, build_head
from onibi.learners.networks.recurrent import RecurrentCore
from onibi.learners.value_losses import HeadForm
from onibi.platform.config import Settings
from onibi.platform.spec import ReplaySpec


class RecurrentQNetwork(nn.Module):
    """Encoder, core and head. ``centres`` is a buffer, so that actors read values from the weights alone.

    Args:
        encoder: observation to features.
        core: features, and the previous action where it is read, and state to features and state.
        head: those features to outputs.
        centres: [K] float32, or None where outputs are values themselves.
        previous_actions: A where the core reads a one-hot of the previous action, else 0.
    """

    centres: Tensor | None

    def __init__(
        self,
        encoder: nn.Module,
        core: RecurrentCore,
        head: ActionValueHead | ImplicitQuantileHead,
        centres: Tensor | None,
        previous_actions: int,
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.core = core
        self.head = head
        self.previous_actions = previous_actions
        self.register_buffer("centres", centres)

    def unroll(self, observation: Mapping[str, Tensor], previous: Tensor, state: Tensor) -> Tensor:
        """What the head reads at each step of a sequence.

        Args:
            observation: each leaf [T, B, ...].
            previous: [T, B] int64, number of the action before each observation + 1, 0 for none.
            state: [B, S] float32 of the core, before the first step.
        Returns: [T, B, H] float32.
        """
        features, _ = self.core.unroll(self._encoded(observation, previous), state)
        return features

    def warmed_up(
        self, observation: Mapping[str, Tensor], previous: Tensor, state: Tensor, steps: Tensor | None, *, packed: bool
    ) -> Tensor:
        """The core's states [B, S] after ``steps`` [B] of a sequence, None for all: ``RecurrentCore.state_after``."""
        return self.core.state_after(self._encoded(observation, previous), state, steps, packed=packed)

    def outputs(self, features: Tensor, fractions: Tensor | None = None) -> Tensor:
        """[N, H] → outputs [N, A, K] float32; an implicit head reads fractions [N, K] as well."""
        return self.head(features) if fractions is None else self.head(features, fractions)  # type: ignore[no-any-return]

    def action_values(self, features: Tensor) -> Tensor:
        """[N, H] → values [N, A] float32, of the outputs' own scale."""
        return self.head.action_values(features, self.centres)

    def step(self, observation: Mapping[str, Tensor], previous: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """One step.

        Args:
            observation: each leaf [E, ...].
            previous: [E] int64, number of the action before + 1, 0 for none.
            state: [E, S] float32 of the core.
        Returns: values [E, A] and the core's next state [E, S], both float32.
        """
        features, state = self.core.step(self._with_action(self.encoder(observation), previous), state)
        return self.action_values(features), state

    def learn_statistics(self, observation: Mapping[str, Tensor]) -> None:
        """Merge observations, each leaf [B, ...], into the encoder's running statistics, where it keeps any."""
        cast("Encoder", self.encoder).learn_statistics(observation)

    def _encoded(self, observation: Mapping[str, Tensor], previous: Tensor) -> Tensor:
        rows = {name: leaf.flatten(0, 1) for name, leaf in observation.items()}
        features = self._with_action(self.encoder(rows), previous.flatten())
        return features.view(*previous.shape, features.shape[1])

    def _with_action(self, features: Tensor, previous: Tensor) -> Tensor:
        if not self.previous_actions:
            return features
        one_hot = functional.one_hot(previous, self.previous_actions + 1)[:, 1:]
        return torch.cat((features, one_hot.to(features.dtype)), dim=1)


def build_recurrent_q_network(
    settings: Settings,
    core: CoreSettings,
    spec: ReplaySpec,
    form: HeadForm,
    bias: Tensor,
    centres: Tensor | None,
    *,
    dueling: bool,
    previous_action: bool,
    seed: int,
) -> RecurrentQNetwork:
    """A freshly initialised network.

    Args:
        settings: of the encoder.
        core: of the memory.
        spec: row layout; its observation and number of actions are read.
        form: of the outputs.
        bias: [K] float32, outputs that decode to the starting value.
        centres: [K] float32 of the bins, copied; None where outputs are values.
        dueling: separate value and advantage layers.
        previous_action: whether the core reads it.
        seed: of the initial parameters; the global generator is left as it was.
    Raises: SpecError where the encoder cannot read the observation.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        encoder = build_encoder(settings, spec.observation)
        features = encoder.features
        assert isinstance(features, int)
        previous_actions = spec.actions if previous_action else 0
        memory = RecurrentCore(core, features + previous_actions)
        head = build_head(form, memory.features, spec.actions, bias, dueling=dueling)
    centres = None if centres is None else centres.clone()
    return RecurrentQNetwork(encoder, memory, head, centres, previous_actions)
