"""The encoder of an E3B bonus in NumPy, for actors: an import of torch costs 218 MB and 1.3 s a process."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onibi.learners.networks.leaves import FlatLeaf, flat_leaf
from onibi.learners.networks.numpy_trunk import NumpyTrunk, linear_pair
from onibi.platform.features import Features
from onibi.platform.spec import ArraySpec


class NumpyFeatures:
    """Features by the arrays of a published ``FlatFeatures``. A test compares them with torch's.

    Args:
        leaves: as the encoder's.
        arrays: of one version.
    """

    def __init__(self, leaves: tuple[FlatLeaf, ...], arrays: Mapping[str, NDArray[Any]]) -> None:
        self._trunk = NumpyTrunk(leaves)
        self._trunk.load(arrays)
        self._weight, self._bias = linear_pair(arrays, "out.")

    def __call__(self, observation: Mapping[str, NDArray[Any]]) -> NDArray[np.float32]:
        """See ``Features``."""
        features: NDArray[np.float32] = self._trunk(observation) @ self._weight + self._bias
        return features


@dataclass(frozen=True)
class NumpyFeaturesFactory:
    """A ``FeaturesFactory``."""

    leaves: tuple[FlatLeaf, ...]

    def __call__(self, arrays: Mapping[str, NDArray[Any]]) -> Features:
        """See ``FeaturesFactory``."""
        return NumpyFeatures(self.leaves, arrays)


def numpy_features(leaves: tuple[ArraySpec, ...]) -> NumpyFeaturesFactory:
    """The factory for an encoder of these leaves."""
    return NumpyFeaturesFactory(tuple(flat_leaf(leaf) for leaf in leaves))
