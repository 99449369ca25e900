"""Convolutions for images: the network of the Nature DQN (Mnih et al. 2015), and a smaller one for small grids.

Differences from the paper: LayerNorm in the layer behind the convolutions; further leaves are read beside the image;
images too small for the paper's strides (a MiniGrid view of 7 × 7) get 3 × 3 convolutions of stride 1.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from onibi.learners.networks.leaves import channels_last, flat_leaf, image_form, is_image
from onibi.learners.networks.mlp import FlatInput, Trunk, Width
from onibi.platform.config import Settings
from onibi.platform.errors import SpecError
from onibi.platform.spec import ArraySpec

_LARGEST_PIXEL = 255.0


@dataclass(frozen=True, kw_only=True)
class ConvolutionSettings(Settings):
    """One convolution without padding, followed by ReLU."""

    channels: Width
    kernel: Width
    stride: Width


_NATURE = (
    ConvolutionSettings(channels=32, kernel=8, stride=4),
    ConvolutionSettings(channels=64, kernel=4, stride=2),
    ConvolutionSettings(channels=64, kernel=3, stride=1),
)
_NATURE_SMALLEST_SIDE = 36
_SMALL = (
    ConvolutionSettings(channels=32, kernel=3, stride=1),
    ConvolutionSettings(channels=64, kernel=3, stride=1),
)


@dataclass(frozen=True, kw_only=True)
class CnnSettings(Settings):
    """Convolutions over every uint8 image leaf, then an MLP over all of it and the other leaves."""

    kind: Literal["cnn"] = "cnn"
    convolutions: tuple[ConvolutionSettings, ...] | None = None  # Nature's from 36 pixels on, else two of 3 × 3
    hidden: Annotated[tuple[Width, ...], Field(min_length=1)] = (512,)
    layer_norm: bool = True


class CnnEncoder(nn.Module):
    """Images to features.

    Args:
        settings: widths.
        observation: the leaves; uint8 leaves with two or three axes are images, pixels 0 … 255 read as 0 … 1.
    Raises: SpecError where no leaf is an image, or one is too small for the convolutions.
    """

    Settings = CnnSettings
    acts_in_numpy = False

    def __init__(self, settings: CnnSettings, observation: tuple[ArraySpec, ...]) -> None:
        super().__init__()
        images = [spec for spec in observation if is_image(spec)]
        if not images:
            found = ", ".join(f"{spec.name} {spec.dtype} {list(spec.shape)}" for spec in observation)
            raise SpecError(
                f"learner.network.kind=cnn reads uint8 images of 5 × 5 pixels or more; the observation has {found}. "
                "Set learner.network.kind to mlp, or let the environment give pixels as uint8."
            )
        self._images = tuple((spec.name, len(spec.shape) == 2, channels_last(spec)) for spec in images)
        self.towers = nn.ModuleList(ImageTower(spec, settings.convolutions) for spec in images)
        others = [flat_leaf(spec) for spec in observation if not is_image(spec)]
        self.others = FlatInput(others) if others else None
        features = sum(tower.features for tower in self.towers if isinstance(tower, ImageTower))
        features += 0 if self.others is None else self.others.features
        self.trunk = Trunk(features, settings.hidden, layer_norm=settings.layer_norm)
        self.features = self.trunk.features

    def learn_statistics(self, observation: Mapping[str, Tensor]) -> None:
        """Nothing: pixels have a fixed scale."""

    def forward(self, observation: Mapping[str, Tensor]) -> Tensor:
        """Each leaf [B, ...] → [B, features] float32."""
        parts = []
        for (name, grey, last), tower in zip(self._images, self.towers, strict=True):
            pixels = observation[name].float() / _LARGEST_PIXEL
            if grey:
                pixels = pixels[:, None]
            elif last:
                pixels = pixels.permute(0, 3, 1, 2)
            parts.append(tower(pixels))
        if self.others is not None:
            parts.append(self.others(observation))
        return self.trunk(parts[0] if len(parts) == 1 else torch.cat(parts, dim=1))  # type: ignore[no-any-return]


class ImageTower(nn.Module):
    """The convolutions of one leaf.

    Args:
        spec: the leaf.
        convolutions: None chooses by the image's size.
    Raises: SpecError where the image is too small for them.
    """

    def __init__(self, spec: ArraySpec, convolutions: tuple[ConvolutionSettings, ...] | None) -> None:
        super().__init__()
        channels, height, width = image_form(spec)
        if convolutions is None:
            convolutions = _NATURE if min(height, width) >= _NATURE_SMALLEST_SIDE else _SMALL
        self.convolutions = nn.ModuleList()
        for at, layer in enumerate(convolutions):
            if min(height, width) < layer.kernel:
                raise SpecError(
                    f"learner.network.convolutions[{at}]: its kernel of {layer.kernel} does not fit the {height} × "
                    f"{width} that is left of '{spec.name}' {list(spec.shape)}. Use smaller kernels or strides, or "
                    "fewer layers."
                )
            self.convolutions.append(nn.Conv2d(channels, layer.channels, layer.kernel, layer.stride))
            channels = layer.channels
            height, width = (height - layer.kernel) // layer.stride + 1, (width - layer.kernel) // layer.stride + 1
        self.features = channels * height * width

    def forward(self, pixels: Tensor) -> Tensor:
        """[B, channels, height, width] float32 → [B, features] float32."""
        for convolution in self.convolutions:
            pixels = functional.relu(convolution(pixels))
        return pixels.flatten(1)
