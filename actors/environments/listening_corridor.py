"""A winding corridor with a place to dawdle: where paying every new text fails and a judge's labels do not.

The corridor has ``rooms`` rooms of ``room_length`` cells. In each cell one of the four ways leads on and another one
back; which ones changes from cell to cell, so no single action gets anywhere. Entering a room is heard ("You enter the
kitchen."), and so is a wall. Reward 1 at the far end, 0 before: random play does not get there.

The fifth action listens: it yields one of 500 harmless texts, each a caption of its own. A reward for whatever is new
can be had by standing still and listening; only a judge that tells rooms from noises leads to the end.
"""

from __future__ import annotations

from itertools import product
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray

from onibi.actors.environments.corridor import corridor_picture

LISTEN = 4
"""The action after the four ways 0 to 3 (north, east, south, west)."""

_ROOMS = (
    "cellar", "kitchen", "pantry", "hall", "library", "armoury", "chapel", "attic", "vault", "garden",
    "stable", "nursery", "dungeon", "gallery", "workshop", "observatory",
)  # fmt: skip
_SOURCES = (
    "a cricket", "a fountain", "a distant bell", "a loose shutter", "a dripping pipe", "an owl", "a clock",
    "a rusty hinge", "a cart", "a choir", "a dog", "a drunkard", "a forge", "a mill wheel", "a mouse", "a rooster",
    "a spinning top", "a storm", "a kettle", "a swarm of bees", "a tame crow", "a weathercock", "an old organ",
    "an unseen harp", "somebody",
)  # fmt: skip
_MANNERS = (
    "above", "behind a wall", "below", "close by", "far away", "for a moment", "from all sides", "from the left",
    "from the right", "in the dark", "now and then", "once more", "outside", "over and over", "somewhere", "softly",
    "through a crack", "twice", "under the floor", "very faintly",
)  # fmt: skip
NOISES = tuple(f"You hear {source} {manner}." for source, manner in product(_SOURCES, _MANNERS))
"""What listening yields: 500 texts."""

_NOTHING, _WALL, _START, _END, _FIRST_ROOM = range(5)
_TURNS_SEED = 6
"""Of the corridor's turns: the same in every run, so that its length alone is the difficulty."""


class ListeningCorridor(VectorEnv[NDArray[np.float32], NDArray[np.int64], Any]):
    """E corridors that step together in NumPy.

    Actions: 0 to 3 walk, ``LISTEN`` listens. Observation: float32 [cells], one-hot of the cell. ``info["caption"]``
    tells what happened, empty when nothing did. Terminates at the last cell, truncates after ``max_episode_steps``;
    ``info["episode_figures"]["success"]`` is 1 where the end was reached. NEXT_STEP autoreset.

    Args:
        num_envs: E.
        rooms: 2 to 16.
        room_length: cells of each.
        max_episode_steps: of an episode.
    Raises: ValueError for a corridor that cannot be.
    """

    metadata: dict[str, Any] = {  # noqa: RUF012 - as Gymnasium declares it
        "autoreset_mode": AutoresetMode.NEXT_STEP,
        "render_modes": ["rgb_array"],
        "render_fps": 5,
    }

    def __init__(self, num_envs: int, rooms: int, room_length: int, max_episode_steps: int) -> None:
        counts = {"num_envs": num_envs, "room_length": room_length, "max_episode_steps": max_episode_steps}
        for name, count in counts.items():
            if count < 1:
                raise ValueError(f"{name} is {count}; allowed: 1 or more")
        if not 2 <= rooms <= len(_ROOMS):
            raise ValueError(f"rooms is {rooms}; allowed: 2 to {len(_ROOMS)}")
        self.num_envs, self._room_length, self._limit = num_envs, room_length, max_episode_steps
        self._cells = rooms * room_length
        self.single_observation_space = gym.spaces.Box(0.0, 1.0, (self._cells,), np.float32)
        self.single_action_space = gym.spaces.Discrete(LISTEN + 1)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self._ahead, self._behind = _turns(self._cells)
        entered = tuple(f"You enter the {room}." for room in _ROOMS[:rooms])
        told = ("", "You bump into the wall.", f"You wake up in the {_ROOMS[0]}.", "You reach the end of the corridor.")
        self._texts = np.array([*told, *entered, *NOISES], dtype=object)
        self._first_noise = _FIRST_ROOM + rooms
        self._one_hot: NDArray[np.float32] = np.eye(self._cells, dtype=np.float32)
        self._cell: NDArray[np.int64] = np.zeros(num_envs, np.int64)
        self._steps: NDArray[np.int64] = np.zeros(num_envs, np.int64)
        self._ended: NDArray[np.bool_] = np.zeros(num_envs, np.bool_)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.float32], dict[str, Any]]:
        """All lanes back to the near end; ``seed`` decides what is heard."""
        super().reset(seed=seed, options=options)
        self._cell[:] = self._steps[:] = 0
        self._ended[:] = False
        return self._one_hot[self._cell], self._captions(np.full(self.num_envs, _START))

    def step(
        self, actions: NDArray[np.int64]
    ) -> tuple[
        NDArray[np.float32], NDArray[np.float64], NDArray[np.bool_], NDArray[np.bool_], dict[str, Any]
    ]:  # fmt: skip
        """One step of every lane; lanes that ended in the last one go back to the near end instead."""
        fresh, cell = self._ended, self._cell
        target = cell + (self._ahead[cell] == actions) - (self._behind[cell] == actions)
        room = target // self._room_length
        heard = np.where(room == cell // self._room_length, _NOTHING, _FIRST_ROOM + room)
        heard[target == cell] = _WALL
        listening = np.flatnonzero(actions == LISTEN)
        heard[listening] = self._first_noise + self.np_random.integers(len(NOISES), size=len(listening))
        target[fresh] = 0
        heard[fresh] = _START
        self._steps = np.where(fresh, 0, self._steps + 1)
        terminated = target == self._cells - 1
        heard[terminated] = _END
        truncated = ~terminated & (self._steps >= self._limit)
        self._cell, self._ended = target, terminated | truncated
        infos = self._captions(heard)
        if self._ended.any():
            infos["episode_figures"] = {"success": terminated.astype(np.float64), "_success": self._ended}
            infos["_episode_figures"] = self._ended
        return self._one_hot[target], terminated.astype(np.float64), terminated, truncated, infos

    def render(self) -> tuple[NDArray[np.uint8], ...]:  # type: ignore[override]
        """A picture of each corridor, see :func:`corridor_picture`."""
        return tuple(corridor_picture(cell, self._cells, self._room_length) for cell in self._cell.tolist())

    def _captions(self, heard: NDArray[np.int64]) -> dict[str, Any]:
        return {"caption": self._texts[heard], "_caption": heard != _NOTHING}


def _turns(cells: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The way that leads on and the way that leads back in each cell, [cells] each; −1 where there is none."""
    rng = np.random.default_rng(_TURNS_SEED)
    ahead = np.full(cells, -1, np.int64)
    behind = np.full(cells, -1, np.int64)
    for cell in range(cells - 1):
        ways = [way for way in range(4) if way != behind[cell]]
        ahead[cell] = rng.choice(ways)
        behind[cell + 1] = (ahead[cell] + 2) % 4  # back is the opposite way
    return ahead, behind


def make(num_envs: int, rooms: int = 10, room_length: int = 3, max_episode_steps: int = 120) -> ListeningCorridor:
    """For ``environment.id: onibi.actors.environments.listening_corridor:make`` with ``vectorization: native``."""
    return ListeningCorridor(num_envs, rooms, room_length, max_episode_steps)
