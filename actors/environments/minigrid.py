"""MiniGrid and BabyAI told in words: what an action changed, and the mission as text.

    MiniGrid-DoorKey-8x8-v0   "You pick up the yellow key."  "You unlock the yellow door."  "You reach the green goal."

Captions come from the environment's own state before and after the step: what an action was meant to do and did not is
not told, but for bumps and locked doors. Chevalier-Boisvert et al. 2023, "Minigrid & Miniworld", arXiv 2306.13831.
The package is an extra: ``pip install 'onibi[minigrid]'``.
"""

from __future__ import annotations

import importlib
import logging
import string
from collections.abc import Callable
from typing import Any

import gymnasium as gym

from onibi.actors.environments.pygame_quiet import pygame_quiet
from onibi.platform.errors import EnvironmentFault
from onibi.platform.shell_words import pip_install

log = logging.getLogger(__name__)

MISSION_CHARACTERS = 512
"""Longest mission that is kept; BabyAI's longest levels stay below 300."""

_REMEMBERED_VIEWS = 1 << 12
_FORWARD, _TOGGLE = 2, 5  # minigrid.core.actions.Actions; its import costs a third of a second
_PREFIXES = ("MiniGrid-", "BabyAI-")


def is_minigrid(env_id: str) -> bool:
    """Whether the id belongs to MiniGrid or BabyAI."""
    return env_id.startswith(_PREFIXES)


def register_minigrid() -> None:
    """Import the package, which registers its environments.

    Raises: EnvironmentFault where it is missing.
    """
    try:
        with pygame_quiet():
            importlib.import_module("minigrid")
            levels = importlib.import_module("minigrid.envs.babyai.core.roomgrid_level")
    except ImportError as error:
        raise EnvironmentFault(
            f"MiniGrid and BabyAI need the package minigrid ({error}). Install it with: "
            f"{pip_install('onibi[minigrid]')}"
        ) from error
    # It prints a line for each level that it throws away, dozens at a reset.
    levels.print = _log_words  # type: ignore[attr-defined]


def _log_words(*words: object) -> None:
    log.debug("%s", " ".join(map(str, words)))


