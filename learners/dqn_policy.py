"""Policies of the DQN family. Most networks act in NumPy; torch is imported only where one needs it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from onibi.learners.exploration import ExplorationSettings, Explorer, random_among
from onibi.learners.input_tensors import input_tensors
from onibi.learners.networks.numpy_encoder import NumpyForm
from onibi.learners.networks.numpy_q_network import NumpyQNetwork
from onibi.platform.config import Settings
from onibi.platform.forward_policy import Forward, ForwardPolicy, Rows
from onibi.platform.policy import LaneRange, Policy, PolicyFactory, PolicyStep, WeightsVersion
from onibi.platform.spec import ACTION_MASK, ReplaySpec

if TYPE_CHECKING:
    from onibi.learners.networks.build import QNetwork
    from onibi.learners.networks.noisy import NoisySettings
    from onibi.learners.value_losses import HeadForm


NOISE = "noise"
"""Input of a forward pass: [N, noise_size] standard normals of a noisy head."""
VALUES = "values"
"""Output of one: [N, A] float32 action values."""


class QForward(Forward, Protocol):
    """The forward pass of a Q-network."""

    @property
    def noise_size(self) -> int:
        """Standard normals that a row of noise has; 0 where the network is not noisy."""


class NumpyQForward:
    """A Q-network in NumPy.

    Args:
        network: without weights yet.
    """

    def __init__(self, network: NumpyQNetwork) -> None:
        self._network = network

    @property
    def noise_size(self) -> int:
        """See ``QForward``."""
        return self._network.noise_size

    def load(self, arrays: Rows) -> None:
        """See ``Forward``."""
        self._network.load(arrays)

    def __call__(self, inputs: Rows) -> dict[str, NDArray[Any]]:
        """See ``Forward``."""
        return {VALUES: self._network.action_values(inputs, inputs.get(NOISE))}


class TorchQForward:
    """Any Q-network in torch.

    Args:
        network: its parameters count only after ``load``.
        device: "cpu", "cuda", "cuda:1".
    """

    def __init__(self, network: QNetwork, device: str = "cpu") -> None:
        self._network, self._device = network.eval().to(device), device

    @property
    def noise_size(self) -> int:
        """See ``QForward``."""
        return self._network.noise_size

    def load(self, arrays: Rows) -> None:
        """See ``Forward``."""
        import torch

        self._network.load_state_dict({name: torch.from_numpy(array) for name, array in arrays.items()})

    def __call__(self, inputs: Rows) -> dict[str, NDArray[Any]]:
        """See ``Forward``."""
        import torch

        with torch.inference_mode():
            tensors = input_tensors(inputs, self._device)
            return {VALUES: self._network.action_values(tensors, tensors.get(NOISE)).cpu().numpy()}


class QPolicy(ForwardPolicy):
    """ε-greedy, softmax or noisy over action values.

    Args:
        forward: of a Q-network without weights yet; None where it is computed elsewhere, without noise.
        explorer: turns values into actions.
        actions: A.
    """

    def __init__(self, forward: QForward | None, explorer: Explorer, actions: int) -> None:
        super().__init__(forward)
        self._noise_of, self._explorer, self._actions = forward, explorer, actions

    def initial_state(self, envs: int) -> None:
        """None: nothing is remembered between steps."""

    def inputs(self, observation: Rows, _state: Any, rng: np.random.Generator) -> Rows:
        """The observation, and noise for a noisy network."""
        envs = len(next(iter(observation.values())))
        noise = self._explorer.noise(envs, 0 if self._noise_of is None else self._noise_of.noise_size, rng)
        return observation if noise is None else {**observation, NOISE: noise}

    def choose(self, outputs: Rows | None, observation: Rows, state: Any, rng: np.random.Generator) -> PolicyStep:
        """See ``ForwardPolicy``."""
        if outputs is None:
            return random_step(observation, self._actions, rng)
        return PolicyStep(self._explorer.choose(outputs[VALUES], rng, observation.get(ACTION_MASK)), state)

    def follow(self, version: WeightsVersion) -> None:
        """Anneal the exploration, too."""
        super().follow(version)
        self._explorer.follow(version)


@dataclass(frozen=True)
class NumpyQPolicyFactory:
    """Picklable maker of policies that act in NumPy; unpickling it needs no torch."""

    exploration: ExplorationSettings
    encoder: NumpyForm
    actions: int
    noisy: bool = False

    def __call__(self, lanes: LaneRange | None) -> Policy:
        """A policy that explores for ``lanes``, or the greedy one for None."""
        return self.around(self.forward(), lanes)

    def forward(self, _device: str = "cpu") -> NumpyQForward:
        """The network in NumPy, whatever the device."""
        return NumpyQForward(NumpyQNetwork(self.encoder, self.actions))

    def around(self, forward: QForward | None, lanes: LaneRange | None) -> QPolicy:
        """A policy around a forward pass."""
        return QPolicy(forward, Explorer(self.exploration, lanes, noisy=self.noisy), self.actions)


@dataclass(frozen=True)
class TorchQPolicyFactory:
    """Picklable maker of policies that act in torch.

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
        return self.around(self.forward(), lanes)

    def forward(self, device: str = "cpu") -> TorchQForward:
        """The network on a device."""
        import torch

        from onibi.learners.networks.build import QNetwork, build_encoder
        from onibi.learners.networks.heads import build_head

        with torch.random.fork_rng(devices=[]):
            encoder = build_encoder(self.network, self.spec.observation)
            features = encoder.features
            assert isinstance(features, int)
            zeros = torch.zeros(self.form.outputs)
            head = build_head(self.form, features, self.spec.actions, zeros, dueling=self.dueling, noisy=self.noisy)
        return TorchQForward(QNetwork(encoder, head, zeros.clone() if self.form.classified else None), device)

    def around(self, forward: QForward | None, lanes: LaneRange | None) -> QPolicy:
        """A policy around a forward pass."""
        return QPolicy(forward, Explorer(self.exploration, lanes, noisy=self.noisy is not None), self.spec.actions)


def q_policy_factory(
    exploration: ExplorationSettings,
    network: Settings,
    form: HeadForm,
    spec: ReplaySpec,
    *,
    dueling: bool,
    noisy: NoisySettings | None,
) -> PolicyFactory:
    """A picklable maker of policies that read the weights of a ``QNetwork``; of those in NumPy where it can.

    Args:
        exploration: ladder, annealing and temperature.
        network: settings of the encoder.
        form: of the head.
        spec: row layout.
        dueling, noisy: as the head is built.
    """
    from onibi.learners.networks.build import encoder_settings, numpy_form

    concrete = encoder_settings(network, spec.observation)
    twin = numpy_form(concrete, spec.observation)
    if twin is not None:
        return NumpyQPolicyFactory(exploration, twin, spec.actions, noisy is not None)
    return TorchQPolicyFactory(exploration, concrete, spec, form, dueling, noisy)


def random_step(observation: Mapping[str, NDArray[Any]], actions: int, rng: np.random.Generator) -> PolicyStep:
    """Uniformly random actions for as many environments as the observation has, among those that its mask allows."""
    if ACTION_MASK in observation:
        return PolicyStep(random_among(observation[ACTION_MASK], rng))
    envs = len(next(iter(observation.values())))
    return PolicyStep(rng.integers(actions, size=envs))
