"""MiniGrid and BabyAI seen from the agent: what stands in each cell as one-hot, the direction, the mission's words.

The environment's own image holds kinds and colors as numbers, which mean nothing as brightness.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

from onibi.platform.config import Settings
from onibi.platform.errors import SpecError
from onibi.platform.replay.text_table import TextTable
from onibi.platform.spec import ArraySpec

CELL_CLASSES = (
    "unseen", "empty", "wall", "floor", "key", "ball", "box", "goal", "lava", "door open", "door closed", "door locked",
    "agent right", "agent down", "agent left", "agent up",
)  # fmt: skip
"""Names of the 16 classes, by index; the agent shows where the whole grid is seen."""

CELL_COLORS = ("red", "green", "blue", "purple", "yellow", "grey")
"""Behind the classes; set for floor, keys, balls, boxes, goals and doors."""

_OBJECTS = ("unseen", "empty", "wall", "floor", "door", "key", "ball", "box", "goal", "lava", "agent")
_STATES = 4
_COLORED = frozenset(("floor", "door", "key", "ball", "box", "goal"))
_DOOR_STATES = ("door open", "door closed", "door locked")
_CACHED_MISSIONS = 1 << 14


@dataclass(frozen=True, kw_only=True)
class MiniGridViewSettings(Settings):
    """Which columns are made."""

    kind: Literal["minigrid"] = "minigrid"
    colors: bool = True  # false: 16 numbers a cell instead of 22, for tasks with one key and one door
    mission_bits: int = 64  # width of the hashed bag of the mission's words; 0: no such column

    def __post_init__(self) -> None:
        if not 0 <= self.mission_bits <= 4096:
            raise ValueError(f"mission_bits is {self.mission_bits}; allowed: 0 to 4096")


class MiniGridView:
    """Columns of MiniGrid observations (``MiniGridEpisodes``).

    * ``observation.cells`` uint8 [V · V · C], 0 or 1: for each cell its class (:data:`CELL_CLASSES`) and color.
    * ``observation.direction`` uint8, 0 to 3.
    * ``observation.mission`` uint8 [mission_bits], 0 or 1: a hashed bag of words; their order is lost.

    Raises: SpecError where the observation is not MiniGrid's.
    """

    Settings: ClassVar[type[MiniGridViewSettings]] = MiniGridViewSettings

    def __init__(self, settings: MiniGridViewSettings, space: Any) -> None:
        leaves = getattr(space, "spaces", {})
        missing = sorted({"image", "direction", "mission"} - set(leaves))
        shape: tuple[int, ...] = getattr(leaves.get("image"), "shape", ())
        if missing or len(shape) != 3 or shape[2] != 3:
            raise SpecError(
                f"view.kind=minigrid reads image [V, V, 3], direction and mission; the observation space is {space}. "
                "Use a MiniGrid or BabyAI environment without observation wrappers, or view.kind=leaves."
            )
        self._settings = settings
        self._one_hot = _one_hot_table(colors=settings.colors)
        width = shape[0] * shape[1] * self._one_hot.shape[1]
        self.raw_keys: tuple[str, ...] = ("image", "direction")
        specs = [
            ArraySpec(name="observation.cells", dtype="uint8", shape=(width,), low=0, high=1),
            ArraySpec(name="observation.direction", dtype="uint8", shape=(), low=0, high=3),
        ]
        if settings.mission_bits:
            self.raw_keys = (*self.raw_keys, "mission")
            bag = (settings.mission_bits,)
            specs.append(ArraySpec(name="observation.mission", dtype="uint8", shape=bag, low=0, high=1))
        self.specs = tuple(specs)
        self.texts: TextTable | None = None
        self._bags: dict[str, NDArray[np.uint8]] = {}

    def __call__(self, raw: Any) -> dict[str, NDArray[Any]]:
        """Columns [E, ...] of raw observations [E, ...]."""
        image = raw["image"].astype(np.int64)
        place = (image[..., 0] * len(CELL_COLORS) + image[..., 1]) * _STATES + image[..., 2]
        columns: dict[str, NDArray[Any]] = {
            "observation.cells": self._one_hot.take(place.reshape(len(place), -1), axis=0).reshape(len(place), -1),
            "observation.direction": np.asarray(raw["direction"]).astype(np.uint8),
        }
        if self._settings.mission_bits:
            columns["observation.mission"] = self._missions(raw["mission"])
        return columns

    def _missions(self, missions: Iterable[str]) -> NDArray[np.uint8]:
        bags = []
        for mission in missions:
            bag = self._bags.get(mission)
            if bag is None:
                if len(self._bags) >= _CACHED_MISSIONS:
                    self._bags.clear()
                bag = self._bags[mission] = mission_bag(mission, self._settings.mission_bits)
            bags.append(bag)
        return np.stack(bags)


def mission_bag(mission: str, bits: int) -> NDArray[np.uint8]:
    """[bits] uint8, 1 at the hash of each word: the same in every process and run."""
    bag: NDArray[np.uint8] = np.zeros(bits, np.uint8)
    for word in mission.lower().replace(",", " ").split():
        bag[crc32(word.encode()) % bits] = 1
    return bag


def _one_hot_table(*, colors: bool) -> NDArray[np.uint8]:
    """[objects · colors · states, classes (+ colors)] uint8: the code of every cell that MiniGrid can show."""
    width = len(CELL_CLASSES) + (len(CELL_COLORS) if colors else 0)
    table: NDArray[np.uint8] = np.zeros((len(_OBJECTS), len(CELL_COLORS), _STATES, width), np.uint8)
    for number, name in enumerate(_OBJECTS):
        for state in range(_STATES):
            if name == "door":
                shown = CELL_CLASSES.index(_DOOR_STATES[min(state, 2)])
            elif name == "agent":
                shown = CELL_CLASSES.index("agent right") + state
            else:
                shown = CELL_CLASSES.index(name)
            table[number, :, state, shown] = 1
        if colors and name in _COLORED:
            for color in range(len(CELL_COLORS)):
                table[number, color, :, len(CELL_CLASSES) + color] = 1
    return table.reshape(-1, width)
