"""What actor-side bonuses need of a learner: features of observations, by an encoder that comes with the weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray


class Features(Protocol):
    """One version of an encoder."""

    def __call__(self, observation: Mapping[str, NDArray[Any]]) -> NDArray[np.float32]:
        """Each leaf [E, ...] → [E, d]; the caller's to keep."""


class FeaturesFactory(Protocol):
    """Picklable maker of encoders from arrays that were published: handed to actors by ``clusters``."""

    def __call__(self, arrays: Mapping[str, NDArray[Any]]) -> Features:
        """The encoder that these arrays describe."""
