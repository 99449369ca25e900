"""Captions of MiniGrid and BabyAI: what a step changed (``MiniGridEpisodes``), with the mission where that is wanted.

"You drop the red key.  You pick up the blue ball."
  ├ "You drop the red key."
  └ "You pick up the blue ball."          with mission: with_events
                                          "You pick up the blue ball. (Mission: pick up the blue ball)"
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from onibi.actors.captioners.captioner import envs_of
from onibi.platform.annotation.captions import EMPTY_TEXT
from onibi.platform.config import Settings
from onibi.platform.errors import CaptionError
from onibi.platform.fragment import CaptionText, KeyText

_CACHED_TEXTS = 1 << 16
_NEVER_ASKED = "You bump into "


@dataclass(frozen=True, kw_only=True)
class MiniGridCaptionerSettings(Settings):
    """What a caption holds."""

    kind: Literal["minigrid"] = "minigrid"
    # with_events: each key names its episode's mission, so that a judge knows what was asked for; where missions vary
    # (BabyAI) nothing else makes sense, where they do not (DoorKey) it only lengthens the text.
    mission: Literal["leave_out", "with_events"] = "leave_out"
    keys_per_caption: int = 3  # K

    def __post_init__(self) -> None:
        if not 1 <= self.keys_per_caption <= 32:
            raise ValueError(f"keys_per_caption is {self.keys_per_caption}; it must be 1 to 32")


class MiniGridCaptioner:
    """Reads ``info["caption"]`` and the observation's ``mission``."""

    Settings: ClassVar[type[MiniGridCaptionerSettings]] = MiniGridCaptionerSettings

    def __init__(self, settings: MiniGridCaptionerSettings) -> None:
        self.settings = settings
        self.observation_keys: tuple[str, ...] = ("mission",)
        self.keys_per_caption = settings.keys_per_caption
        self.key_version = f"minigrid-1-mission-{settings.mission}"
        self._cache: dict[tuple[str, str], CaptionText] = {}

    def captions(self, raw: Any, infos: Mapping[str, Any]) -> list[CaptionText]:
        """[E] captions of what this step changed.

        Raises: CaptionError where the environment has no mission: it is not MiniGrid's.
        """
        missions = raw.get("mission") if isinstance(raw, Mapping) else None
        if missions is None:
            found = f"the keys {sorted(raw)}" if isinstance(raw, Mapping) else "one array without keys"
            raise CaptionError(
                f"captioner 'minigrid' reads the observation 'mission'; this environment gives {found}. Use an id of "
                "MiniGrid-… or BabyAI-…, or set captioner.kind to 'info' or 'none'"
            )
        envs = envs_of(raw)
        texts, given = infos.get("caption"), infos.get("_caption")
        if texts is None:
            return [EMPTY_TEXT] * envs
        with_events = self.settings.mission == "with_events"
        return [
            self._caption(texts[env], missions[env] if with_events else "")
            if (given is None or given[env]) and texts[env]
            else EMPTY_TEXT
            for env in range(envs)
        ]

    def _caption(self, events: str, mission: str) -> CaptionText:
        caption = self._cache.get((events, mission))
        if caption is None:
            if len(self._cache) >= _CACHED_TEXTS:
                self._cache.clear()
            caption = self._cache[events, mission] = caption_of_events(events, mission, self.keys_per_caption)
        return caption


def caption_of_events(events: str, mission: str, keys_per_caption: int) -> CaptionText:
    """The caption of a step's events, sentences joined by two blanks.

    Args:
        events: as in ``info["caption"]``.
        mission: named in text and keys; "" for none.
        keys_per_caption: K; what is asked comes first.
    """
    behind = f" (Mission: {' '.join(mission.split())})" if mission else ""
    sentences = [" ".join(sentence.split()) for sentence in events.split("  ") if sentence.strip()]
    keys: dict[str, KeyText] = {}
    for sentence in sentences:
        is_bump = sentence.startswith(_NEVER_ASKED)
        text = sentence if is_bump else sentence + behind
        keys.setdefault(text, KeyText(text, askable=not is_bump))
    ordered = sorted(keys.values(), key=lambda key: not key.askable)
    return CaptionText("  ".join(sentences) + behind, tuple(ordered[:keys_per_caption])) if keys else EMPTY_TEXT
