"""What NLE and MiniHack tell otherwise than Gymnasium, put right in one wrapper (`oni.md` traps 1 and 2)."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np

_ABORTED, _TASK_SUCCESSFUL = -1, 2  # nle's StepStatus; its import costs half a second
_BLSTATS_SCORE, _BLSTATS_DEPTH = 9, 12


_OPEN_ENDED = ("NetHack-v0", "NetHackScore", "NetHackChallenge")


def has_goal(env_id: str) -> bool:
    """Whether an episode of this NetHack task can succeed."""
    return not env_id.startswith(_OPEN_ENDED)


def is_nethack(env_id: str) -> bool:
    """Whether the id belongs to NLE or MiniHack."""
    return env_id.startswith(("NetHack", "MiniHack"))


class NetHackEpisodes(gym.Wrapper[Any, Any, Any, Any]):
    """Seeds every reset, tells time limits as ``truncated``, and gives each episode's figures.

    * NLE ignores ``reset(seed=…)``; its own ``seed()`` holds for the next reset only. Here a seeded reset starts a
      stream from which each later reset of this environment takes its game seeds, so a seeded run repeats.
    * NLE's step limit comes as ``terminated`` with ``end_status`` ABORTED; value targets would take it for death.
    * At an episode's end ``info["episode_figures"]`` holds ``score``, ``depth`` (deepest level reached) and
      ``success`` (1 where the task's goal was met; absent in open-ended games, whose goal nobody meets).
    """

    def __init__(self, env: gym.Env[Any, Any], *, has_goal: bool = True) -> None:
        super().__init__(env)
        self._has_goal = has_goal
        self._game_seeds: np.random.Generator | None = None
        self._deepest = 0.0
        self._score = 0.0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Start a game; with ``seed``, restart the stream of game seeds as well."""
        if seed is not None:
            self._game_seeds = np.random.default_rng(seed)
        if self._game_seeds is not None:
            core, display = (int(number) for number in self._game_seeds.integers(0, 2**31 - 1, size=2))
            self.env.unwrapped.seed(core, display, reseed=False)  # type: ignore[attr-defined]
        observation, _ = self.env.reset(options=options)
        self._deepest = self._score = 0.0
        self._note(observation)
        return observation, {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """One step; ABORTED becomes ``truncated``."""
        observation, reward, terminated, truncated, info = self.env.step(action)
        self._note(observation)
        if not (terminated or truncated):
            return observation, float(reward), False, False, {}
        status = int(info["end_status"])
        if status == _ABORTED:
            terminated, truncated = False, True
        figures = {"score": self._score, "depth": self._deepest}
        if self._has_goal:
            figures["success"] = float(status == _TASK_SUCCESSFUL)
        return observation, float(reward), terminated, truncated, {"episode_figures": figures}

    def _note(self, observation: Any) -> None:
        blstats = observation.get("blstats")
        if blstats is not None:
            # A game that ended shows zeros; the last living figures are the episode's.
            self._score = max(self._score, float(blstats[_BLSTATS_SCORE]))
            self._deepest = max(self._deepest, float(blstats[_BLSTATS_DEPTH]))
