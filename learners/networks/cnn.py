"""Convolutions for images: the network of the Nature DQN (Mnih et al. 2015), and a smaller one for small grids.

Differences from the paper: LayerNorm in the layer behind the convolutions, and in them where asked; further leaves are
read beside the image; images too small for the paper's strides (a MiniGrid view of 7 × 7) get 3 × 3 convolutions of
stride 1.
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
from onibi.platform.errors import SpecError
from onibi.platform.spec import ArraySpec


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
    layer_norm: bool = True  # in the layers behind the convolutions
    convolution_layer_norm: bool = False  # behind each convolution, over its channels and pixels


class CnnEncoder(ImageEncoder):
    """Images to features.

    Args:
        settings: widths and norms.
        observation: the leaves; images are read as ``ImageEncoder`` says.
    Raises: SpecError where no leaf is an image, or one is too small for the convolutions.
    """

    Settings = CnnSettings

    def __init__(self, settings: CnnSettings, observation: tuple[ArraySpec, ...]) -> None:
        super().__init__(
            "cnn",
            observation,
            lambda spec: ImageTower(spec, settings.convolutions, layer_norm=settings.convolution_layer_norm),
            settings.hidden,
            layer_norm=settings.layer_norm,
        )


class ImageTower(nn.Module):
    """The convolutions of one leaf.

    Args:
        spec: the leaf.
        convolutions: None chooses by the image's size.
        layer_norm: LayerNorm behind each.
    Raises: SpecError where the image is too small for them.
    """

    def __init__(
        self, spec: ArraySpec, convolutions: tuple[ConvolutionSettings, ...] | None, *, layer_norm: bool
    ) -> None:
        super().__init__()
        channels, height, width = image_form(spec)
        if convolutions is None:
            convolutions = _NATURE if min(height, width) >= _NATURE_SMALLEST_SIDE else _SMALL
        self.convolutions = nn.ModuleList()
        self.norms = nn.ModuleList()
        for at, layer in enumerate(convolutions):
            if min(height, width) < layer.kernel:
                raise SpecError(
                    f"learner.network.convolutions[{at}]: its kernel of {layer.kernel} does not fit the {height} × "
                    f"{width} that is left of '{spec.name}' {list(spec.shape)}. Use smaller kernels or strides, or "
                    "fewer layers."
                )
            self.convolutions.append(nn.Conv2d(channels, layer.channels, layer.kernel, layer.stride))
            self.norms.append(image_norm(layer.channels) if layer_norm else nn.Identity())
            channels = layer.channels
            height, width = (height - layer.kernel) // layer.stride + 1, (width - layer.kernel) // layer.stride + 1
        self.features = channels * height * width

    def forward(self, pixels: Tensor) -> Tensor:
        """[B, channels, height, width] float32 → [B, features] float32."""
        for convolution, norm in zip(self.convolutions, self.norms, strict=True):
            pixels = functional.relu(norm(convolution(pixels)))
        return pixels.flatten(1)
