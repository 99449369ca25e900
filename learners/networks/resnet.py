"""The residual network of IMPALA (Espeholt et al. 2018, arXiv 1802.01561, figure 3, the deep one).

Three sections, each a 3 × 3 convolution, a max pooling of 3 × 3 with stride 2, and two residual blocks of two
convolutions: 15 convolutional layers in all; then ReLU and a layer of 256.

Differences from the paper: widths times ``width``; LayerNorm in the layer behind the sections, and before the ReLUs of
the residual blocks where asked; further leaves are read beside the image.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from onibi.learners.networks.images import ImageEncoder, image_norm
from onibi.learners.networks.leaves import image_form
from onibi.learners.networks.mlp import Width
from onibi.platform.config import Settings
from onibi.platform.spec import ArraySpec

_BLOCKS = 2
"""Residual blocks in a section."""


@dataclass(frozen=True, kw_only=True)
class ResnetSettings(Settings):
    """Residual sections over every uint8 image leaf, then an MLP over all of it and the other leaves."""

    kind: Literal["resnet"] = "resnet"
    channels: Annotated[tuple[Width, ...], Field(min_length=1)] = (16, 32, 32)  # of each section; each halves the sides
    width: Width = 1  # times the channels
    hidden: Annotated[tuple[Width, ...], Field(min_length=1)] = (256,)
    layer_norm: bool = True  # in the layers behind the sections
    convolution_layer_norm: bool = False  # before each ReLU of the sections, over channels and pixels


class ResnetEncoder(ImageEncoder):
    """Images to features.

    Args:
        settings: widths and norms.
        observation: the leaves; images are read as ``ImageEncoder`` says.
    Raises: SpecError where no leaf is an image.
    """

    Settings = ResnetSettings

    def __init__(self, settings: ResnetSettings, observation: tuple[ArraySpec, ...]) -> None:
        channels = [settings.width * each for each in settings.channels]
        super().__init__(
            "resnet",
            observation,
            lambda spec: ResidualTower(spec, channels, layer_norm=settings.convolution_layer_norm),
            settings.hidden,
            layer_norm=settings.layer_norm,
        )


class ResidualTower(nn.Module):
    """The sections of one leaf.

    Args:
        spec: the leaf.
        channels: of each section.
        layer_norm: LayerNorm before each ReLU.
    """

    def __init__(self, spec: ArraySpec, channels: list[int], *, layer_norm: bool) -> None:
        super().__init__()
        before, height, width = image_form(spec)
        self.sections = nn.ModuleList()
        for each in channels:
            blocks = [ResidualBlock(each, layer_norm=layer_norm) for _ in range(_BLOCKS)]
            convolution = nn.Conv2d(before, each, kernel_size=3, padding=1)
            self.sections.append(nn.Sequential(convolution, nn.MaxPool2d(3, stride=2, padding=1), *blocks))
            before, height, width = each, (height + 1) // 2, (width + 1) // 2
        self.norm = image_norm(before) if layer_norm else nn.Identity()
        self.features = before * height * width

    def forward(self, pixels: Tensor) -> Tensor:
        """[B, channels, height, width] float32 → [B, features] float32."""
        for section in self.sections:
            pixels = section(pixels)
        return functional.relu(self.norm(pixels)).flatten(1)


class ResidualBlock(nn.Module):
    """x + conv(ReLU(conv(ReLU(x)))), with LayerNorm before each ReLU where asked.

    Args:
        channels: of input and output.
        layer_norm: see above.
    """

    def __init__(self, channels: int, *, layer_norm: bool) -> None:
        super().__init__()
        self.convolutions = nn.ModuleList(nn.Conv2d(channels, channels, 3, padding=1) for _ in range(2))
        self.norms = nn.ModuleList(image_norm(channels) if layer_norm else nn.Identity() for _ in range(2))

    def forward(self, pixels: Tensor) -> Tensor:
        """[B, C, height, width] float32, same shape out."""
        added = pixels
        for convolution, norm in zip(self.convolutions, self.norms, strict=True):
            added = convolution(functional.relu(norm(added)))
        return pixels + added
