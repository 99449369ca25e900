"""How observation leaves become one flat float vector; shared by the torch and the NumPy side. No torch here."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onibi.platform.spec import ACTION_MASK, ArraySpec, StackedSpec

_LARGEST_ONE_HOT = 512
_SMALLEST_IMAGE_SIDE = 5


def network_leaves(observation: tuple[ArraySpec, ...]) -> tuple[ArraySpec, ...]:
    """The leaves that networks read: all but the action mask."""
    return tuple(spec for spec in observation if spec.name != ACTION_MASK)


def leaf_name(spec: ArraySpec) -> str:
    """``observation.crop`` → ``crop``; the bare ``observation`` stays."""
    return spec.name.removeprefix("observation.")


def is_image(spec: ArraySpec) -> bool:
    """Whether a leaf is read by convolutions: uint8 frames with two axes (grey) or three, one of them the channels."""
    frame = spec.shape[stack_axes(spec) :]
    return spec.dtype == "uint8" and len(frame) in (2, 3) and min(image_form(spec)[1:]) >= _SMALLEST_IMAGE_SIDE


def stack_axes(spec: ArraySpec) -> int:
    """How many axes before a frame's own count frames: that of a frame stack, and the first of four, which an image
    cannot have: the environment stacked frames itself.
    """
    stacked = int(isinstance(spec, StackedSpec))
    return stacked + int(len(spec.shape) - stacked == 4)


def largest_pixel(spec: ArraySpec) -> float:
    """What is read as 1: 255, or 1 where the space says that there is nothing above it (Booleans)."""
    return 1.0 if spec.high == 1.0 else 255.0


def image_form(spec: ArraySpec) -> tuple[int, int, int]:
    """(channels, height, width) of an image, the channels of all frames of a stack one behind the other.

    Of a frame's three axes the shorter of first and last one holds the channels.
    """
    axes = stack_axes(spec)
    frames, frame = math.prod(spec.shape[:axes]), spec.shape[axes:]
    if len(frame) == 2:
        return frames, frame[0], frame[1]
    first, middle, last = frame
    return (frames * first, middle, last) if first < last else (frames * last, first, middle)


def channels_last(spec: ArraySpec) -> bool:
    """Whether the last axis holds a frame's channels."""
    frame = spec.shape[stack_axes(spec) :]
    return len(frame) == 3 and frame[0] >= frame[2]


@dataclass(frozen=True)
class FlatLeaf:
    """One leaf in the flat vector: a one-hot of ``classes`` from ``first_class`` on, or (0 classes) its elements."""

    name: str
    classes: int
    first_class: int
    elements: int

    @property
    def width(self) -> int:
        """Floats that it takes up."""
        return self.classes or self.elements


def flat_leaf(spec: ArraySpec) -> FlatLeaf:
    """Bounded scalar integers are classes (Discrete spaces), everything else numbers."""
    elements = int(np.prod(spec.shape, dtype=np.int64))
    if (
        np.issubdtype(np.dtype(spec.dtype), np.integer)
        and spec.shape == ()
        and spec.low is not None
        and spec.high is not None
    ):
        classes = int(spec.high - spec.low) + 1
        if classes <= _LARGEST_ONE_HOT:
            return FlatLeaf(spec.name, classes, int(spec.low), elements)
    return FlatLeaf(spec.name, 0, 0, elements)


def flatten(leaves: Sequence[FlatLeaf], observation: Mapping[str, NDArray[Any]]) -> NDArray[np.float32]:
    """All leaves side by side.

    Args:
        leaves: in their order in the vector.
        observation: each leaf [E, ...].
    Returns: [E, F] float32, a copy.
    """
    envs = len(observation[leaves[0].name])
    flat = np.zeros((envs, sum(leaf.width for leaf in leaves)), np.float32)
    start = 0
    for leaf in leaves:
        values = observation[leaf.name]
        if leaf.classes:
            flat[np.arange(envs), start + values.astype(np.int64) - leaf.first_class] = 1.0
        else:
            flat[:, start : start + leaf.width] = values.reshape(envs, -1)
        start += leaf.width
    return flat
