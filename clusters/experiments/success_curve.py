"""How early and how surely a run succeeds: figures of the success rates of its own evaluations over env steps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from onibi.platform.errors import TrainingError

ARRIVED = 0.8
"""Success of an evaluation at which a run has arrived."""


def success_figures(evaluations: Sequence[Mapping[str, Any]], span: tuple[int, int]) -> dict[str, float | None]:
    """``success_area`` over the span, and ``steps_to_80``: env steps of the first evaluation at 80%, None for never.

    Args:
        evaluations: rows of a run, each of the same number of greedy episodes.
        span: first and last env step of the area.
    Raises: TrainingError where the task tells no success, or there is no evaluation.
    """
    points = [(float(row["env_steps"]), float(row["success_rate"])) for row in evaluations if "success_rate" in row]
    if not points:
        raise TrainingError(
            "the run's evaluations hold no success_rate: its environment tells none in "
            "info['episode_figures']['success'], or nothing was evaluated. Set evaluation.period_env_steps, or choose "
            "another figure."
        )
    return {"success_area": success_area(points, *span), "steps_to_80": steps_to(points, ARRIVED)}


def success_area(points: Sequence[tuple[float, float]], first: float, last: float) -> float:
    """Area under the success curve from env step ``first`` to ``last`` as a share of all there could be, 0 to 1.

    Straight lines between evaluations. A run begins at 0, whatever luck an untrained policy has, and keeps the success
    of its last evaluation after that.

    Args:
        points: (env steps, success), ascending.
        first: where the area begins.
        last: where it ends, above ``first``.
    Raises: ValueError for a span that is empty.
    """
    if not first < last:
        raise ValueError(f"the span {first} to {last} is empty; allowed: first below last")
    steps = np.array([0.0, *(step for step, _ in points)])
    success = np.array([0.0, *(share for _, share in points)])
    inside = steps[(steps > first) & (steps < last)]
    along = np.array([first, *inside, last])
    heights = np.interp(along, steps, success)
    return float(((heights[1:] + heights[:-1]) / 2 * np.diff(along)).sum() / (last - first))


def steps_to(points: Sequence[tuple[float, float]], success: float) -> float | None:
    """Env steps of the first evaluation with this success or more; None where there is none."""
    return next((step for step, share in points if share >= success), None)
