"""The multilayer perceptron: encoder of flat observations, and the trunk that other encoders end in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from onibi.learners.networks.leaves import FlatLeaf, flat_leaf
from onibi.learners.networks.normalizer import RunningNormalizer
from onibi.learners.networks.numpy_trunk import NumpyTrunkForm
from onibi.platform.config import Settings
from onibi.platform.errors import SpecError
from onibi.platform.spec import ArraySpec

Width = Annotated[int, Field(ge=1)]
ActivationName = Literal["relu", "tanh"]


class Trunk(nn.Module):
    """Linear → LayerNorm (where asked) → ReLU or tanh, as often as ``hidden`` has entries.

    Args:
        features: width of the input.
        hidden: widths of the layers; none passes the input on.
        layer_norm: LayerNorm before each activation.
        saturating: tanh instead of ReLU. Such a trunk has a mark among its buffers, by which actors know it.
    """

    def __init__(self, features: int, hidden: Sequence[int], *, layer_norm: bool, saturating: bool = False) -> None:
        super().__init__()
        self.saturating = saturating
        self.largest_width = max(hidden, default=0)
        if saturating:
            self.register_buffer("tanh", torch.ones(()))
        self.linear = nn.ModuleList()
        self.norm = nn.ModuleList()
        for width in hidden:
            self.linear.append(nn.Linear(features, width))
            self.norm.append(nn.LayerNorm(width) if layer_norm else nn.Identity())
            features = width
        self.features = features

    def forward(self, features: Tensor) -> Tensor:
        """[B, F] → [B, hidden[-1]] float32."""
        for linear, norm in zip(self.linear, self.norm, strict=True):
            features = norm(linear(features))
            features = torch.tanh(features) if self.saturating else functional.relu(features)
        return features


class FlatInput(nn.Module):
    """Leaves as one [B, F] float32 vector, the torch twin of ``leaves.flatten``.

    Args:
        leaves: in their order in the vector.
    """

    def __init__(self, leaves: Sequence[FlatLeaf]) -> None:
        super().__init__()
        self.leaves = tuple(leaves)
        self.features = sum(leaf.width for leaf in leaves)

    def forward(self, observation: Mapping[str, Tensor]) -> Tensor:
        """Each leaf [B, ...] → [B, F] float32."""
        parts = []
        for leaf in self.leaves:
            values = observation[leaf.name]
            if leaf.classes:
                parts.append(functional.one_hot(values.long() - leaf.first_class, leaf.classes).float())
            else:
                parts.append(values.reshape(len(values), -1).float())
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)


@dataclass(frozen=True, kw_only=True)
class MlpSettings(Settings):
    """A multilayer perceptron over all leaves side by side. Its policy acts in NumPy, without importing torch."""

    kind: Literal["mlp"] = "mlp"
    hidden: Annotated[tuple[Width, ...], Field(min_length=1)] = (128, 128)
    layer_norm: bool = True
    activation: ActivationName = "relu"
    normalize_observation: bool = False  # by a running mean and deviation


class MlpEncoder(nn.Module):
    """Flat observations to features.

    Args:
        settings: widths and norms.
        observation: the leaves; uint8 images are refused by nobody here, but a ``cnn`` reads them better.
    """

    Settings = MlpSettings

    def __init__(self, settings: MlpSettings, observation: tuple[ArraySpec, ...]) -> None:
        super().__init__()
        if not observation:
            raise SpecError(
                "observation: the spec has no leaf, so there is nothing to learn from. Keep at least one key."
            )
        self.input = FlatInput([flat_leaf(spec) for spec in observation])
        self.normalizer = RunningNormalizer(self.input.features) if settings.normalize_observation else None
        self.trunk = Trunk(
            self.input.features,
            settings.hidden,
            layer_norm=settings.layer_norm,
            saturating=settings.activation == "tanh",
        )
        self.features = self.trunk.features

    @staticmethod
    def numpy_form(_settings: MlpSettings, observation: tuple[ArraySpec, ...]) -> NumpyTrunkForm:
        """What its twin in NumPy is built of."""
        return NumpyTrunkForm(tuple(flat_leaf(spec) for spec in observation))

    def learn_statistics(self, observation: Mapping[str, Tensor]) -> None:
        """Merge a batch into the running statistics, where there are any."""
        if self.normalizer is not None:
            self.normalizer.learn(self.input(observation))

    def forward(self, observation: Mapping[str, Tensor]) -> Tensor:
        """Each leaf [B, ...] → [B, features] float32."""
        flat = self.input(observation)
        return self.trunk(flat if self.normalizer is None else self.normalizer(flat))  # type: ignore[no-any-return]
