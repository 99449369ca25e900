"""NetHack seen from the agent: a crop of character classes, where the nearest things are, figures, words.

A raw NLE observation is mostly blank map. These columns hold what a small network needs at a tenth of the bytes, and
are made for all lanes of an actor in a few NumPy calls.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

from onibi.platform.config import Settings
from onibi.platform.errors import SpecError
from onibi.platform.replay.text_table import TextTable
from onibi.platform.spec import ArraySpec

CHARACTER_CLASSES = (
    "blank", "floor", "wall", "corridor", "closed door", "open door", "stairs down", "stairs up",
    "tool", "item", "gold", "monster", "human", "boulder", "water, fountain, altar", "trap",
)  # fmt: skip
"""Names of the 16 classes, by index."""

_MAP_ROWS, _MAP_COLUMNS = 21, 79
_BROWN = 3  # an open door is drawn as a brown wall character
_LOCATED_FROM = 4  # blanks, floor, walls and corridors are everywhere: only things are located
_LOCATOR_REACH = 40
_WORD_BUCKETS = 255
_MESSAGE_CACHE = 100_000
_NO_GLYPH = 5976
"""NLE's number of glyphs, which marks an empty slot of the inventory."""


@dataclass(frozen=True, kw_only=True)
class NetHackViewSettings(Settings):
    """Which columns are made; the network's encoder reads those that are there."""

    kind: Literal["nethack"] = "nethack"
    crop_size: int = 9  # cells, odd
    locator: bool = True
    inventory: bool = True
    message_words: int = 16  # 0: no message column
    whole_map: bool = False  # raw characters of the whole map, for a convolution
    map_colors: bool = False  # and their colors, which tell one kind of monster from another
    inventory_items: int = 0  # slots of the inventory of which the kind of item is told; 0: no such column

    def __post_init__(self) -> None:
        if self.crop_size % 2 == 0 or not 3 <= self.crop_size <= 41:
            raise ValueError(f"crop_size is {self.crop_size}; allowed: odd numbers from 3 to 41")
        if not 0 <= self.message_words <= 64:
            raise ValueError(f"message_words is {self.message_words}; allowed: 0 to 64")
        if not 0 <= self.inventory_items <= 55:
            raise ValueError(f"inventory_items is {self.inventory_items}; allowed: 0 to 55, the slots that NLE has")
        if self.map_colors and not self.whole_map:
            raise ValueError("map_colors are those of the whole map: set whole_map, too")


