"""The support of a value distribution: where the bins lie, and how it follows from the bounds of the returns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from onibi.platform.config import Settings
from onibi.platform.errors import ConfigError

_AUTO_MARGIN = 0.1
"""Share of the range added at either end: the read-out is biased within two bins of an edge."""


@dataclass(frozen=True, kw_only=True)
class SupportSettings(Settings):
    """Where the bins of ``hl_gauss`` lie. ``low`` and ``high`` are edges; both unset: from the reward's bounds."""

    low: float | None = None  # value units
    high: float | None = None  # value units
    bins: Annotated[int, Field(ge=3, le=1001)] = 51
    # Width of the Gaussian: 0.75 bins where neither is set. Its best size in value units does not hang on the bins.
    sigma_bins: Annotated[float, Field(gt=0)] | None = None  # σ in bin widths
    sigma_value: Annotated[float, Field(gt=0)] | None = None  # σ in value units

    def __post_init__(self) -> None:
        """Refuse half a range and two widths."""
        if (self.low is None) != (self.high is None):
            raise ValueError("low and high go together: set both, or neither to take them from the reward's bounds")
        if self.low is not None and self.high is not None and self.low >= self.high:
            raise ValueError(f"low {self.low} is not below high {self.high}")
        if self.sigma_bins is not None and self.sigma_value is not None:
            raise ValueError("sigma_bins and sigma_value both set the width of the Gaussian: set one")


@dataclass(frozen=True)
class Support:
    """Bins of equal width between ``low`` and ``high``, which are edges."""

    low: float
    high: float
    bins: int

    @property
    def width(self) -> float:
        """Width of a bin in value units."""
        return (self.high - self.low) / self.bins

    @property
    def edges(self) -> NDArray[np.float64]:
        """[bins + 1], rising."""
        return np.linspace(self.low, self.high, self.bins + 1)

    @property
    def centres(self) -> NDArray[np.float64]:
        """[bins]"""
        edges = self.edges
        return (edges[:-1] + edges[1:]) / 2


def resolve_support(settings: SupportSettings, value_bounds: tuple[float, float] | None) -> Support:
    """The support that the settings name, or the bounds of the returns with a margin.

    Args:
        settings: range or auto.
        value_bounds: least and largest discounted return, from the reward mixer; None where they are not known.
    Raises: ConfigError where the range is auto and the bounds are unknown, infinite or empty.
    """
    if settings.low is not None and settings.high is not None:
        return Support(settings.low, settings.high, settings.bins)
    if value_bounds is None or not all(np.isfinite(value_bounds)):
        raise ConfigError(
            f"learner.support: the bounds of the return are {value_bounds}, so the bins cannot be placed. Set "
            "support.low and support.high to the least and largest discounted return, clip the reward, or take "
            "value_loss: mse."
        )
    low, high = value_bounds
    if low >= high:
        raise ConfigError(
            f"learner.support: every return lies in [{low}, {high}], so there is nothing to learn. Give a reward "
            "component a coefficient other than 0, or set support.low and support.high."
        )
    # Without negative rewards 0 is an end of the range, and the commonest value: it must not lie on an edge either.
    margin = _AUTO_MARGIN * (high - low)
    return Support(low - margin, high + margin, settings.bins)


def resolve_sigma(settings: SupportSettings, support: Support) -> float:
    """σ in value units: as set, or 0.75 of a bin's width (the paper's choice)."""
    if settings.sigma_value is not None:
        return settings.sigma_value
    return (0.75 if settings.sigma_bins is None else settings.sigma_bins) * support.width
