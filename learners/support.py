"""The support of a value distribution: where its bins lie, and how it follows from the bounds of the returns.

``hl_gauss`` has bins between edges, the outermost of which are ``low`` and ``high``; ``two_hot`` and ``c51`` have
atoms, the outermost of which are ``low`` and ``high``. Both may lie at equal distances in value units or in symlog
units: the latter gives returns of 1 and of 1,000 the same relative resolution, while they are read in value units.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from onibi.platform.config import Settings
from onibi.platform.errors import ConfigError
from onibi.platform.number_ranges import Positive

_AUTO_MARGIN = 0.1
"""Share of the range added at either end: the read-out is biased within two bins of an edge."""

Spacing = Literal["linear", "symlog"]


LEAST_SYMLOG_SIGMA = 0.35
"""In bins: down to here targets over symlog bins are read back to 10⁻³ of a bin."""


@dataclass(frozen=True, kw_only=True)
class SupportSettings(Settings):
    """Where the bins lie. ``low`` and ``high`` are edges or outermost atoms; both unset: from the reward's bounds."""

    low: float | None = None  # value units
    high: float | None = None  # value units
    bins: Annotated[int, Field(ge=3, le=1001)] = 51
    spacing: Spacing = "linear"  # symlog: equal widths in sign(x)·ln(1 + |x|), for returns of very different sizes
    # Width of hl_gauss's Gaussian: 0.75 bins where neither is set. Its best size in value units does not hang on bins.
    sigma_bins: Positive | None = None  # σ in bin widths
    sigma_value: Positive | None = None  # σ in value units

    def __post_init__(self) -> None:
        """Refuse half a range and two widths."""
        if (self.low is None) != (self.high is None):
            raise ValueError("low and high go together: set both, or neither to take them from the reward's bounds")
        if self.low is not None and self.high is not None and self.low >= self.high:
            raise ValueError(f"low {self.low} is not below high {self.high}")
        if self.sigma_bins is not None and self.sigma_value is not None:
            raise ValueError("sigma_bins and sigma_value both set the width of the Gaussian: set one")
        if self.spacing == "symlog" and self.sigma_value is not None:
            raise ValueError("sigma_value is one width for all values, symlog bins have many: set sigma_bins instead")
        if self.spacing == "symlog" and (self.sigma_bins or LEAST_SYMLOG_SIGMA) < LEAST_SYMLOG_SIGMA:
            raise ValueError(
                f"sigma_bins is {self.sigma_bins}: a Gaussian narrower than {LEAST_SYMLOG_SIGMA} of a symlog bin "
                "cannot be placed so that its mean is the target. Raise it, or take value_loss: two_hot"
            )


@dataclass(frozen=True)
class Support:
    """Bins of equal width between ``low`` and ``high``: in value units where linear, else in symlog units."""

    low: float
    high: float
    bins: int
    spacing: Spacing = "linear"

    @property
    def width(self) -> float:
        """Width of a bin in the units of the spacing."""
        low, high = self._ends
        return float(high - low) / self.bins

    @property
    def edges(self) -> NDArray[np.float64]:
        """[bins + 1] in the units of the spacing, rising."""
        return np.linspace(*self._ends, self.bins + 1)

    @property
    def centres(self) -> NDArray[np.float64]:
        """[bins] middles between the edges, in value units."""
        edges = self.edges
        return self._values((edges[:-1] + edges[1:]) / 2)

    @property
    def atoms(self) -> NDArray[np.float64]:
        """[bins] in value units, ``low`` and ``high`` the outermost."""
        return self._values(np.linspace(*self._ends, self.bins))

    @property
    def _ends(self) -> tuple[float, float]:
        return (self.low, self.high) if self.spacing == "linear" else (_symlog(self.low), _symlog(self.high))

    def _values(self, places: NDArray[np.float64]) -> NDArray[np.float64]:
        return places if self.spacing == "linear" else np.sign(places) * np.expm1(np.abs(places))


def resolve_support(settings: SupportSettings, value_bounds: tuple[float, float] | None) -> Support:
    """The support that the settings name, or the bounds of the returns with a margin.

    Args:
        settings: range or auto.
        value_bounds: least and largest discounted return, from the reward mixer; None where they are not known.
    Raises: ConfigError where the range is auto and the bounds are unknown, infinite or empty.
    """
    if settings.low is not None and settings.high is not None:
        return Support(settings.low, settings.high, settings.bins, settings.spacing)
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
    if settings.spacing == "linear":
        margin = _AUTO_MARGIN * (high - low)
        return Support(low - margin, high + margin, settings.bins)
    margin = _AUTO_MARGIN * (_symlog(high) - _symlog(low))
    ends = _symexp(_symlog(low) - margin), _symexp(_symlog(high) + margin)
    return Support(*ends, settings.bins, settings.spacing)


def resolve_sigma(settings: SupportSettings, support: Support) -> float:
    """σ in the units of the spacing: as set, or 0.75 of a bin's width (the paper's choice)."""
    if settings.sigma_value is not None:
        return settings.sigma_value
    return (0.75 if settings.sigma_bins is None else settings.sigma_bins) * support.width


def _symlog(value: float) -> float:
    return math.copysign(math.log1p(abs(value)), value)


def _symexp(place: float) -> float:
    return math.copysign(math.expm1(abs(place)), place)
