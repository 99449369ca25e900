"""The forward pass of a ``NethackEncoder`` without its optional towers in NumPy, for actors."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onibi.learners.networks.leaves import FlatLeaf, flatten
from onibi.learners.networks.numpy_trunk import LayerNormArrays, NumpyLayers, NumpyNormalizer, layer_norm

LOCATOR_REACH = 40.0
"""Cells at which the view clips dx and dy."""
LOCATOR_NEAR = 4.0
"""Cells over which the near scale of dx and dy saturates: one step more or less must be seen."""


@dataclass(frozen=True, kw_only=True)
class NumpyNethackForm:
    """Columns that the encoder reads; None for one that is not there.

    Args:
        crop, message, blstats, locator: names of the columns.
        classes: of a cell of the crop; higher ones are read as the last.
        first_row: [cells and words] int64, what is added to an id above 0 to give its row of the bag.
        others: leaves that are taken as numbers.
    """

    crop: str | None
    message: str | None
    blstats: str | None
    locator: str | None
    classes: int
    first_row: tuple[int, ...]
    others: tuple[FlatLeaf, ...]

    def make(self) -> NumpyNethack:
        """See ``NumpyForm``."""
        return NumpyNethack(self)


class NumpyNethack:
    """NetHack views to features, with the arrays of a published encoder. A test compares it with torch.

    Args:
        form: the columns.
    """

    def __init__(self, form: NumpyNethackForm) -> None:
        self._form = form
        self._first_row = np.array(form.first_row, np.int64)
        self._bag: NDArray[np.float32] | None = None
        self._weight: NDArray[np.float32] | None = None
        self._bias: NDArray[np.float32] | None = None
        self._norm: LayerNormArrays | None = None
        self._layers = NumpyLayers()
        self._blstats = NumpyNormalizer("encoder.blstats_normalizer.")

    def load(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        """See ``NumpyEncoder``."""
        self._weight = self._bias = self._bag = None
        if "encoder.numbers.weight" in arrays:
            self._weight = np.ascontiguousarray(arrays["encoder.numbers.weight"].T)
            self._bias = arrays["encoder.numbers.bias"].copy()
        if "encoder.bag" in arrays:
            bag = arrays["encoder.bag"]
            # The bias is the last row: each environment's sum has it, and is never empty.
            bias = np.zeros(bag.shape[1], np.float32) if self._bias is None else self._bias
            self._bag = np.concatenate((bag, bias[None]))
        self._norm = layer_norm(arrays, "encoder.norm.")
        self._layers.load(arrays, "encoder.trunk.")
        self._blstats.load(arrays)

    def __call__(self, observation: Mapping[str, NDArray[Any]]) -> NDArray[np.float32]:
        """See ``NumpyEncoder``."""
        features: NDArray[np.float32] | None = None
        if self._weight is not None:
            features = numbers_of(self._form, observation, self._blstats) @ self._weight
        if self._bag is not None:
            summed = self._bag_sum(observation, self._bag)
            features = summed if features is None else np.add(features, summed, out=features)
        elif features is not None and self._bias is not None:
            features += self._bias
        if features is None:
            raise RuntimeError("features before load")
        if self._norm is not None:
            self._norm.apply(features)
        np.maximum(features, 0.0, out=features)
        return self._layers(features)

    def _bag_sum(self, observation: Mapping[str, NDArray[Any]], bag: NDArray[np.float32]) -> NDArray[np.float32]:
        """[E, first layer]: the sum of the rows of all cells and words that are not 0, and of the bias."""
        ids = ids_of(self._form, observation)
        rows = np.full((len(ids), ids.shape[1] + 1), len(bag) - 1, np.int64)
        np.add(ids, self._first_row, out=rows[:, 1:])
        present = np.ones(rows.shape, np.bool_)
        np.greater(ids, 0, out=present[:, 1:])
        counts = present.sum(axis=1)
        return np.add.reduceat(bag[rows[present]], np.cumsum(counts) - counts, axis=0)


def ids_of(form: NumpyNethackForm, observation: Mapping[str, NDArray[Any]]) -> NDArray[np.uint8]:
    """[E, cells and words]: classes and word ids, 0 where there is nothing to add."""
    parts = []
    if form.crop is not None:
        crop = observation[form.crop]
        parts.append(np.minimum(crop.reshape(len(crop), -1), form.classes - 1))
    if form.message is not None:
        parts.append(observation[form.message])
    return parts[0] if len(parts) == 1 else np.concatenate(parts, axis=1)


def numbers_of(
    form: NumpyNethackForm,
    observation: Mapping[str, NDArray[Any]],
    normalized: Callable[[NDArray[np.float32]], NDArray[np.float32]],
) -> NDArray[np.float32]:
    """[E, numbers], in the order of ``NethackEncoder._numbers``; figures [E, F] as ``normalized`` gives them."""
    parts = []
    if form.others:
        parts.append(flatten(form.others, observation))
    if form.blstats is not None:
        figures = observation[form.blstats]
        parts.append(normalized(figures.reshape(len(figures), -1).astype(np.float32)))
    if form.locator is not None:
        locator = observation[form.locator].astype(np.float32)
        offset = locator[:, :, 1:]
        near = np.tanh(offset / np.float32(LOCATOR_NEAR))
        scales = np.concatenate((locator[:, :, :1], offset / np.float32(LOCATOR_REACH), near), axis=2)
        parts.append(scales.reshape(len(scales), -1))
    return parts[0] if len(parts) == 1 else np.concatenate(parts, axis=1)
