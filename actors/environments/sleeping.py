"""An environment whose step takes a set time and no processor: stands for games and robots that one waits for.

For measuring how a run scales with its actors on few cores: ``id: onibi.actors.environments.sleeping:make``.
"""

from __future__ import annotations

import time
from typing import Any

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray


class SleepingEnvironment(gym.Env[NDArray[np.float32], int]):
    """Walks on a line of whole numbers; reward 1 for a step to the right, 0 for one to the left.

    Args:
        step_seconds: how long a step takes.
        episode_steps: after which it is truncated.
    """

    def __init__(self, step_seconds: float, episode_steps: int) -> None:
        self.observation_space = gym.spaces.Box(-1.0, 1.0, (4,), np.float32)
        self.action_space: gym.Space[Any] = gym.spaces.Discrete(2)
        self._step_seconds, self._episode_steps = step_seconds, episode_steps
        self._place = self._steps = 0

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.float32], dict[str, Any]]:
        """Back to the middle; takes no time."""
        super().reset(seed=seed, options=options)
        self._place = self._steps = 0
        return self._observe(), {}

    def step(self, action: int) -> tuple[NDArray[np.float32], float, bool, bool, dict[str, Any]]:
        """Sleep, then step."""
        time.sleep(self._step_seconds)
        self._steps += 1
        self._place += 1 if action else -1
        return self._observe(), float(action), False, self._steps >= self._episode_steps, {}

    def _observe(self) -> NDArray[np.float32]:
        share = self._steps / self._episode_steps
        return np.array([self._place / self._episode_steps, share, 1.0 - share, 1.0], np.float32)


def make(step_seconds: float = 0.001, episode_steps: int = 200) -> SleepingEnvironment:
    """One environment."""
    return SleepingEnvironment(step_seconds, episode_steps)
