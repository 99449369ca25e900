"""Captions that an environment gives itself, in ``info["caption"]``."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from onibi.actors.captioners.captioner import envs_of
from onibi.platform.captions import EMPTY_TEXT
from onibi.platform.config import Settings
from onibi.platform.errors import CaptionError
from onibi.platform.fragment import CaptionText, KeyText

_CACHED_TEXTS = 1 << 16
_NUMBER = re.compile(r"\d+")


@dataclass(frozen=True, kw_only=True)
class InfoCaptionerSettings(Settings):
    """One key per caption: its text, with numbers normalised unless they tell things apart."""

    kind: Literal["info"] = "info"
    info_key: str = "caption"
    numbers: Literal["normalise", "keep"] = "normalise"  # a counter in the text would make every caption new
    max_characters: int = 500  # longer ones are cut
    give_up_calls: int | None = 1_000  # vector steps without a single caption after which it is an error; null: never

    def __post_init__(self) -> None:
        if self.max_characters < 1 or (self.give_up_calls is not None and self.give_up_calls < 1):
            raise ValueError(
                f"max_characters is {self.max_characters} and give_up_calls {self.give_up_calls}; both must "
                "be 1 or more (give_up_calls may be null)"
            )


class InfoCaptioner:
    """Reads one text per environment from the vector environment's infos."""

    Settings: ClassVar[type[InfoCaptionerSettings]] = InfoCaptionerSettings

    def __init__(self, settings: InfoCaptionerSettings) -> None:
        self.settings = settings
        self.observation_keys: tuple[str, ...] = ()
        self.keys_per_caption = 1
        self.key_version = f"info-1-numbers-{settings.numbers}"
        self._mask_key = f"_{settings.info_key}"
        self._cache: dict[str, CaptionText] = {}
        self._silent_calls = 0

    def captions(self, raw: Any, infos: Mapping[str, Any]) -> list[CaptionText]:
        """[E] captions; environments without an entry said nothing.

        Raises: CaptionError where an entry is not text, or none came in the first ``give_up_calls`` calls.
        """
        envs = envs_of(raw)
        texts = infos.get(self.settings.info_key)
        if texts is None:
            self._be_patient(infos)
            return [EMPTY_TEXT] * envs
        given = infos.get(self._mask_key)
        found = []
        for env in range(envs):
            text = texts[env] if given is None or given[env] else None
            if text is None or text == "":
                found.append(EMPTY_TEXT)
                continue
            caption = self._cache.get(text) if isinstance(text, str) else None
            found.append(self._read(text, env) if caption is None else caption)
        self._silent_calls = -1  # an environment that captions may be silent for as long as it likes
        return found

    def _read(self, text: Any, env: int) -> CaptionText:
        if not isinstance(text, str):
            raise CaptionError(
                f"environment {env}: info[{self.settings.info_key!r}] is {text!r} ({type(text).__name__}); it "
                "must be text. Convert it in the environment, or set captioner.kind=none"
            )
        # A lone surrogate has no UTF-8 form: it could be neither hashed nor stored.
        words = " ".join(text[: self.settings.max_characters].encode(errors="replace").decode().split())
        key = _NUMBER.sub("#", words) if self.settings.numbers == "normalise" else words
        caption = CaptionText(words, (KeyText(key),)) if words else EMPTY_TEXT
        if len(self._cache) >= _CACHED_TEXTS:
            self._cache.clear()
        self._cache[text] = caption
        return caption

    def _be_patient(self, infos: Mapping[str, Any]) -> None:
        limit = self.settings.give_up_calls
        if limit is None or self._silent_calls < 0:
            return
        self._silent_calls += 1
        if self._silent_calls >= limit:
            raise CaptionError(
                f"no info[{self.settings.info_key!r}] in the first {limit} steps; the infos have "
                f"{sorted(infos) or 'no keys'}. Let the environment give captions, name their key in "
                "captioner.info_key, or set captioner.kind=none"
            )
