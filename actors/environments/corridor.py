"""A corridor of rooms with a caption each: ONI's problem without NetHack, for tests and first tries.

The agent starts at the left end and must walk to the right end. Reward 1 at the goal, 0 before: sparse. Entering the
next unvisited room gives a caption "You enter the kitchen."; walking against a wall "You bump into the wall.".
"""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

_ROOMS = ("cellar", "kitchen", "pantry", "hall", "library", "armoury", "chapel", "attic", "vault", "garden")


_CELL_PIXELS = 24
_FLOORS = np.array([(70, 76, 92), (92, 84, 70)], np.uint8)  # of rooms in turn
_AGENT = np.array((255, 214, 90), np.uint8)


def corridor_picture(cell: int, cells: int, room_length: int) -> NDArray[np.uint8]:
    """A corridor from above, uint8 [24, 24 × cells, 3]: rooms in two colours by turns, the agent bright in its cell."""
    floor = _FLOORS[(np.arange(cells) // room_length) % 2].repeat(_CELL_PIXELS, axis=0)
    picture: NDArray[np.uint8] = np.broadcast_to(floor, (_CELL_PIXELS, *floor.shape)).copy()
    margin = _CELL_PIXELS // 4
    left = cell * _CELL_PIXELS
    picture[margin:-margin, left + margin : left + _CELL_PIXELS - margin] = _AGENT
    return picture


class CaptionCorridor(gym.Env[NDArray[np.float32], np.int64]):
    """``rooms`` rooms of ``room_length`` cells in a row.

    Actions: 0 left, 1 right, 2 and 3 wait. Observation: float32 one-hot of the cell. ``info["caption"]`` tells what
    happened; the text is empty when nothing did. Terminates at the last cell; never truncates by itself.
    """

    metadata: dict[str, Any] = {"render_modes": ["rgb_array"], "render_fps": 5}  # noqa: RUF012 - as Gymnasium's
    render_mode = "rgb_array"

    def __init__(self, rooms: int = 5, room_length: int = 4) -> None:
        if not 1 <= rooms <= len(_ROOMS):
            raise ValueError(f"rooms is {rooms}; allowed: 1 to {len(_ROOMS)}")
        self._room_length = room_length
        self._cells = rooms * room_length
        self._cell = self._farthest_room = 0
        self.observation_space = gym.spaces.Box(0.0, 1.0, (self._cells,), np.float32)
        self.action_space = gym.spaces.Discrete(4)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.float32], dict[str, Any]]:
        """Back to the left end."""
        super().reset(seed=seed, options=options)
        self._cell = self._farthest_room = 0
        return self._observe(), {"caption": "You wake up in the cellar."}

    def step(self, action: np.int64) -> tuple[NDArray[np.float32], float, bool, bool, dict[str, Any]]:
        """Walk one cell."""
        target = self._cell + {0: -1, 1: 1}.get(int(action), 0)
        caption = "" if 0 <= target < self._cells else "You bump into the wall."
        self._cell = min(max(target, 0), self._cells - 1)
        room = self._cell // self._room_length
        if room > self._farthest_room:
            self._farthest_room = room
            caption = f"You enter the {_ROOMS[room]}."
        at_goal = self._cell == self._cells - 1
        if at_goal:
            caption = "You reach the end of the corridor."
        return self._observe(), float(at_goal), at_goal, False, {"caption": caption}

    def render(self) -> NDArray[np.uint8]:  # type: ignore[override]
        """See :func:`corridor_picture`."""
        return corridor_picture(self._cell, self._cells, self._room_length)

    def _observe(self) -> NDArray[np.float32]:
        observation = np.zeros(self._cells, np.float32)
        observation[self._cell] = 1.0
        return observation


def make(rooms: int = 5, room_length: int = 4) -> CaptionCorridor:
    """The corridor, for ``environment.id: onibi.actors.environments.corridor:make``."""
    return CaptionCorridor(rooms=rooms, room_length=room_length)
