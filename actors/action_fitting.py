"""How the continuous actions of a policy become those of an environment's Box.

What replay stores is the policy's own action, before it is fitted: its log-probability is known exactly, and ratios of
two policies are the same on either side.
"""

from __future__ import annotations

from typing import Any, Literal

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from onibi.platform.errors import SpecError

ActionFit = Literal["rescale", "clip", "squash"]
"""``rescale``: the policy acts within ±1, which is stretched to the Box. ``clip``: in the Box's own units, cut at its
bounds. ``squash``: anywhere, tanh brings it within ±1, then as ``rescale``."""


class ActionFitting:
    """Turns policy actions [E, D] into a Box's [E, ...].

    Args:
        space: of one environment.
        fit: how.
        env_id: named in errors.
    Raises: SpecError where the Box does not hold floats, or has no finite bounds to stretch to.
    """

    def __init__(self, space: gym.spaces.Box, fit: ActionFit, env_id: str) -> None:
        if not np.issubdtype(space.dtype, np.floating):
            raise SpecError(
                f"{env_id}: its action space {space} is a Box of {space.dtype}; policies give floats. Wrap the "
                "environment so that it takes a Box of float32, or Discrete actions."
            )
        # Environments write "no bound" as the largest number, too: stretched to it, an action of 0.01 would be 3e36.
        largest = min(float(np.finfo(space.dtype).max), float(np.finfo(np.float32).max))
        low, high = (
            np.where(np.abs(bound) < largest, bound, np.copysign(np.inf, bound))
            for bound in (space.low.astype(np.float64).ravel(), space.high.astype(np.float64).ravel())
        )
        finite = np.isfinite(low) & np.isfinite(high)
        if fit != "clip" and not finite.all():
            raise SpecError(
                f"{env_id}: its action space {space} has no finite bounds to stretch actions to. Set "
                "actors.rollout.action_fit to clip."
            )
        self._shape, self._dtype, self._fit = space.shape, space.dtype, fit
        self._low, self._high = low, high
        self._middle, self._reach = (
            (low + high) / 2 if fit != "clip" else low,
            (high - low) / 2 if fit != "clip" else low,
        )

    @property
    def dimensions(self) -> int:
        """D."""
        return len(self._low)

    @property
    def policy_bounds(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Least and largest action [D] that makes a difference to the environment; infinite where there is none."""
        if self._fit == "clip":
            return tuple(self._low.tolist()), tuple(self._high.tolist())
        reach = 1.0 if self._fit == "rescale" else np.inf
        return (-reach,) * self.dimensions, (reach,) * self.dimensions

    def __call__(self, action: NDArray[Any]) -> NDArray[Any]:
        """[E, D] float32 → [E, *shape] in the Box's dtype, within its bounds; a copy."""
        if self._fit == "clip":
            fitted = np.clip(action, self._low, self._high)
        else:
            within = np.tanh(action) if self._fit == "squash" else np.clip(action, -1.0, 1.0)
            # Rounding must not carry an action over a bound that an environment checks.
            fitted = np.clip(self._middle + self._reach * within, self._low, self._high)
        shaped: NDArray[Any] = fitted.reshape(len(action), *self._shape).astype(self._dtype)
        return shaped


def action_fitting(space: gym.Space[Any], fit: ActionFit, env_id: str) -> ActionFitting | None:
    """The fitting of a Box; None for Discrete actions from 0. Raises: SpecError for any other space."""
    if isinstance(space, gym.spaces.Box):
        return ActionFitting(space, fit, env_id)
    if isinstance(space, gym.spaces.Discrete) and int(space.start) == 0:
        return None
    raise SpecError(f"{env_id}: its action space is {space}; policies act in Discrete spaces from 0 and in Box spaces.")
