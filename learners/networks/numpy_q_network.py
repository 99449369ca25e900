"""The forward pass of a Q-network in NumPy, for actors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onibi.learners.networks.numpy_encoder import NumpyForm
from onibi.learners.networks.numpy_head import NumpyQHead


class NumpyQNetwork:
    """Values from the arrays of a published ``QNetwork``. A test compares it with torch.

    Args:
        encoder: what its encoder is built of.
        actions: A.
    """

    def __init__(self, encoder: NumpyForm, actions: int) -> None:
        self._encoder, self._head = encoder.make(), NumpyQHead(actions)

    @property
    def noise_size(self) -> int:
        """Standard normals that a row of noise has; 0 where the weights loaded are not noisy."""
        return self._head.noise_size

    def load(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Take the arrays by their names in the torch module."""
        self._encoder.load(arrays)
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
        return self._head(self._encoder(observation), noise)
