"""The network for NetHack views: crop of character classes, nearest cells, figures, message, inventory, whole map."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from onibi.learners.networks.leaves import FlatLeaf, flat_leaf, leaf_name
from onibi.learners.networks.mlp import FlatInput, Trunk, Width
from onibi.learners.networks.normalizer import RunningNormalizer
from onibi.learners.networks.numpy_nethack import LOCATOR_NEAR, LOCATOR_REACH, NumpyNethackForm
from onibi.platform.config import Settings
from onibi.platform.errors import SpecError
from onibi.platform.spec import ArraySpec

_WORD_IDS = 255
"""Word ids of ``message`` are 1 … 255; 0 pads."""
_CHARACTERS = 256
_COLORS = 16
_ITEM_IDS = 5977
"""Ids of ``inventory_items``: 0 for an empty slot, else NLE's glyph + 1."""
_KNOWN = ("blstats", "crop", "inventory_items", "locator", "map", "map_colors", "message")


@dataclass(frozen=True, kw_only=True)
class NethackSettings(Settings):
    """All leaves go into the first layer of an MLP: classes and words as one-hots, the map through convolutions.

    Words as one-hots are a bag: what was said, in any order. ``message_embedding`` reads them in their order.
    """

    kind: Literal["nethack"] = "nethack"
    hidden: Annotated[tuple[Width, ...], Field(min_length=1)] = (128, 128)
    layer_norm: bool = True
    crop_classes: Annotated[int, Field(ge=2, le=256)] = 16
    normalize_blstats: bool = False  # by a running mean and deviation
    map_embedding: Width = 16
    map_channels: tuple[Width, ...] = (32, 32, 32)  # 3 × 3 convolutions of stride 2 over the whole map
    message_embedding: Width | None = None  # numbers for each word, side by side; null: the bag of words
    inventory_embedding: Width = 16  # numbers for each item, summed over the items


