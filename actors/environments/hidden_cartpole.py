"""CartPole-v1 with the velocities hidden: a task that no single observation tells, for learners with a memory.

Seen are the cart's place and the pole's angle. How fast either moves is told only by how they changed, so a player
without memory cannot tell a pole that falls from one that rises.
"""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

_SEEN = [0, 2]
"""Of CartPole's place, velocity, angle, angular velocity."""


class HiddenVelocities(gym.ObservationWrapper[NDArray[np.float32], np.int64, NDArray[np.float32]]):
    """CartPole that shows [place, angle] float32 alone; rewards, ends and the limit of 500 steps are CartPole-v1's."""

    def __init__(self, environment: gym.Env[NDArray[np.float32], np.int64]) -> None:
        super().__init__(environment)
        space = environment.observation_space
        assert isinstance(space, gym.spaces.Box), "CartPole's observation is a Box"
        self.observation_space = gym.spaces.Box(space.low[_SEEN], space.high[_SEEN], dtype=np.float32)

    def observation(self, observation: NDArray[np.float32]) -> NDArray[np.float32]:
        """[4] → [2]."""
        return observation[_SEEN]


def make(**options: Any) -> HiddenVelocities:
    """For ``environment.id: onibi.actors.environments.hidden_cartpole:make``; options are CartPole-v1's."""
    return HiddenVelocities(gym.make("CartPole-v1", disable_env_checker=True, **options))