class MiniGridEpisodes(gym.Wrapper[Any, Any, Any, Any]):
    """Gives each step's ``info["caption"]``, and a mission that is an ordinary Text leaf.

    * ``observation_space``: Dict of image uint8 [V, V, 3], direction Discrete(4), mission Text.
    * ``info["caption"]``: what this step changed, sentences joined by two blanks; absent where nothing did.
    * At an episode's end ``info["episode_figures"]`` holds ``success``: 1 where the environment paid for the end.
    """

    def __init__(self, env: gym.Env[Any, Any]) -> None:
        super().__init__(env)
        spaces = dict(env.observation_space.spaces)  # type: ignore[attr-defined]
        # MissionSpace knows all missions of a task and nothing else does: BabyAI's is wrong about its own.
        spaces["mission"] = gym.spaces.Text(MISSION_CHARACTERS, min_length=0, charset=string.printable)
        self.observation_space = gym.spaces.Dict(spaces)
        self._grid: Any = env.unwrapped
        self._views = RememberedViews(self._grid)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Start an episode."""
        self._views.forget()
        observation, info = self.env.reset(seed=seed, options=options)
        return self._with_mission(observation), info

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """One step, and what it changed."""
        grid = self._grid
        place, held = grid.agent_pos, grid.carrying
        ahead = grid.front_pos
        facing = grid.grid.get(*ahead)
        was_door = _door_state(facing)
        direction = grid.agent_dir
        observation, reward, terminated, truncated, info = self.env.step(action)
        said = []
        if tuple(grid.agent_pos) != tuple(place):
            said += _moved(facing)
        elif int(action) == _FORWARD and grid.agent_dir == direction and facing is not None and not terminated:
            said.append(f"You bump into the {_name(facing)}.")
        now_held = grid.carrying
        if now_held is not held:
            if held is not None:
                said.append(f"You drop the {_name(held)}.")
            if now_held is not None:
                said.append(f"You pick up the {_name(now_held)}.")
        elif facing is not None and int(action) == _TOGGLE:
            said += _toggled(facing, was_door, grid.grid.get(*ahead))
        if terminated:
            said += _ended(facing, moved=tuple(grid.agent_pos) != tuple(place), reward=float(reward))
        told = dict(info)
        if said:
            told["caption"] = "  ".join(said)
        if terminated or truncated:
            told["episode_figures"] = {"success": float(terminated and float(reward) > 0)}
        return self._with_mission(observation), float(reward), terminated, truncated, told

    def _with_mission(self, observation: dict[str, Any]) -> dict[str, Any]:
        return {**observation, "mission": str(observation["mission"])[:MISSION_CHARACTERS]}


class RememberedViews:
    """The agent's views of this episode: the same cells, doors, place and load give the same image.

    MiniGrid makes each view anew by loops over cells, nearly all of a step's time. Agents come back to where they have
    been: of random play's views in DoorKey-8x8 6 of 7 are remembered, and a step costs a fifth.

    Args:
        grid: the unwrapped environment, whose ``gen_obs`` is replaced unless a task has one of its own.
    """

    def __init__(self, grid: Any) -> None:
        self._grid = grid
        self._make: Callable[[], dict[str, Any]] = grid.gen_obs
        self._images: dict[Any, Any] = {}
        self._cells: tuple[Any, ...] = ()
        self._doors: list[Any] = []
        if type(grid).gen_obs is _plain_views():
            grid.gen_obs = self._look

    def forget(self) -> None:
        """Another episode, with other things in it."""
        self._images.clear()
        self._cells = ()

    def _look(self) -> dict[str, Any]:
        grid = self._grid
        cells = tuple(grid.grid.grid)
        if cells != self._cells:  # things are equal only to themselves
            self._cells = cells
            self._doors = [thing for thing in cells if thing is not None and thing.type == "door"]
        doors = tuple([(door.is_open, door.is_locked) for door in self._doors])
        seen = (cells, doors, tuple(grid.agent_pos), grid.agent_dir, grid.carrying)
        image = self._images.get(seen)
        if image is None:
            if len(self._images) >= _REMEMBERED_VIEWS:
                self._images.clear()
            made = self._make()
            self._images[seen] = made["image"].copy()
            return made
        return {"image": image.copy(), "direction": grid.agent_dir, "mission": grid.mission}


def _plain_views() -> Any:
    from minigrid.minigrid_env import MiniGridEnv

    return MiniGridEnv.gen_obs


def make(env_id: str, *, whole_grid: bool = False, **given: Any) -> gym.Env[Any, Any]:
    """A MiniGrid or BabyAI environment, for ``environment.id: onibi.actors.environments.minigrid:make``.

    The plain id does the same without ``whole_grid``.

    Args:
        env_id: such as "MiniGrid-DoorKey-8x8-v0".
        whole_grid: the image shows the whole grid with the agent in it, not the 7 × 7 cells before the agent.
        given: handed to the environment.
    Raises: EnvironmentFault where the package is missing or the id unknown.
    """
    register_minigrid()
    if not is_minigrid(env_id):
        raise EnvironmentFault(f"environment.kwargs.env_id is {env_id!r}; allowed: ids of MiniGrid-… or BabyAI-….")
    env = gym.make(env_id, disable_env_checker=True, **given)
    if whole_grid:
        from minigrid.wrappers import FullyObsWrapper

        env = FullyObsWrapper(env)  # type: ignore[no-untyped-call]
    return MiniGridEpisodes(env)


def _name(thing: Any) -> str:
    return f"{thing.color} {thing.type}" if thing.type not in ("wall", "lava", "floor") else str(thing.type)


def _door_state(thing: Any) -> tuple[bool, bool] | None:
    """(open, locked) of a door; None for anything else."""
    return (bool(thing.is_open), bool(thing.is_locked)) if thing is not None and thing.type == "door" else None


def _moved(onto: Any) -> list[str]:
    if onto is None or onto.type == "floor":
        return []
    if onto.type == "door":
        return [f"You walk through the {_name(onto)}."]
    return [f"You step into the {_name(onto)}."] if onto.type == "lava" else []


def _toggled(facing: Any, was_door: tuple[bool, bool] | None, now: Any) -> list[str]:
    if facing.type == "box" and now is not facing:
        return [f"You open the {_name(facing)}.", f"It held a {_name(now)}." if now is not None else "It was empty."]
    is_door = _door_state(facing)
    if was_door is None or is_door is None:
        return []
    if was_door == is_door:
        return [f"The {_name(facing)} is locked."] if is_door[1] else []
    if was_door[1]:
        return [f"You unlock the {_name(facing)}."]
    return [f"You {'open' if is_door[0] else 'close'} the {_name(facing)}."]


def _ended(facing: Any, *, moved: bool, reward: float) -> list[str]:
    """Words for an end that no caption of the step itself told."""
    if facing is not None and moved and facing.type == "goal":
        return [f"You reach the {_name(facing)}."]
    if facing is not None and moved and facing.type == "lava":
        return []
    if reward > 0:
        return ["You complete the mission."]
    if facing is not None and reward < 0:  # an obstacle may have stepped aside in the same moment
        return [f"You collide with the {_name(facing)}."]
    return ["You fail the mission."]