class NethackEncoder(nn.Module):
    """NetHack view to features; any of its leaves may be absent, leaves of other names are taken as numbers.

    The first layer's part for the crop and the message is a sum of rows of its weight matrix (``embedding_bag``): the
    same function as a linear layer over one-hots, with a fraction of the work. Class 0 (blank) and word 0 add nothing.

    Args:
        settings: widths.
        observation: the leaves.
    Raises: SpecError where a leaf of a known name has another form.
    """

    Settings = NethackSettings

    def __init__(self, settings: NethackSettings, observation: tuple[ArraySpec, ...]) -> None:
        super().__init__()
        specs = _checked_leaves(observation)
        self._names = {name: spec.name for name, spec in specs.items()}
        self.form = self.numpy_form(settings, observation)
        self._classes = settings.crop_classes

        self._crop_cells, words = _cells_and_words(specs)
        self.words: nn.Embedding | None = None
        if words and settings.message_embedding is not None:
            self.words = nn.Embedding(_WORD_IDS + 1, settings.message_embedding, padding_idx=0)
        self._words = 0 if self.words is not None else words
        self.items: nn.Embedding | None = None
        if "inventory_items" in specs:
            self.items = nn.Embedding(_ITEM_IDS, settings.inventory_embedding, padding_idx=0)
        self.blstats_normalizer: RunningNormalizer | None = None
        if "blstats" in specs and settings.normalize_blstats:
            self.blstats_normalizer = RunningNormalizer(math.prod(specs["blstats"].shape))
        others = _others(specs)
        self.others = FlatInput(others) if others else None

        numbers = 0 if self.others is None else self.others.features
        if "blstats" in specs:
            numbers += math.prod(specs["blstats"].shape)
        if "locator" in specs:
            numbers += 5 * specs["locator"].shape[0]
        if self.words is not None:
            numbers += words * self.words.embedding_dim
        if self.items is not None:
            numbers += self.items.embedding_dim
        self.map_tower: MapTower | None = None
        if "map" in specs:
            rows, columns = specs["map"].shape
            colored = "map_colors" in specs
            self.map_tower = MapTower(rows, columns, settings.map_embedding, settings.map_channels, colored=colored)
            numbers += self.map_tower.features

        first, *rest = settings.hidden
        self.first_width = first
        first_row = _first_rows(self._classes, self._crop_cells, self._words)
        self.bag: nn.Parameter | None = None
        if first_row:
            bag_rows = self._crop_cells * (self._classes - 1) + (_WORD_IDS if self._words else 0)
            bound = 1.0 / math.sqrt(len(first_row) + numbers)  # as PyTorch's linear layer, by the inputs that may be 1
            self.bag = nn.Parameter(torch.empty(bag_rows, first).uniform_(-bound, bound))
            self.register_buffer("first_row", torch.tensor(first_row), persistent=False)
        if not numbers and self.bag is None:
            raise SpecError("observation: the NetHack network got no leaf. Choose observation keys for the view.")
        self.numbers = nn.Linear(numbers, first) if numbers else None
        self.norm = nn.LayerNorm(first) if settings.layer_norm else nn.Identity()
        self.trunk = Trunk(first, rest, layer_norm=settings.layer_norm)
        self.features = self.trunk.features

    first_row: Tensor

    @staticmethod
    def numpy_form(settings: NethackSettings, observation: tuple[ArraySpec, ...]) -> NumpyNethackForm | None:
        """What its twin in NumPy is built of; None with a map, items, or words in their order."""
        specs = _checked_leaves(observation)
        cells, words = _cells_and_words(specs)
        if "map" in specs or "inventory_items" in specs or (words and settings.message_embedding is not None):
            return None
        columns = {
            name: specs[name].name if name in specs else None for name in ("crop", "message", "blstats", "locator")
        }
        return NumpyNethackForm(
            **columns,
            classes=settings.crop_classes,
            first_row=tuple(_first_rows(settings.crop_classes, cells, words)),
            others=tuple(_others(specs)),
        )

    def learn_statistics(self, observation: Mapping[str, Tensor]) -> None:
        """Merge a batch into the running statistics, where there are any."""
        if self.blstats_normalizer is not None:
            self.blstats_normalizer.learn(observation[self._names["blstats"]].flatten(1).float())

    def forward(self, observation: Mapping[str, Tensor]) -> Tensor:
        """Each leaf [B, ...] → [B, features] float32."""
        summed: Tensor | None = None
        if self.bag is not None:
            summed = self._bag_sum(observation, self.bag)
        if self.numbers is not None:
            linear = self.numbers(self._numbers(observation))
            summed = linear if summed is None else summed + linear
        return self.trunk(functional.relu(self.norm(summed)))  # type: ignore[no-any-return]

    def _bag_sum(self, observation: Mapping[str, Tensor], bag: Tensor) -> Tensor:
        """Sum of the weight rows of all cells and words that are not 0."""
        parts = []
        if self._crop_cells:
            parts.append(observation[self._names["crop"]].flatten(1).to(torch.int64).clamp(max=self._classes - 1))
        if self._words:
            parts.append(observation[self._names["message"]].to(torch.int64))
        ids = parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)
        return (sum_of_present if _packs(ids) else sum_of_all)(ids, self.first_row, bag)

    def _numbers(self, observation: Mapping[str, Tensor]) -> Tensor:
        parts = [] if self.others is None else [self.others(observation)]
        if "blstats" in self._names:
            figures = observation[self._names["blstats"]].flatten(1).float()
            parts.append(figures if self.blstats_normalizer is None else self.blstats_normalizer(figures))
        if "locator" in self._names:
            locator = observation[self._names["locator"]].float()
            offset = locator[:, :, 1:]
            scales = torch.cat((locator[:, :, :1], offset / LOCATOR_REACH, torch.tanh(offset / LOCATOR_NEAR)), dim=2)
            parts.append(scales.flatten(1))
        if self.words is not None:
            parts.append(self.words(observation[self._names["message"]].int()).flatten(1))
        if self.items is not None:
            parts.append(self.items(observation[self._names["inventory_items"]].int()).sum(dim=1))
        if self.map_tower is not None:
            colors = observation[self._names["map_colors"]] if self.map_tower.colors is not None else None
            parts.append(self.map_tower(observation[self._names["map"]], colors))
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)


