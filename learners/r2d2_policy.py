"""Policies of R2D2: a recurrent Q-network acting step by step. Flat networks act in NumPy, without torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from onibi.learners.dqn_policy import VALUES, random_step
from onibi.learners.exploration import ExplorationSettings, Explorer
from onibi.learners.input_tensors import input_tensors
from onibi.learners.networks.core_settings import STATE_COLUMN, CoreSettings, state_size
from onibi.learners.networks.numpy_core import NumpyCore
from onibi.learners.networks.numpy_encoder import NumpyForm
from onibi.learners.networks.numpy_head import NumpyQHead
from onibi.platform.config import Settings
from onibi.platform.forward_policy import Forward, ForwardPolicy, Rows
from onibi.platform.policy import LaneRange, Policy, PolicyStep, WeightsVersion
from onibi.platform.spec import ACTION_MASK, ReplaySpec

if TYPE_CHECKING:
    from onibi.learners.networks.recurrent_q import RecurrentQNetwork
    from onibi.learners.value_losses import HeadForm


PREVIOUS, STATE = "core.previous", "core.state"
"""Inputs of a forward pass: [N] int64, the number of the action before + 1, 0 for none; [N, S] float32 of the core,
which is an output, too.
"""


class RecurrentQPolicy(ForwardPolicy):
    """ε-greedy or softmax over a recurrent Q-network.

    Its state is the core's and, where the core reads the previous action, the number of that + 1, 0 at the begin.

    Args:
        forward: of the network without weights yet; None where it is computed elsewhere.
        explorer: turns values into actions.
        actions: A.
        core_size: S of the core.
        previous_action: whether the core reads it.
        stores_state: whether each step brings the state before it, in ``extra``.
    """

    def __init__(
        self,
        forward: Forward | None,
        explorer: Explorer,
        actions: int,
        *,
        core_size: int,
        previous_action: bool,
        stores_state: bool,
    ) -> None:
        super().__init__(forward)
        self._explorer, self._actions, self._core_size = explorer, actions, core_size
        self._previous_action, self._stores_state = previous_action, stores_state

    def initial_state(self, envs: int) -> NDArray[np.float32]:
        """[E, S] zeros."""
        return np.zeros((envs, self._core_size + self._previous_action), np.float32)

    def inputs(self, observation: Rows, state: Any, _rng: np.random.Generator) -> Rows:
        """The observation, the core's state and the previous action."""
        previous = state[:, -1].astype(np.int64) if self._previous_action else np.zeros(len(state), np.int64)
        return {**observation, STATE: state[:, : self._core_size], PREVIOUS: previous}

    def choose(self, outputs: Rows | None, observation: Rows, state: Any, rng: np.random.Generator) -> PolicyStep:
        """See ``ForwardPolicy``. While there are no weights the core's state stays as it is, 0."""
        extra = {STATE_COLUMN: state} if self._stores_state else {}
        if outputs is None:
            action = random_step(observation, self._actions, rng).action
            following = state[:, : self._core_size]
        else:
            action = self._explorer.choose(outputs[VALUES], rng, observation.get(ACTION_MASK))
            following = outputs[STATE]
        if self._previous_action:
            following = np.concatenate((following, action[:, None] + np.float32(1)), axis=1, dtype=np.float32)
        return PolicyStep(action, following, extra)

    def follow(self, version: WeightsVersion) -> None:
        """Anneal the exploration, too."""
        super().follow(version)
        self._explorer.follow(version)


