"""Captions that an environment gives itself, in ``info["caption"]``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np

from onibi.actors.captioners.captioner import envs_of
from onibi.actors.captioners.plain_text import Numbers, PlainTextReader
from onibi.platform.annotation.captions import EMPTY_TEXT
from onibi.platform.config import Settings
from onibi.platform.errors import CaptionError, NoCaptionsError
from onibi.platform.fragment import CaptionText


@dataclass(frozen=True, kw_only=True)
class InfoCaptionerSettings(Settings):
    """One key per caption: its text, with numbers normalised unless they tell things apart."""

    kind: Literal["info"] = "info"
    info_key: str = "caption"
    numbers: Numbers = "normalise"  # a counter in the text would make every caption new
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
        self._place = f"info[{settings.info_key!r}]"
        self._reader = PlainTextReader(settings.numbers, settings.max_characters)
        self._silent_calls = 0

    def captions(self, raw: Any, infos: Mapping[str, Any]) -> list[CaptionText]:
        """[E] captions; environments without an entry said nothing.

        Raises: CaptionError where an entry is not text, NoCaptionsError where none came in the first ``give_up_calls``
            calls.
        """
        envs = envs_of(raw)
        texts = infos.get(self.settings.info_key)
        if texts is None:
            self._be_patient(infos)
            return [EMPTY_TEXT] * envs
        if isinstance(texts, Mapping):
            keys = sorted(key for key in texts if not key.startswith("_"))
            raise CaptionError(
                f"{self._place} is a mapping with {keys}; it must be text. Give one in the environment, or set "
                "captioner.info_key to another key, or captioner.kind=none"
            )
        # A single text has a length, too, and its letters would be captions.
        is_list = isinstance(texts, list | tuple) or (isinstance(texts, np.ndarray) and texts.ndim > 0)
        if not is_list or len(texts) != envs:
            raise CaptionError(
                f"{self._place} is {str(texts)[:80]!r} ({type(texts).__name__}) for {envs} environments; a vector "
                "environment must give one text (or None) for each. Give them in the environment, or set "
                "captioner.kind=none"
            )
        given, read = infos.get(self._mask_key), self._reader.read
        found = [
            read(texts[env], env, self._place) if given is None or given[env] else EMPTY_TEXT for env in range(envs)
        ]
        self._silent_calls = -1  # an environment that captions may be silent for as long as it likes
        return found

    def _be_patient(self, infos: Mapping[str, Any]) -> None:
        limit = self.settings.give_up_calls
        if limit is None or self._silent_calls < 0:
            return
        self._silent_calls += 1
        if self._silent_calls >= limit:
            raise NoCaptionsError(
                f"no info[{self.settings.info_key!r}] in the first {limit} vector steps; the infos have "
                f"{sorted(infos) or 'no keys'}. Let the environment give captions, name their key in "
                "captioner.info_key, or set captioner.kind=none"
            )
