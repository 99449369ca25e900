"""Coefficients of reward components: fixed, or a line over env steps."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TypeAlias

from onibi.platform.config import Settings


@dataclass(frozen=True, kw_only=True)
class ScheduleSettings(Settings):
    """From ``start`` at the run's first env step to ``end`` after ``env_steps`` of them, and so on from there.

    A batch has one coefficient, that of the env steps the learner knew when it paid the batch, so rows that were
    collected early are paid by today's.
    """

    start: float
    end: float
    env_steps: int

    def __post_init__(self) -> None:
        if self.env_steps < 1:
            raise ValueError(f"env_steps is {self.env_steps}; allowed: 1 or more")


Coefficient: TypeAlias = float | ScheduleSettings
"""A number, or a section with start, end and env_steps."""


def coefficient_at(coefficient: Coefficient, env_steps: int) -> float:
    """Its value after so many env steps of the run: start + (end − start) · min(1, env_steps / schedule)."""
    if not isinstance(coefficient, ScheduleSettings):
        return coefficient
    share = min(1.0, max(0, env_steps) / coefficient.env_steps)
    return coefficient.start + (coefficient.end - coefficient.start) * share


def coefficient_range(coefficient: Coefficient) -> tuple[float, float]:
    """(least, largest) value that it ever has."""
    if not isinstance(coefficient, ScheduleSettings):
        return coefficient, coefficient
    return min(coefficient.start, coefficient.end), max(coefficient.start, coefficient.end)


def check_coefficient(coefficient: Coefficient, *, negative: bool) -> None:
    """Raises: ValueError where it is not finite, or is below 0 anywhere and may not be."""
    low, high = coefficient_range(coefficient)
    if not (math.isfinite(low) and math.isfinite(high)):
        raise ValueError(f"coefficient is {coefficient}; it must be a finite number, or a schedule of such")
    if low < 0 and not negative:
        raise ValueError(f"coefficient is {coefficient}; it must be 0 or more: what is new or helpful is not punished")
