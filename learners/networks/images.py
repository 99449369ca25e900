"""Encoders of images: a tower of convolutions for each image leaf, then an MLP over them and the other leaves."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from onibi.learners.networks.leaves import channels_last, flat_leaf, image_form, is_image, largest_pixel
from onibi.learners.networks.mlp import FlatInput, Trunk
from onibi.platform.config import Settings
from onibi.platform.errors import SpecError
from onibi.platform.spec import ArraySpec


class ImageEncoder(nn.Module):
    """Images to features.

    Args:
        kind: the encoder's name in errors.
        observation: the leaves; uint8 leaves with two or three axes, or stacks of such frames, are images, pixels
            0 … 255 are read as 0 … 1, Booleans (0 and 1) as they are.
        tower: makes the module for one leaf: [B, channels, height, width] float32 → [B, features], with ``features``.
        hidden: widths of the layers behind.
        layer_norm: LayerNorm in them.
    Raises: SpecError where no leaf is an image.
    """

    def __init__(
        self,
        kind: str,
        observation: tuple[ArraySpec, ...],
        tower: Callable[[ArraySpec], nn.Module],
        hidden: Sequence[int],
        *,
        layer_norm: bool,
    ) -> None:
        super().__init__()
        images = [spec for spec in observation if is_image(spec)]
        if not images:
            found = ", ".join(f"{spec.name} {spec.dtype} {list(spec.shape)}" for spec in observation)
            raise SpecError(
                f"learner.network.kind={kind} reads uint8 images of 5 × 5 pixels or more; the observation has {found}. "
                "Set learner.network.kind to mlp, or let the environment give pixels as uint8."
            )
        self._images = tuple((spec.name, image_form(spec), channels_last(spec), largest_pixel(spec)) for spec in images)
        self.towers = nn.ModuleList(tower(spec) for spec in images)
        others = [flat_leaf(spec) for spec in observation if not is_image(spec)]
        self.others = FlatInput(others) if others else None
        features = 0 if self.others is None else self.others.features
        for each in self.towers:
            assert isinstance(each.features, int)
            features += each.features
        self.trunk = Trunk(features, hidden, layer_norm=layer_norm)
        self.features = self.trunk.features

    @staticmethod
    def numpy_form(_settings: Settings, _observation: tuple[ArraySpec, ...]) -> None:
        """None: actors need torch."""

    def learn_statistics(self, observation: Mapping[str, Tensor]) -> None:
        """Nothing: pixels have a fixed scale."""

    def forward(self, observation: Mapping[str, Tensor]) -> Tensor:
        """Each leaf [B, ...] → [B, features] float32."""
        parts = []
        for (name, (channels, height, width), last, largest), tower in zip(self._images, self.towers, strict=True):
            pixels = observation[name].float() / largest
            if last:
                each = pixels.shape[-1]  # channels of a frame
                pixels = pixels.reshape(-1, channels // each, height, width, each).permute(0, 1, 4, 2, 3)
            parts.append(tower(pixels.reshape(-1, channels, height, width)))
        if self.others is not None:
            parts.append(self.others(observation))
        return self.trunk(parts[0] if len(parts) == 1 else torch.cat(parts, dim=1))  # type: ignore[no-any-return]


def image_norm(channels: int) -> nn.GroupNorm:
    """LayerNorm over channels and pixels of each image, with a scale and a shift for each channel."""
    return nn.GroupNorm(1, channels)
