"""Policies of the DQN family. Flat networks act in NumPy; this module imports torch only where a network needs it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from onibi.learners.exploration import ExplorationSettings, Explorer, random_among
from onibi.learners.networks.leaves import FlatLeaf, flat_leaf, network_leaves
from onibi.learners.networks.numpy_mlp import NumpyMlp
from onibi.platform.config import Settings
from onibi.platform.policy import NO_WEIGHTS, LaneRange, Policy, PolicyFactory, PolicyStep, Weights, WeightsVersion
from onibi.platform.spec import ACTION_MASK, ReplaySpec

if TYPE_CHECKING:
    from onibi.learners.networks.build import QNetwork
    from onibi.learners.networks.noisy import NoisySettings
    from onibi.learners.value_losses import HeadForm


class NumpyQPolicy:
    """ε-greedy, softmax or noisy over a flat Q-network in NumPy.

    Args:
        network: without weights yet.
        explorer: turns values into actions.
        actions: A.
    """

    def __init__(self, network: NumpyMlp, explorer: Explorer, actions: int) -> None:
        self.version: WeightsVersion = NO_WEIGHTS
        self._network, self._explorer, self._actions = network, explorer, actions

    def initial_state(self, envs: int) -> None:
        """None: nothing is remembered between steps."""

    def act(self, observation: Mapping[str, NDArray[Any]], state: Any, rng: np.random.Generator) -> PolicyStep:
        """See ``Policy.act``."""
        if self.version == NO_WEIGHTS:
            return random_step(observation, self._actions, rng)
        envs = len(next(iter(observation.values())))
        noise = self._explorer.noise(envs, self._network.noise_size, rng)
        values = self._network.action_values(observation, noise)
        return PolicyStep(self._explorer.choose(values, rng, observation.get(ACTION_MASK)), state)

    def load(self, weights: Weights) -> None:
        """Take newer weights."""
        self._network.load(weights.arrays)
        self._explorer.follow(weights.version)
        self.version = weights.version


class TorchQPolicy:
    """ε-greedy, softmax or noisy over any Q-network in torch.

    Args:
        network: its parameters count only after ``load``.
        explorer: turns values into actions.
        actions: A.
    """

    def __init__(self, network: QNetwork, explorer: Explorer, actions: int) -> None:
        self.version: WeightsVersion = NO_WEIGHTS
        self._network, self._explorer, self._actions = network.eval(), explorer, actions

    def initial_state(self, envs: int) -> None:
        """None: nothing is remembered between steps."""

    def act(self, observation: Mapping[str, NDArray[Any]], state: Any, rng: np.random.Generator) -> PolicyStep:
        """See ``Policy.act``."""
        if self.version == NO_WEIGHTS:
            return random_step(observation, self._actions, rng)
        import torch

        envs = len(next(iter(observation.values())))
        noise = self._explorer.noise(envs, self._network.noise_size, rng)
        with torch.inference_mode():
            tensors = {name: torch.from_numpy(np.ascontiguousarray(values)) for name, values in observation.items()}
            drawn = None if noise is None else torch.from_numpy(noise)
            values = self._network.action_values(tensors, drawn).numpy()
        return PolicyStep(self._explorer.choose(values, rng, observation.get(ACTION_MASK)), state)

    def load(self, weights: Weights) -> None:
        """Take newer weights."""
        import torch

        self._network.load_state_dict({name: torch.from_numpy(array) for name, array in weights.arrays.items()})
        self._explorer.follow(weights.version)
        self.version = weights.version


@dataclass(frozen=True)
class NumpyQPolicyFactory:
    """Picklable maker of ``NumpyQPolicy``; unpickling it needs no torch."""

    exploration: ExplorationSettings
    leaves: tuple[FlatLeaf, ...]
    actions: int
    noisy: bool = False

    def __call__(self, lanes: LaneRange | None) -> Policy:
        """A policy that explores for ``lanes``, or the greedy one for None."""
        explorer = Explorer(self.exploration, lanes, noisy=self.noisy)
        return NumpyQPolicy(NumpyMlp(self.leaves, self.actions), explorer, self.actions)


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
    noisy: NoisySettings | None = None

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
            head = build_head(self.form, features, self.spec.actions, zeros, dueling=self.dueling, noisy=self.noisy)
        network = QNetwork(encoder, head, zeros.clone() if self.form.classified else None)
        explorer = Explorer(self.exploration, lanes, noisy=self.noisy is not None)
        return TorchQPolicy(network, explorer, self.spec.actions)


def q_policy_factory(
    exploration: ExplorationSettings,
    network: Settings,
    form: HeadForm,
    spec: ReplaySpec,
    *,
    dueling: bool,
    noisy: NoisySettings | None,
) -> PolicyFactory:
    """A picklable maker of policies that read the weights of a ``QNetwork``; of those in NumPy where it is flat.

    Args:
        exploration: ladder, annealing and temperature.
        network: settings of the encoder.
        form: of the head.
        spec: row layout.
        dueling, noisy: as the head is built.
    """
    from onibi.learners.networks.build import acts_in_numpy, encoder_settings

    concrete = encoder_settings(network, spec.observation)
    if acts_in_numpy(concrete, spec.observation):
        leaves = tuple(flat_leaf(leaf) for leaf in network_leaves(spec.observation))
        return NumpyQPolicyFactory(exploration, leaves, spec.actions, noisy is not None)
    return TorchQPolicyFactory(exploration, concrete, spec, form, dueling, noisy)


def random_step(observation: Mapping[str, NDArray[Any]], actions: int, rng: np.random.Generator) -> PolicyStep:
    """Uniformly random actions for as many environments as the observation has, among those that its mask allows."""
    if ACTION_MASK in observation:
        return PolicyStep(random_among(observation[ACTION_MASK], rng))
    envs = len(next(iter(observation.values())))
    return PolicyStep(rng.integers(actions, size=envs))
