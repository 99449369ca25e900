"""The forward pass of an MLP Q-network in NumPy, for actors: an import of torch costs 218 MB and 1.3 s a process."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onibi.learners.networks.leaves import FlatLeaf
from onibi.learners.networks.numpy_head import NumpyQHead
from onibi.learners.networks.numpy_trunk import NumpyTrunk


class NumpyMlp:
    """Values from the arrays of a published ``QNetwork`` over an ``MlpEncoder``. A test compares it with torch.

    Args:
        leaves: as the encoder's.
        actions: A.
    """

    def __init__(self, leaves: Sequence[FlatLeaf], actions: int) -> None:
        self._trunk, self._head = NumpyTrunk(leaves), NumpyQHead(actions)

    @property
    def noise_size(self) -> int:
        """Standard normals that a row of noise has; 0 where the weights loaded are not noisy."""
        return self._head.noise_size

    def load(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Take the arrays by their names in the torch module."""
        self._trunk.load(arrays)
        self._head.load(arrays)

    def action_values(
        self, observation: Mapping[str, NDArray[Any]], noise: NDArray[np.float32] | None = None
    ) -> NDArray[np.float32]:
        """Values of all actions.

        Args:
            observation: each leaf [E, ...].
            noise: [E, noise_size] standard normals for a noisy head; None gives the means.
        Returns: [E, A] float32. Raises: RuntimeError before the first ``load``.
        """
        return self._head(self._trunk(observation), noise)
