"""Captions of NetHack and MiniHack with what changed on the map and in the inventory, for deeds that leave no message.

    message   "Never mind."                       the macro action APPLY of MiniHack's KeyRoom unlocked a door
    caption   "Never mind.  A door opens."

A kind of its own beside ``nethack``, whose captions it holds too: it reads more of the observation, remembers each
lane's last one, and gives most deeds a second key (message and change), which a run that is content with messages
should not pay for. Told are doors that open, close or break; boulders that move; water and lava that turn into ground;
stairs down that come into view; levels; and items gained, lost or changed.

The maps of all lanes are compared at once and only cells that differ are looked at; packs are compared as bytes.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from onibi.actors.captioners.nethack import (
    ARTIFACTS,
    KEY_VERSION,
    NetHackCaptioner,
    NetHackCaptionerSettings,
    key_text,
    without_given_name,
)
from onibi.platform.annotation.captions import EMPTY_TEXT
from onibi.platform.config import Settings
from onibi.platform.errors import CaptionError
from onibi.platform.fragment import CaptionText, KeyText

_CACHED_CAPTIONS = 1 << 16
_COLUMNS = 79
_CELLS = 21 * _COLUMNS
_SLOTS = (55, 80)  # of the inventory; characters of an item
_X, _Y, _HIT_POINTS_MAX, _DEPTH = 0, 1, 11, 12  # in blstats
_PLACE = [23, 24]  # dungeon and level in it

# What a cell shows; NetHack 3.6's glyphs. Everything else (creatures, items, the unseen) leaves what is remembered.
_OTHER, _CLOSED, _OPEN, _GROUND, _STAIRS, _WATER, _LAVA, _BOULDER, _ARRIVAL = range(9)
_CMAP, _MAX_GLYPH, _BOULDER_GLYPH = 2359, 5976, 1906 + 447
_CMAP_CLASSES = {
    _CLOSED: (15, 16, 37, 38),  # doors, drawbridges
    _OPEN: (13, 14, 35, 36),
    _GROUND: (12, 19, 20, 21, 22, 33),  # no door or a broken one, room, dark room, corridors, ice
    _STAIRS: (24, 26),  # stairs and ladder down
    _WATER: (32, 41),
    _LAVA: (34,),
}
_BOULDER_MOVES = "A boulder moves."
_MAP_EVENTS = {  # (remembered, shown): what happened
    (_CLOSED, _OPEN): "A door opens.",
    (_OPEN, _CLOSED): "A door closes.",
    (_CLOSED, _GROUND): "A door breaks.",
    (_OPEN, _GROUND): "A door breaks.",
    (_OTHER, _STAIRS): "Stairs down come into view.",
    (_GROUND, _STAIRS): "Stairs down come into view.",
    (_GROUND, _BOULDER): _BOULDER_MOVES,
    (_WATER, _GROUND): "Water turns into ground.",
    (_LAVA, _GROUND): "Lava turns into ground.",
}
_SENTENCES = ("", *dict.fromkeys(_MAP_EVENTS.values()))
_STATE = re.compile(r" \((?:[^()]*)\)$")
_COUNT = re.compile(r"^(?:(\d+)|an?|the) ")


@dataclass(frozen=True, kw_only=True)
class NetHackChangesCaptionerSettings(Settings):
    """What a caption tells of."""

    kind: Literal["nethack_changes"] = "nethack_changes"
    messages: bool = True  # as the captioner nethack tells them; false: changes alone
    map_changes: bool = True
    inventory_changes: bool = True
    keys_per_caption: int = 6  # K; a message's sentences first, then the changes
    kept_names: tuple[str, ...] = ()  # as in the captioner nethack

    def __post_init__(self) -> None:
        if not 1 <= self.keys_per_caption <= 32:
            raise ValueError(f"keys_per_caption is {self.keys_per_caption}; it must be 1 to 32")
        if not (self.map_changes or self.inventory_changes):
            raise ValueError("map_changes and inventory_changes are both false; set captioner.kind to nethack instead")


class NetHackChangesCaptioner:
    """Reads ``glyphs``, ``blstats``, ``inv_letters``, ``inv_strs`` and ``message``.

    ``begin`` must be called where episodes begin: what differs between two games is no change.
    """

    Settings: ClassVar[type[NetHackChangesCaptionerSettings]] = NetHackChangesCaptionerSettings

    def __init__(self, settings: NetHackChangesCaptionerSettings) -> None:
        self.settings = settings
        self.keys_per_caption = settings.keys_per_caption
        self.key_version = (
            f"changes-1-{KEY_VERSION}-{settings.messages:d}{settings.map_changes:d}{settings.inventory_changes:d}"
        )
        self._messages = NetHackCaptioner(
            NetHackCaptionerSettings(keys_per_caption=settings.keys_per_caption, kept_names=settings.kept_names)
        )
        keys = ["blstats"]
        if settings.map_changes:
            keys.append("glyphs")
        if settings.inventory_changes:
            keys += ["inv_letters", "inv_strs"]
        if settings.messages:
            keys.append("message")
        self.observation_keys = tuple(keys)
        self._kept_names = ARTIFACTS | frozenset(settings.kept_names)
        self._make_lanes(0)
        self._cache: dict[tuple[CaptionText, tuple[str, ...]], CaptionText] = {}

    def begin(self, lanes: NDArray[np.bool_]) -> None:
        """In these lanes [E] the next observation is an episode's first."""
        if len(lanes) == len(self._known):
            self._known &= ~lanes

    def captions(self, raw: Any, infos: Mapping[str, Any]) -> list[CaptionText]:
        """[E] captions: messages, then changes since the last call.

        Raises: CaptionError where the environment does not show what is read.
        """
        missing = sorted(set(self.observation_keys) - set(raw if isinstance(raw, Mapping) else ()))
        if missing:
            raise CaptionError(
                f"captioner 'nethack_changes' reads {missing}, which this environment does not give. Add them to its "
                "observation_keys, or set captioner.kind to 'info' or 'none'"
            )
        envs = len(raw["blstats"])
        found = self._messages.captions(raw, infos) if self.settings.messages else [EMPTY_TEXT] * envs
        if len(self._known) != envs:
            self._make_lanes(envs)
        for lane, told in self._changes(raw).items():
            found[lane] = self._with_changes(found[lane], tuple(told))
        return found

    def _make_lanes(self, envs: int) -> None:
        self._known: NDArray[np.bool_] = np.zeros(envs, np.bool_)  # lanes that are compared with what they showed
        self._places: NDArray[np.int64] = np.zeros((envs, 2), np.int64)  # dungeon, level
        self._deepest: NDArray[np.int64] = np.zeros(envs, np.int64)
        self._glyphs: NDArray[np.int16] = np.zeros((envs, _CELLS), np.int16)
        self._remembered: NDArray[np.uint8] = np.zeros((envs, _CELLS), np.uint8)
        self._items: list[bytes] = [b""] * envs
        self._inventories: list[dict[str, str]] = [{} for _ in range(envs)]

    def _changes(self, raw: Any) -> dict[int, list[str]]:
        """What each lane that changed has to tell."""
        blstats = raw["blstats"]
        alive = blstats[:, _HIT_POINTS_MAX] != 0  # a game that has ended shows nothing
        places = blstats[:, _PLACE]
        stayed = alive & self._known & (places == self._places).all(axis=1)
        told: dict[int, list[str]] = {}
        for lane in np.flatnonzero(alive & ~stayed).tolist():
            depth = int(blstats[lane, _DEPTH])
            if self._known[lane]:
                told[lane] = [self._arrival(lane, depth, int(places[lane, 0]))]
                self._deepest[lane] = max(depth, int(self._deepest[lane]))
            else:
                self._deepest[lane] = depth
            self._places[lane] = places[lane]
        if self.settings.map_changes:
            self._see_maps(raw["glyphs"].reshape(len(alive), _CELLS), blstats, alive, stayed, told)
        if self.settings.inventory_changes:
            self._look_into_packs(raw, alive, told)
        self._known |= alive
        return {lane: sentences for lane, sentences in told.items() if sentences}

    def _arrival(self, lane: int, depth: int, dungeon: int) -> str:
        if depth > self._deepest[lane]:
            return "You come to a level deeper than any before."
        if dungeon != self._places[lane, 0]:
            return "You come to a level of another branch."
        return "You come to a level that is not deeper."

    def _see_maps(
        self,
        glyphs: NDArray[np.int16],
        blstats: NDArray[Any],
        alive: NDArray[np.bool_],
        stayed: NDArray[np.bool_],
        told: dict[int, list[str]],
    ) -> None:
        """Events of the cells that differ from the last call's, in lanes that stayed on their level."""
        agents = blstats[:, _Y] * _COLUMNS + blstats[:, _X]
        for lane in np.flatnonzero(alive & ~stayed).tolist():
            self._remembered[lane] = _CLASS_OF_GLYPH.take(glyphs[lane])
            # Stairs that the agent stands on when it comes are no find when it steps off.
            self._remembered[lane, agents[lane]] = _ARRIVAL
        changed = glyphs != self._glyphs
        changed &= stayed[:, None]
        cells = np.flatnonzero(changed)
        np.copyto(self._glyphs, glyphs)
        if not len(cells):
            return
        remembered = self._remembered.reshape(-1)
        before, shown = remembered[cells], _CLASS_OF_GLYPH[glyphs.reshape(-1)[cells]]
        events = _EVENT_OF_CLASSES[before * np.uint8(_ARRIVAL + 1) + shown]
        for at in np.flatnonzero(events).tolist():
            sentences = told.setdefault(int(cells[at]) // _CELLS, [])
            if _SENTENCES[events[at]] not in sentences:
                sentences.append(_SENTENCES[events[at]])
        news = (shown != _OTHER) & (before != _ARRIVAL)
        remembered[cells[news]] = shown[news]
        standing = self._remembered[np.arange(len(agents)), agents]
        for lane in np.flatnonzero(stayed & (standing == _BOULDER)).tolist():  # it stands where a boulder was
            sentences = told.setdefault(lane, [])
            if _BOULDER_MOVES not in sentences:
                sentences.append(_BOULDER_MOVES)
            self._remembered[lane, agents[lane]] = _GROUND

    def _look_into_packs(self, raw: Any, alive: NDArray[np.bool_], told: dict[int, list[str]]) -> None:
        width = _SLOTS[0] * _SLOTS[1]
        everything = raw["inv_strs"].tobytes()
        for lane in np.flatnonzero(alive).tolist():
            items = everything[lane * width : (lane + 1) * width]
            is_known = bool(self._known[lane])
            if is_known and items == self._items[lane]:
                continue
            self._items[lane] = items
            before, after = self._inventories[lane], _inventory(raw["inv_letters"][lane], items)
            self._inventories[lane] = after
            if is_known:
                told.setdefault(lane, []).extend(self._item_changes(before, after))

    def _item_changes(self, before: dict[str, str], after: dict[str, str]) -> list[str]:
        told = []
        for letter in sorted(before.keys() | after.keys()):
            old, new = before.get(letter), after.get(letter)
            if old == new:
                continue
            if old is None or new is None:
                text = without_given_name(_STATE.sub("", str(new or old)), self._kept_names).rstrip(".")
                told.append(f"You {'gain' if old is None else 'lose'} {text}.")
                continue
            told += _item_change(without_given_name(old, self._kept_names), without_given_name(new, self._kept_names))
        return told

    def _with_changes(self, message: CaptionText, told: tuple[str, ...]) -> CaptionText:
        caption = self._cache.get((message, told))
        if caption is None:
            keys = {key.text: key for key in message.keys}
            for sentence in told:
                text = key_text(sentence)
                keys.setdefault(text, KeyText(text))
            ordered = sorted(keys.values(), key=lambda key: not key.askable)
            text = "  ".join((message.text, *told) if message.text else told)
            if len(self._cache) >= _CACHED_CAPTIONS:
                self._cache.clear()
            caption = self._cache[message, told] = CaptionText(text, tuple(ordered[: self.keys_per_caption]))
        return caption


def _inventory(letters: NDArray[np.uint8], items: bytes) -> dict[str, str]:
    """Item by inventory letter."""
    width = _SLOTS[1]
    held = {}
    for slot, letter in enumerate(letters.tolist()):
        if not letter:
            break
        held[chr(letter)] = items[slot * width : (slot + 1) * width].partition(b"\0")[0].decode("latin-1")
    return held


def _item_change(old: str, new: str) -> list[str]:
    """What became of an item that kept its letter; texts without given names."""
    if old == new:
        return []
    (old_count, old_name), (new_count, new_name) = _counted(old), _counted(new)
    if old_count != new_count and _same_name(old_name, new_name):
        fewer = new_count < old_count
        text = old if fewer else new
        bare = _STATE.sub("", _COUNT.sub("", text, count=1)).rstrip(".")
        return [
            f"You {'lose' if fewer else 'gain'} {abs(new_count - old_count)} of {max(old_count, new_count)} {bare}."
        ]
    return [f"You now have {new.rstrip('.')}."]


def _counted(item: str) -> tuple[int, str]:
    found = _COUNT.match(item)
    number = int(found[1]) if found is not None and found[1] else 1
    return number, _STATE.sub("", item[found.end() :] if found is not None else item)


def _same_name(one: str, other: str) -> bool:
    """Whether two names are one in singular and plural, as far as a word's last letters tell."""
    return one == other or [word.rstrip("s") for word in one.split()] == [word.rstrip("s") for word in other.split()]


def _class_of_glyph() -> NDArray[np.uint8]:
    classes: NDArray[np.uint8] = np.zeros(_MAX_GLYPH + 1, np.uint8)
    for number, glyphs in _CMAP_CLASSES.items():
        classes[[_CMAP + glyph for glyph in glyphs]] = number
    classes[_BOULDER_GLYPH] = _BOULDER
    return classes


def _event_of_classes() -> NDArray[np.uint8]:
    events: NDArray[np.uint8] = np.zeros((_ARRIVAL + 1) ** 2, np.uint8)
    for (before, now), sentence in _MAP_EVENTS.items():
        events[before * (_ARRIVAL + 1) + now] = _SENTENCES.index(sentence)
    return events


_CLASS_OF_GLYPH, _EVENT_OF_CLASSES = _class_of_glyph(), _event_of_classes()