class NetHackView:
    """Columns of NLE or MiniHack observations.

    * ``observation.crop`` uint8 [S, S]: class of each character around the agent (:data:`CHARACTER_CLASSES`).
    * ``observation.locator`` int8 [16, 3]: per class (present, dx, dy) of the nearest such cell, the agent's own
      cell excluded; 0 for blanks, floor, walls and corridors.
    * ``observation.blstats`` float32 [12]: place, hit points, power, armour, level, depth, hunger, gold, load.
    * ``observation.inventory`` float32 [18]: log2(1 + stacks) per object class.
    * ``observation.message`` uint8 [M]: hashed words of the message, 0 padded.
    * ``observation.inventory_items`` int16 [N]: glyph + 1 of each slot's item, 0 where it is empty.
    * ``observation.map`` uint8 [21, 79]: raw characters.
    * ``observation.map_colors`` uint8 [21, 79]: their colors, 0 to 15.

    Raises:
        SpecError: the environment's observation lacks a key that is read.
    """

    Settings: ClassVar[type[NetHackViewSettings]] = NetHackViewSettings

    def __init__(self, settings: NetHackViewSettings, space: Any) -> None:
        self._settings = settings
        keys = ["chars", "colors", "blstats"]
        if settings.inventory:
            keys.append("inv_oclasses")
        if settings.message_words:
            keys.append("message")
        if settings.inventory_items:
            keys.append("inv_glyphs")
        self.raw_keys = tuple(keys)
        known = set(space.keys()) if hasattr(space, "keys") else set()
        missing = sorted(set(keys) - known)
        if missing:
            raise SpecError(
                f"view.kind=nethack reads {missing}, which the observation space does not have "
                f"(it has {sorted(known) or type(space).__name__}). Use a NetHack or MiniHack environment, or "
                "view.kind=leaves."
            )
        self.specs = tuple(self._specs())
        self.texts: TextTable | None = None
        size = settings.crop_size
        self._margin = size // 2
        self._padded_columns = _MAP_COLUMNS + 2 * self._margin
        rows, columns = np.mgrid[0:size, 0:size]
        self._crop_offsets = (rows * self._padded_columns + columns).astype(np.int64)
        self._padded: NDArray[np.uint8] = np.zeros((0, 0, 0), np.uint8)
        self._words: dict[bytes, NDArray[np.uint8]] = {}

    def __call__(self, raw: Any) -> dict[str, NDArray[Any]]:
        """Columns [E, ...] of raw observations [E, ...]."""
        blstats = raw["blstats"]
        x = np.clip(blstats[:, 0], 0, _MAP_COLUMNS - 1)
        y = np.clip(blstats[:, 1], 0, _MAP_ROWS - 1)
        classes = character_classes(raw["chars"], raw["colors"])
        columns: dict[str, NDArray[Any]] = {"observation.crop": self._crop(classes, x, y)}
        if self._settings.locator:
            columns["observation.locator"] = nearest_of_each_class(classes, x, y)
        columns["observation.blstats"] = scaled_blstats(blstats)
        if self._settings.inventory:
            columns["observation.inventory"] = _inventory(raw["inv_oclasses"])
        if self._settings.message_words:
            columns["observation.message"] = np.stack([self._message_words(row.tobytes()) for row in raw["message"]])
        if self._settings.inventory_items:
            glyphs = raw["inv_glyphs"][:, : self._settings.inventory_items]
            columns["observation.inventory_items"] = np.where(glyphs >= _NO_GLYPH, 0, glyphs + 1).astype(np.int16)
        if self._settings.whole_map:
            columns["observation.map"] = raw["chars"]
        if self._settings.map_colors:
            columns["observation.map_colors"] = raw["colors"]
        return columns

    def _specs(self) -> list[ArraySpec]:
        settings = self._settings
        size = settings.crop_size
        specs = [ArraySpec(name="observation.crop", dtype="uint8", shape=(size, size), unit="class", low=0, high=15)]
        if settings.locator:
            specs.append(ArraySpec(name="observation.locator", dtype="int8", shape=(16, 3), unit="cells"))
        specs.append(ArraySpec(name="observation.blstats", dtype="float32", shape=(12,)))
        if settings.inventory:
            specs.append(ArraySpec(name="observation.inventory", dtype="float32", shape=(18,), unit="log2(1 + stacks)"))
        if settings.message_words:
            specs.append(ArraySpec(name="observation.message", dtype="uint8", shape=(settings.message_words,)))
        if settings.inventory_items:
            shape = (settings.inventory_items,)
            specs.append(
                ArraySpec(name="observation.inventory_items", dtype="int16", shape=shape, low=0, high=_NO_GLYPH)
            )
        if settings.whole_map:
            specs.append(ArraySpec(name="observation.map", dtype="uint8", shape=(_MAP_ROWS, _MAP_COLUMNS)))
        if settings.map_colors:
            specs.append(ArraySpec(name="observation.map_colors", dtype="uint8", shape=(_MAP_ROWS, _MAP_COLUMNS)))
        return specs

    def _crop(self, classes: NDArray[np.uint8], x: NDArray[Any], y: NDArray[Any]) -> NDArray[np.uint8]:
        envs, margin = len(classes), self._margin
        if len(self._padded) != envs:
            self._padded = np.zeros((envs, _MAP_ROWS + 2 * margin, self._padded_columns), np.uint8)
        self._padded[:, margin : margin + _MAP_ROWS, margin : margin + _MAP_COLUMNS] = classes
        lane_size = self._padded[0].size
        corner = np.arange(envs) * lane_size + y * self._padded_columns + x
        taken: NDArray[np.uint8] = self._padded.reshape(-1).take(corner[:, None, None] + self._crop_offsets)
        return taken

    def _message_words(self, message: bytes) -> NDArray[np.uint8]:
        words = self._words.get(message)
        if words is None:
            if len(self._words) >= _MESSAGE_CACHE:
                self._words.clear()
            words = np.zeros(self._settings.message_words, np.uint8)
            for index, word in enumerate(message.rstrip(b"\0 ").lower().split()[: len(words)]):
                words[index] = 1 + crc32(word) % _WORD_BUCKETS
            self._words[message] = words
        return words


