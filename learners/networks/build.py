"""Q-networks from a row layout: which encoder reads the observation, with which head behind it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol, cast

import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from onibi.learners.networks.heads import ActionValueHead, ImplicitQuantileHead, build_head
from onibi.learners.networks.leaves import is_image, leaf_name, network_leaves
from onibi.learners.networks.noisy import NoisySettings
from onibi.learners.networks.numpy_encoder import NumpyForm
from onibi.learners.value_losses import ValueHead
from onibi.platform.config import Settings, load_class
from onibi.platform.spec import ArraySpec, ReplaySpec

NETWORKS = {
    "auto": "onibi.learners.networks.build:AutoEncoderChoice",
    "cnn": "onibi.learners.networks.cnn:CnnEncoder",
    "custom": "onibi.learners.networks.custom:CustomEncoder",
    "mlp": "onibi.learners.networks.mlp:MlpEncoder",
    "nethack": "onibi.learners.networks.nethack:NethackEncoder",
    "resnet": "onibi.learners.networks.resnet:ResnetEncoder",
}
_NETHACK_LEAVES = {"crop", "locator", "map", "message"}


@dataclass(frozen=True, kw_only=True)
class AutoNetworkSettings(Settings):
    """The encoder follows from the observation, with its default settings: ``nethack``, ``cnn`` or ``mlp``."""

    kind: Literal["auto"] = "auto"


class AutoEncoderChoice:
    """Stands in the registry for the choice that ``encoder_settings`` makes."""

    Settings = AutoNetworkSettings


class Encoder(Protocol):
    """Observation to features: an ``nn.Module`` made as ``cls(settings, observation_specs)``."""

    features: int

    @staticmethod
    def numpy_form(settings: Any, observation: tuple[ArraySpec, ...]) -> NumpyForm | None:
        """What its twin in NumPy is built of; None where actors need torch."""

    def learn_statistics(self, observation: Mapping[str, Tensor]) -> None:
        """Merge a batch into running statistics; called with every batch learnt from."""

    def forward(self, observation: Mapping[str, Tensor]) -> Tensor:
        """Each leaf [B, ...] → [B, features] float32."""


def encoder_settings(settings: Settings, observation: tuple[ArraySpec, ...]) -> Settings:
    """Settings of a concrete encoder: ``auto`` resolved by names, dtypes and shapes of the leaves."""
    if not isinstance(settings, AutoNetworkSettings):
        return settings
    kind = "mlp"
    if any(leaf_name(spec) in _NETHACK_LEAVES for spec in observation):
        kind = "nethack"
    elif any(is_image(spec) for spec in observation):
        kind = "cnn"
    concrete: Settings = load_class(NETWORKS, kind).Settings()
    return concrete


def numpy_form(settings: Settings, observation: tuple[ArraySpec, ...]) -> NumpyForm | None:
    """What actors build the encoder of where they run it without torch; None where they need it.

    Raises: SpecError where it cannot read the observation.
    """
    concrete = encoder_settings(settings, observation)
    found: NumpyForm | None = load_class(NETWORKS, _kind(concrete)).numpy_form(concrete, network_leaves(observation))
    return found


class QNetwork(nn.Module):
    """Encoder and action-value head. ``centres`` is a buffer, so that actors read values from the weights alone.

    Args:
        encoder: observation to features.
        head: features to outputs.
        centres: [K] float32, or None where outputs are values themselves.
    """

    centres: Tensor | None

    def __init__(
        self, encoder: nn.Module, head: ActionValueHead | ImplicitQuantileHead, centres: Tensor | None
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = head
        self.register_buffer("centres", centres)

    @property
    def noise_size(self) -> int:
        """Standard normals that a row of noise has; 0 for a head without noise."""
        return self.head.noise_size

    def forward(
        self, observation: Mapping[str, Tensor], fractions: Tensor | None = None, noise: Tensor | None = None
    ) -> Tensor:
        """Each leaf [B, ...] → outputs [B, A, K] float32.

        Args:
            observation: the leaves.
            fractions: [B, K] float32, read by an implicit head.
            noise: [B or 1, noise_size] standard normals for a noisy head; None gives the means.
        """
        return self.outputs(self.encoder(observation), fractions, noise)

    def outputs(self, features: Tensor, fractions: Tensor | None = None, noise: Tensor | None = None) -> Tensor:
        """Features [B, F] → outputs [B, A, K] float32; fractions and noise as in ``forward``."""
        if fractions is None:
            return self.head(features, noise=noise)  # type: ignore[no-any-return]
        return self.head(features, fractions, noise)  # type: ignore[no-any-return]

    def learn_statistics(self, observation: Mapping[str, Tensor]) -> None:
        """Merge a batch into the encoder's running statistics, where it keeps any."""
        cast("Encoder", self.encoder).learn_statistics(observation)

    def action_values(self, observation: Mapping[str, Tensor], noise: Tensor | None = None) -> Tensor:
        """Each leaf [B, ...] → values [B, A] float32, under noise as in ``forward``."""
        return self.head.action_values(self.encoder(observation), self.centres, noise)


def build_encoder(settings: Settings, observation: tuple[ArraySpec, ...]) -> nn.Module:
    """The encoder of these settings. Raises: SpecError where it cannot read the observation."""
    concrete = encoder_settings(settings, observation)
    module: nn.Module = load_class(NETWORKS, _kind(concrete))(concrete, network_leaves(observation))
    return module


def build_q_network(
    settings: Settings,
    spec: ReplaySpec,
    value_head: ValueHead,
    *,
    dueling: bool,
    seed: int,
    noisy: NoisySettings | None = None,
) -> QNetwork:
    """A freshly initialised network.

    Args:
        settings: of the encoder.
        spec: row layout; its observation and number of actions are read.
        value_head: form of the outputs.
        dueling: separate value and advantage layers.
        seed: of the initial parameters; the global generator is left as it was.
        noisy: noise on the weights of the head; None for plain layers.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        encoder = build_encoder(settings, spec.observation)
        features = encoder.features
        assert isinstance(features, int)
        bias = value_head.initial_bias()
        head = build_head(value_head.form, features, spec.actions, bias, dueling=dueling, noisy=noisy)
    centres = None if value_head.centres is None else value_head.centres.clone()
    return QNetwork(encoder, head, centres)


def as_arrays(module: nn.Module) -> dict[str, NDArray[Any]]:
    """Copies of all parameters and persistent buffers by name, on the CPU."""
    return {name: tensor.detach().cpu().numpy().copy() for name, tensor in module.state_dict().items()}


def _kind(settings: Settings) -> str:
    return str(getattr(settings, "kind"))  # noqa: B009 - the base class of settings has no kind
