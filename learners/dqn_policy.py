"""Policies of the DQN family. Flat networks act in NumPy; this module imports torch only where a network needs it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from onibi.learners.exploration import ExplorationSettings, choose_actions, epsilon_ladder
from onibi.learners.networks.leaves import FlatLeaf
from onibi.learners.networks.numpy_mlp import NumpyMlp
from onibi.platform.config import Settings
from onibi.platform.policy import NO_WEIGHTS, LaneRange, Policy, PolicyStep, Weights, WeightsVersion
from onibi.platform.spec import ReplaySpec

if TYPE_CHECKING:
    from onibi.learners.networks.build import QNetwork
    from onibi.learners.value_losses import HeadForm


class NumpyQPolicy:
    """ε-greedy or softmax over a flat Q-network in NumPy.

    Args:
        network: without weights yet.
        epsilon: [E] float64, or [1] for any number of environments.
        temperature: of the softmax, in value units; 0 is greedy.
        actions: A.
    """

    def __init__(self, network: NumpyMlp, epsilon: NDArray[np.float64], temperature: float, actions: int) -> None:
        self.version: WeightsVersion = NO_WEIGHTS
        self._network, self._actions = network, actions
        self._epsilon, self._temperature = epsilon, temperature

    def initial_state(self, envs: int) -> None:
        """None: nothing is remembered between steps."""

    def act(self, observation: Mapping[str, NDArray[Any]], state: Any, rng: np.random.Generator) -> PolicyStep:
        """See ``Policy.act``."""
        if self.version == NO_WEIGHTS:
            return random_step(observation, self._actions, rng)
        values = self._network.action_values(observation)
        return PolicyStep(choose_actions(values, self._epsilon, self._temperature, rng), state)

    def load(self, weights: Weights) -> None:
        """Take newer weights."""
        self._network.load(weights.arrays)
        self.version = weights.version


class TorchQPolicy:
    """ε-greedy or softmax over any Q-network in torch.

    Args:
        network: its parameters count only after ``load``.
        epsilon: [E] float64, or [1] for any number of environments.
        temperature: of the softmax, in value units; 0 is greedy.
        actions: A.
    """

    def __init__(self, network: QNetwork, epsilon: NDArray[np.float64], temperature: float, actions: int) -> None:
        self.version: WeightsVersion = NO_WEIGHTS
        self._network, self._actions = network.eval(), actions
        self._epsilon, self._temperature = epsilon, temperature

    def initial_state(self, envs: int) -> None:
        """None: nothing is remembered between steps."""

    def act(self, observation: Mapping[str, NDArray[Any]], state: Any, rng: np.random.Generator) -> PolicyStep:
        """See ``Policy.act``."""
        if self.version == NO_WEIGHTS:
            return random_step(observation, self._actions, rng)
        import torch

        with torch.inference_mode():
            tensors = {name: torch.from_numpy(np.ascontiguousarray(values)) for name, values in observation.items()}
            values = self._network.action_values(tensors).numpy()
        return PolicyStep(choose_actions(values, self._epsilon, self._temperature, rng), state)

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
        epsilon = _epsilon(self.exploration, lanes)
        return NumpyQPolicy(NumpyMlp(self.leaves, self.actions), epsilon, self.exploration.temperature, self.actions)


@dataclass(frozen=True)
class TorchQPolicyFactory:
    """Picklable maker of ``TorchQPolicy``.

    It holds what the network is built of rather than the module: the parameters come with the weights.
    """

    exploration: ExplorationSettings
    network: Settings
    spec: ReplaySpec
    form: HeadForm
    dueling: bool

    def __call__(self, lanes: LaneRange | None) -> Policy:
        """A policy that explores for ``lanes``, or the greedy one for None."""
        import torch

        from onibi.learners.networks.build import QNetwork, build_encoder
        from onibi.learners.networks.heads import build_head

        with torch.random.fork_rng(devices=[]):
            encoder = build_encoder(self.network, self.spec.observation)
            features = encoder.features
            assert isinstance(features, int)
            zeros = torch.zeros(self.form.outputs)
            head = build_head(self.form, features, self.spec.actions, zeros, dueling=self.dueling)
        network = QNetwork(encoder, head, zeros.clone() if self.form.classified else None)
        epsilon = _epsilon(self.exploration, lanes)
        return TorchQPolicy(network, epsilon, self.exploration.temperature, self.spec.actions)


def random_step(observation: Mapping[str, NDArray[Any]], actions: int, rng: np.random.Generator) -> PolicyStep:
    """Uniformly random actions for as many environments as the observation has."""
    envs = len(next(iter(observation.values())))
    return PolicyStep(rng.integers(actions, size=envs))


def _epsilon(exploration: ExplorationSettings, lanes: LaneRange | None) -> NDArray[np.float64]:
    return np.zeros(1) if lanes is None else epsilon_ladder(exploration, lanes)