class NumpyRecurrentNetwork:
    """Encoder, core and head in NumPy by the arrays of a ``RecurrentQNetwork``. A test compares it with torch.

    Args:
        encoder: what its encoder is built of.
        core: cell, size, norm.
        actions: A.
        previous_action: whether the core reads it.
    """

    def __init__(self, encoder: NumpyForm, core: CoreSettings, actions: int, *, previous_action: bool) -> None:
        self._one_hots = np.eye(actions + 1, dtype=np.float32)[:, 1:] if previous_action else None
        self._encoder, self._core, self._head = encoder.make(), NumpyCore(core, "core."), NumpyQHead(actions)

    def load(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        """See ``Forward``."""
        for part in (self._encoder, self._core, self._head):
            part.load(arrays)

    def __call__(self, inputs: Rows) -> dict[str, NDArray[Any]]:
        """See ``Forward``."""
        features = self._encoder(inputs)
        if self._one_hots is not None:
            features = np.concatenate((features, self._one_hots[inputs[PREVIOUS]]), axis=1)
        features, following = self._core.step(features, inputs[STATE])
        return {VALUES: self._head(features), STATE: following}


class TorchRecurrentNetwork:
    """Any ``RecurrentQNetwork`` in torch.

    Args:
        network: its parameters count only after ``load``.
        device: "cpu", "cuda", "cuda:1".
    """

    def __init__(self, network: RecurrentQNetwork, device: str = "cpu") -> None:
        self._network, self._device = network.eval().to(device), device

    def load(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        """See ``Forward``."""
        import torch

        self._network.load_state_dict({name: torch.from_numpy(array) for name, array in arrays.items()})

    def __call__(self, inputs: Rows) -> dict[str, NDArray[Any]]:
        """See ``Forward``."""
        import torch

        with torch.inference_mode():
            tensors = input_tensors(inputs, self._device)
            values, following = self._network.step(tensors, tensors[PREVIOUS], tensors[STATE])
        return {VALUES: values.cpu().numpy(), STATE: following.cpu().numpy()}


@dataclass(frozen=True, kw_only=True)
class NumpyRecurrentPolicyFactory:
    """Picklable maker of policies that act in NumPy; unpickling it needs no torch."""

    exploration: ExplorationSettings
    encoder: NumpyForm
    core: CoreSettings
    actions: int
    previous_action: bool
    stores_state: bool

    def __call__(self, lanes: LaneRange | None) -> Policy:
        """A policy that explores for ``lanes``, or the greedy one for None."""
        return self.around(self.forward(), lanes)

    def forward(self, _device: str = "cpu") -> NumpyRecurrentNetwork:
        """The network in NumPy, whatever the device."""
        return NumpyRecurrentNetwork(self.encoder, self.core, self.actions, previous_action=self.previous_action)

    def around(self, forward: Forward | None, lanes: LaneRange | None) -> RecurrentQPolicy:
        """A policy around a forward pass."""
        return RecurrentQPolicy(
            forward,
            Explorer(self.exploration, lanes, noisy=False),
            self.actions,
            core_size=state_size(self.core),
            previous_action=self.previous_action,
            stores_state=self.stores_state,
        )


@dataclass(frozen=True, kw_only=True)
class TorchRecurrentPolicyFactory:
    """Picklable maker of policies that act in torch.

    It holds what the network is built of rather than the module: the parameters come with the weights.
    """

    exploration: ExplorationSettings
    network: Settings
    core: CoreSettings
    spec: ReplaySpec
    form: HeadForm
    dueling: bool
    previous_action: bool
    stores_state: bool

    def __call__(self, lanes: LaneRange | None) -> Policy:
        """A policy that explores for ``lanes``, or the greedy one for None."""
        return self.around(self.forward(), lanes)

    def forward(self, device: str = "cpu") -> TorchRecurrentNetwork:
        """The network on a device."""
        import torch

        from onibi.learners.networks.recurrent_q import build_recurrent_q_network

        zeros = torch.zeros(self.form.outputs)
        network = build_recurrent_q_network(
            self.network,
            self.core,
            self.spec,
            self.form,
            zeros,
            zeros if self.form.classified else None,
            dueling=self.dueling,
            previous_action=self.previous_action,
            seed=0,
        )
        return TorchRecurrentNetwork(network, device)

    def around(self, forward: Forward | None, lanes: LaneRange | None) -> RecurrentQPolicy:
        """A policy around a forward pass."""
        return RecurrentQPolicy(
            forward,
            Explorer(self.exploration, lanes, noisy=False),
            self.spec.actions,
            core_size=state_size(self.core),
            previous_action=self.previous_action,
            stores_state=self.stores_state,
        )
