"""What an encoder's twin in NumPy is, for actors: an import of torch costs 218 MB and 1.3 s a process."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray


class NumpyEncoder(Protocol):
    """The forward pass of an encoder."""

    def load(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Take the arrays of a published network by their names in the torch module (``encoder.…``)."""

    def __call__(self, observation: Mapping[str, NDArray[Any]]) -> NDArray[np.float32]:
        """Each leaf [E, ...], not written to → [E, F] float32, overwritten by the next call."""


class NumpyForm(Protocol):
    """What such a twin is built of: picklable, and read where torch is not."""

    def make(self) -> NumpyEncoder:
        """One without arrays yet."""
