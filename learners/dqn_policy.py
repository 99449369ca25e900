"""Policies of the DQN family. Flat networks act in NumPy; this module imports torch only where a network needs it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from onibi.learners.exploration import ExplorationSettings, epsilon_greedy, epsilon_ladder
from onibi.learners.networks.leaves import FlatLeaf
from onibi.learners.networks.numpy_mlp import NumpyMlp
from onibi.platform.config import Settings
from onibi.platform.policy import NO_WEIGHTS, LaneRange, Policy, PolicyStep, Weights, WeightsVersion
from onibi.platform.spec import ReplaySpec

if TYPE_CHECKING:
    from onibi.learners.networks.build import QNetwork


class NumpyQPolicy:
    """ε-greedy over a flat Q-network in NumPy.

    Args:
        network: without weights yet.
        epsilon: [E] float64, or [1] for any number of environments.
        actions: A.
    """

    def __init__(self, network: NumpyMlp, epsilon: NDArray[np.float64], actions: int) -> None:
        self.version: WeightsVersion = NO_WEIGHTS
        self._network, self._epsilon, self._actions = network, epsilon, actions

    def initial_state(self, envs: int) -> None:
        """None: nothing is remembered between steps."""

    def act(self, observation: Mapping[str, NDArray[Any]], state: Any, rng: np.random.Generator) -> PolicyStep:
        """See ``Policy.act``."""
        if self.version == NO_WEIGHTS:
            return random_step(observation, self._actions, rng)
        greedy = self._network.action_values(observation).argmax(axis=1)
        return PolicyStep(epsilon_greedy(greedy, self._epsilon, self._actions, rng), state)

    def load(self, weights: Weights) -> None:
        """Take newer weights."""
        self._network.load(weights.arrays)
        self.version = weights.version


class TorchQPolicy:
    """ε-greedy over any Q-network in torch.

    Args:
        network: its parameters count only after ``load``.
        epsilon: [E] float64, or [1] for any number of environments.
        actions: A.
    """

    def __init__(self, network: QNetwork, epsilon: NDArray[np.float64], actions: int) -> None:
        self.version: WeightsVersion = NO_WEIGHTS
        self._network, self._epsilon, self._actions = network.eval(), epsilon, actions

    def initial_state(self, envs: int) -> None:
        """None: nothing is remembered between steps."""

    def act(self, observation: Mapping[str, NDArray[Any]], state: Any, rng: np.random.Generator) -> PolicyStep:
        """See ``Policy.act``."""
        if self.version == NO_WEIGHTS:
            return random_step(observation, self._actions, rng)
        import torch

        with torch.inference_mode():
            tensors = {name: torch.from_numpy(np.ascontiguousarray(values)) for name, values in observation.items()}
            greedy = self._network.action_values(tensors).argmax(dim=1).numpy()
        return PolicyStep(epsilon_greedy(greedy, self._epsilon, self._actions, rng), state)

    def load(self, weights: Weights) -> None:
        """Take newer weights."""
        import torch

        self._network.load_state_dict({name: torch.from_numpy(array) for name, array in weights.arrays.items()})
        self.version = weights.version


@dataclass(frozen=True)
class NumpyQPolicyFactory:
    """Picklable maker of ``NumpyQPolicy``; unpickling it needs no torch."""

    exploration: ExplorationSettings
    leaves: tuple[FlatLeaf, ...]
    actions: int

    def __call__(self, lanes: LaneRange | None) -> Policy:
        """A policy that explores for ``lanes``, or the greedy one for None."""
        return NumpyQPolicy(NumpyMlp(self.leaves, self.actions), _epsilon(self.exploration, lanes), self.actions)


@dataclass(frozen=True)
class TorchQPolicyFactory:
    """Picklable maker of ``TorchQPolicy``.

    It holds what the network is built of rather than the module: the parameters come with the weights.
    """

    exploration: ExplorationSettings
    network: Settings
    spec: ReplaySpec
    outputs: int
    classified: bool
    dueling: bool

    def __call__(self, lanes: LaneRange | None) -> Policy:
        """A policy that explores for ``lanes``, or the greedy one for None."""
        import torch

        from onibi.learners.networks.build import QNetwork, build_encoder
        from onibi.learners.networks.heads import ActionValueHead

        with torch.random.fork_rng(devices=[]):
            encoder = build_encoder(self.network, self.spec.observation)
            features = encoder.features
            assert isinstance(features, int)
            head = ActionValueHead(features, self.spec.actions, torch.zeros(self.outputs), dueling=self.dueling)
        network = QNetwork(encoder, head, torch.zeros(self.outputs) if self.classified else None)
        return TorchQPolicy(network, _epsilon(self.exploration, lanes), self.spec.actions)


def random_step(observation: Mapping[str, NDArray[Any]], actions: int, rng: np.random.Generator) -> PolicyStep:
    """Uniformly random actions for as many environments as the observation has."""
    envs = len(next(iter(observation.values())))
    return PolicyStep(rng.integers(actions, size=envs))


def _epsilon(exploration: ExplorationSettings, lanes: LaneRange | None) -> NDArray[np.float64]:
    return np.full(1, exploration.evaluation) if lanes is None else epsilon_ladder(exploration, lanes)