class MapTower(nn.Module):
    """Characters of the whole map to features: embedding, then 3 × 3 convolutions of stride 2 with ReLU.

    Args:
        rows: height of the map.
        columns: width of the map.
        embedding: channels of a character.
        channels: of each convolution.
        colored: whether a character's color is read, too; its embedding is added to the character's.
    """

    def __init__(self, rows: int, columns: int, embedding: int, channels: tuple[int, ...], *, colored: bool) -> None:
        super().__init__()
        self.embedding = nn.Embedding(_CHARACTERS, embedding)
        self.colors = nn.Embedding(_COLORS, embedding) if colored else None
        self.convolutions = nn.ModuleList()
        for width in channels:
            self.convolutions.append(nn.Conv2d(embedding, width, kernel_size=3, stride=2, padding=1))
            embedding, rows, columns = width, (rows + 1) // 2, (columns + 1) // 2
        self.features = embedding * rows * columns

    def forward(self, characters: Tensor, colors: Tensor | None) -> Tensor:
        """[B, rows, columns] uint8, twice where colored → [B, features] float32."""
        planes = self.embedding(characters.int())
        if self.colors is not None and colors is not None:
            planes = planes + self.colors(colors.int().clamp(max=_COLORS - 1))
        planes = planes.permute(0, 3, 1, 2)
        for convolution in self.convolutions:
            planes = functional.relu(convolution(planes))
        return planes.flatten(1)  # type: ignore[no-any-return]


def sum_of_present(ids: Tensor, first_row: Tensor, bag: Tensor) -> Tensor:
    """Σ bag[id + first_row] over the ids that are not 0; those that are 0, most of a crop, cost nothing.

    Args:
        ids: [B, C] int64.
        first_row: [C] int64.
        bag: [rows, W] float32.
    Returns: [B, W] float32; gradients flow into ``bag``.
    """
    present = ids > 0
    counts = present.sum(dim=1)
    return functional.embedding_bag((ids + first_row)[present], bag, counts.cumsum(0) - counts, mode="sum")


def sum_of_all(ids: Tensor, first_row: Tensor, bag: Tensor) -> Tensor:
    """The same as ``sum_of_present``, of shapes that do not hang on the ids: a row is read for 0, too, and weighs 0."""
    present = ids > 0
    rows = torch.where(present, ids + first_row, 0)
    return functional.embedding_bag(rows, bag, mode="sum", per_sample_weights=present.to(bag.dtype))


def _packs(ids: Tensor) -> bool:
    """On the CPU it is faster, by far in the backward pass; elsewhere the host would wait to learn how many there are,
    which no CUDA graph can hold.
    """
    return ids.device.type == "cpu"


def _checked_leaves(observation: tuple[ArraySpec, ...]) -> dict[str, ArraySpec]:
    """By their short names. Raises: SpecError where one of a known name has another form."""
    specs = {leaf_name(spec): spec for spec in observation}
    _check_form(specs, "crop", ("uint8",), 2)
    _check_form(specs, "locator", ("int8",), 2)
    _check_form(specs, "map", ("uint8",), 2)
    _check_form(specs, "map_colors", ("uint8",), 2)
    _check_form(specs, "message", ("uint8",), 1)
    _check_form(specs, "inventory_items", ("int16",), 1)
    return specs


def _cells_and_words(specs: Mapping[str, ArraySpec]) -> tuple[int, int]:
    """Cells of the crop and words of the message, 0 where there is none."""
    cells = math.prod(specs["crop"].shape) if "crop" in specs else 0
    return cells, specs["message"].shape[0] if "message" in specs else 0


def _first_rows(classes: int, cells: int, words: int) -> list[int]:
    """What is added to an id above 0 of each cell and word to give its row of the bag; id 0 has none."""
    return [at * (classes - 1) - 1 for at in range(cells)] + [cells * (classes - 1) - 1] * words


def _others(specs: Mapping[str, ArraySpec]) -> list[FlatLeaf]:
    """Leaves of other names, which are taken as numbers."""
    return [flat_leaf(spec) for name, spec in specs.items() if name not in _KNOWN]


def _check_form(specs: Mapping[str, ArraySpec], name: str, dtypes: tuple[str, ...], axes: int) -> None:
    spec = specs.get(name)
    if spec is not None and (spec.dtype not in dtypes or len(spec.shape) != axes):
        raise SpecError(
            f"observation column '{spec.name}' is {spec.dtype} {list(spec.shape)}, but the NetHack network reads "
            f"'{name}' as {' or '.join(dtypes)} with {axes} axes. Rename the key, or set learner.network.kind "
            "to mlp or custom."
        )
