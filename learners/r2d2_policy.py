"""Policies of R2D2: a recurrent Q-network acting step by step. Flat networks act in NumPy, without torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from onibi.learners.dqn_policy import random_step
from onibi.learners.exploration import ExplorationSettings, Explorer
from onibi.learners.networks.core_settings import STATE_COLUMN, CoreSettings, state_size
from onibi.learners.networks.leaves import FlatLeaf
from onibi.learners.networks.numpy_core import NumpyCore
from onibi.learners.networks.numpy_head import NumpyQHead
from onibi.learners.networks.numpy_trunk import NumpyTrunk
from onibi.platform.config import Settings
from onibi.platform.policy import NO_WEIGHTS, LaneRange, Policy, PolicyStep, Weights, WeightsVersion
from onibi.platform.spec import ACTION_MASK, ReplaySpec

if TYPE_CHECKING:
    from onibi.learners.networks.recurrent_q import RecurrentQNetwork
    from onibi.learners.value_losses import HeadForm


class StepNetwork(Protocol):
    """A recurrent Q-network that takes and gives NumPy arrays."""

    state_size: int
    """S of its core."""

    def load(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Take parameters and buffers by their names in the torch module."""

    def step(
        self, observation: Mapping[str, NDArray[Any]], previous: NDArray[np.int64], state: NDArray[np.float32]
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """One step.

        Args:
            observation: each leaf [E, ...].
            previous: [E] number of the action before + 1, 0 for none.
            state: [E, S] of the core.
        Returns: values [E, A] and the core's next state [E, S], a new array.
        """


class RecurrentQPolicy:
    """ε-greedy or softmax over a recurrent Q-network.

    Its state is the core's and, where the core reads the previous action, the number of that + 1, 0 at the begin.

    Args:
        network: without weights yet.
        explorer: turns values into actions.
        actions: A.
        previous_action: whether the core reads it.
        stores_state: whether each step brings the state before it as an extra column.
    """

    def __init__(
        self, network: StepNetwork, explorer: Explorer, actions: int, *, previous_action: bool, stores_state: bool
    ) -> None:
        self.version: WeightsVersion = NO_WEIGHTS
        self._network, self._explorer, self._actions = network, explorer, actions
        self._previous_action, self._stores_state = previous_action, stores_state

    def initial_state(self, envs: int) -> NDArray[np.float32]:
        """[E, S] zeros."""
        return np.zeros((envs, self._network.state_size + self._previous_action), np.float32)

    def act(self, observation: Mapping[str, NDArray[Any]], state: Any, rng: np.random.Generator) -> PolicyStep:
        """See ``Policy.act``. While there are no weights the core's state stays as it is, 0."""
        extra = {STATE_COLUMN: state} if self._stores_state else {}
        size = self._network.state_size
        if self.version == NO_WEIGHTS:
            action, following = random_step(observation, self._actions, rng).action, state[:, :size]
        else:
            previous = state[:, -1].astype(np.int64) if self._previous_action else np.zeros(len(state), np.int64)
            values, following = self._network.step(observation, previous, state[:, :size])
            action = self._explorer.choose(values, rng, observation.get(ACTION_MASK))
        if self._previous_action:
            following = np.concatenate((following, action[:, None] + np.float32(1)), axis=1, dtype=np.float32)
        return PolicyStep(action, following, extra)

    def load(self, weights: Weights) -> None:
        """Take newer weights; states go on from those that the older ones made."""
        self._network.load(weights.arrays)
        self._explorer.follow(weights.version)
        self.version = weights.version


class NumpyRecurrentNetwork:
    """MLP, core and head in NumPy, by the arrays of a published ``RecurrentQNetwork``. A test compares it with torch.

    Args:
        leaves: as the encoder's.
        core: cell, size, norm.
        actions: A.
        previous_action: whether the core reads it.
    """

    def __init__(
        self, leaves: tuple[FlatLeaf, ...], core: CoreSettings, actions: int, *, previous_action: bool
    ) -> None:
        self.state_size = state_size(core)
        self._one_hots = np.eye(actions + 1, dtype=np.float32)[:, 1:] if previous_action else None
        self._trunk, self._core, self._head = NumpyTrunk(leaves), NumpyCore(core, "core."), NumpyQHead(actions)

    def load(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        """See ``StepNetwork``."""
        for part in (self._trunk, self._core, self._head):
            part.load(arrays)

    def step(
        self, observation: Mapping[str, NDArray[Any]], previous: NDArray[np.int64], state: NDArray[np.float32]
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """See ``StepNetwork``."""
        features = self._trunk(observation)
        if self._one_hots is not None:
            features = np.concatenate((features, self._one_hots[previous]), axis=1)
        features, following = self._core.step(features, state)
        return self._head(features), following


class TorchRecurrentNetwork:
    """Any ``RecurrentQNetwork`` in torch.

    Args:
        network: its parameters count only after ``load``.
    """

    def __init__(self, network: RecurrentQNetwork) -> None:
        self._network = network.eval()
        self.state_size = network.core.state_size

    def load(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        """See ``StepNetwork``."""
        import torch

        self._network.load_state_dict({name: torch.from_numpy(array) for name, array in arrays.items()})

    def step(
        self, observation: Mapping[str, NDArray[Any]], previous: NDArray[np.int64], state: NDArray[np.float32]
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """See ``StepNetwork``."""
        import torch

        with torch.inference_mode():
            tensors = {name: torch.from_numpy(np.ascontiguousarray(values)) for name, values in observation.items()}
            values, following = self._network.step(tensors, torch.from_numpy(previous), torch.from_numpy(state))
        return values.numpy(), following.numpy()


@dataclass(frozen=True, kw_only=True)
class NumpyRecurrentPolicyFactory:
    """Picklable maker of policies that act in NumPy; unpickling it needs no torch."""

    exploration: ExplorationSettings
    leaves: tuple[FlatLeaf, ...]
    core: CoreSettings
    actions: int
    previous_action: bool
    stores_state: bool

    def __call__(self, lanes: LaneRange | None) -> Policy:
        """A policy that explores for ``lanes``, or the greedy one for None."""
        network = NumpyRecurrentNetwork(self.leaves, self.core, self.actions, previous_action=self.previous_action)
        explorer = Explorer(self.exploration, lanes, noisy=False)
        return RecurrentQPolicy(
            network,
            explorer,
            self.actions,
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
        explorer = Explorer(self.exploration, lanes, noisy=False)
        return RecurrentQPolicy(
            TorchRecurrentNetwork(network),
            explorer,
            self.spec.actions,
            previous_action=self.previous_action,
            stores_state=self.stores_state,
        )