def character_classes(chars: NDArray[np.uint8], colors: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Class of every character (:data:`CHARACTER_CLASSES`), brown wall characters being open doors.

    Args:
        chars: [E, 21, 79] uint8 character codes.
        colors: [E, 21, 79] uint8 NLE colors.
    Returns: [E, 21, 79] uint8, 0 to 15.
    """
    classes = _CLASS_OF_CHARACTER.take(chars)
    classes[(classes == 2) & (colors == _BROWN)] = 5
    return classes


def nearest_of_each_class(classes: NDArray[np.uint8], x: NDArray[Any], y: NDArray[Any]) -> NDArray[np.int8]:
    """For each lane and class: present (0/1), dx, dy of the nearest cell by king's moves, clipped to ±40.

    Args:
        classes: [E, 21, 79] uint8.
        x: [E] the agent's column. y: [E] the agent's row.
    Returns: [E, 16, 3] int8.
    """
    located = np.zeros((len(classes), 16, 3), np.int8)
    lane, row, column = np.nonzero(classes >= _LOCATED_FROM)
    dx, dy = column - x[lane], row - y[lane]
    distance = np.maximum(np.abs(dx), np.abs(dy))
    # Farthest first: where one (lane, class) is assigned repeatedly, the last assignment, the nearest cell, stays.
    order = np.argsort(-distance, kind="stable")
    order = order[distance[order] > 0]
    lane, row, column = lane[order], row[order], column[order]
    target = (lane, classes[lane, row, column])
    located[(*target, 0)] = 1
    located[(*target, 1)] = np.clip(dx[order], -_LOCATOR_REACH, _LOCATOR_REACH)
    located[(*target, 2)] = np.clip(dy[order], -_LOCATOR_REACH, _LOCATOR_REACH)
    return located


def scaled_blstats(blstats: NDArray[Any]) -> NDArray[np.float32]:
    """Twelve of NLE's 27 bottom-line figures, scaled to about 1.

    Args:
        blstats: [E, 26 or 27] integers in NLE's order.
    Returns: [E, 12] float32: x/79, y/21, hp/max hp, log2(1 + max hp)/8, power/max power, armour class/10,
        experience level/10, dungeon depth/10, hunger/6, log2(1 + gold)/12, load/5, level number/10.
    """
    figures = blstats.astype(np.float32)
    hp, max_hp, depth, gold, power, max_power, armour, level = (
        figures[:, index] for index in (10, 11, 12, 13, 14, 15, 16, 18)
    )
    hunger, load, level_number = figures[:, 21], figures[:, 22], figures[:, 24]
    return np.stack(
        [
            figures[:, 0] / _MAP_COLUMNS,
            figures[:, 1] / _MAP_ROWS,
            hp / np.maximum(max_hp, 1),
            np.log2(1 + np.maximum(max_hp, 0)) / 8,
            power / np.maximum(max_power, 1),
            armour / 10,
            level / 10,
            depth / 10,
            hunger / 6,
            np.log2(1 + np.maximum(gold, 0)) / 12,
            load / 5,
            level_number / 10,
        ],
        axis=1,
    )


def _inventory(object_classes: NDArray[np.uint8]) -> NDArray[np.float32]:
    envs = len(object_classes)
    flat = np.minimum(object_classes, 18).astype(np.int64) + np.arange(envs)[:, None] * 19
    stacks = np.bincount(flat.reshape(-1), minlength=19 * envs).reshape(envs, 19)[:, :18]
    scaled: NDArray[np.float32] = np.log2(1.0 + stacks).astype(np.float32)
    return scaled


def _class_table() -> NDArray[np.uint8]:
    table = np.full(256, 9, np.uint8)
    members = {0: " \0", 1: ".", 2: "|-", 3: "#", 4: "+", 6: ">", 7: "<", 8: "(", 10: "$", 12: "@", 13: "0`",
               14: "{}_\\", 15: "^\""}  # fmt: skip
    for letter in "abcdefghijklmnopqrstuvwxyz":
        table[[ord(letter), ord(letter.upper())]] = 11
    for monster in "&;':~]":
        table[ord(monster)] = 11
    for index, characters in members.items():
        for character in characters:
            table[ord(character)] = index
    return table


_CLASS_OF_CHARACTER = _class_table()
