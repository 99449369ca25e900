"""Captions by a function of the user's own, named by its import path.

captioner: {kind: function, path: my_game.words:tell}

def tell(raw, infos):          # raw: batched observation, infos: Gymnasium's vector infos
    return ["You found a key." if key else "" for key in raw["has_key"]]
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

from onibi.actors.captioners.captioner import envs_of
from onibi.actors.captioners.plain_text import Numbers, PlainTextReader
from onibi.platform.annotation.captions import storable
from onibi.platform.config import Settings
from onibi.platform.errors import CaptionError, ConfigError
from onibi.platform.fragment import CaptionText, KeyText
from onibi.platform.user_code import raised_at


@dataclass(frozen=True, kw_only=True)
class FunctionCaptionerSettings(Settings):
    """Which function, and how its texts become keys."""

    kind: Literal["function"] = "function"
    path: str  # module:function; the module must be on the path of every worker
    # True: the function is a maker. It is called once without arguments and returns the function, so that it may
    # remember things (its method ``begin(lanes)``, where there is one, is called where episodes begin).
    is_maker: bool = False
    keys_per_caption: int = 1  # K; more only where the function returns CaptionText
    observation_keys: tuple[str, ...] = ()  # of a NetHack observation: what is not named here may not be filled
    numbers: Numbers = "normalise"  # of texts; CaptionText brings its own keys
    max_characters: int = 500  # longer texts are cut
    key_version: str = "1"  # change it when the function makes other keys: runs of different versions do not mix

    def __post_init__(self) -> None:
        if not 1 <= self.keys_per_caption <= 32:
            raise ValueError(f"keys_per_caption is {self.keys_per_caption}; it must be 1 to 32")
        if self.max_characters < 1:
            raise ValueError(f"max_characters is {self.max_characters}; it must be 1 or more")
        module, colon, attribute = self.path.partition(":")
        if not (module and colon and attribute):
            raise ValueError(f"path is {self.path!r}; it must name a function as module:function")


class FunctionCaptioner:
    """Calls the function at every vector step: keep it fast.

    It returns an entry for each environment: a text, None or "" for silence, or a ``CaptionText`` with its own keys.

    Raises: ConfigError where the path cannot be imported or is no function.
    """

    Settings: ClassVar[type[FunctionCaptionerSettings]] = FunctionCaptionerSettings

    def __init__(self, settings: FunctionCaptionerSettings) -> None:
        self.settings = settings
        self.observation_keys = settings.observation_keys
        self.keys_per_caption = settings.keys_per_caption
        self.key_version = f"function-1-{settings.path}-{settings.key_version}-numbers-{settings.numbers}"
        self._reader = PlainTextReader(settings.numbers, settings.max_characters)
        self._function = _imported(settings)
        begin = getattr(self._function, "begin", None)
        if callable(begin):
            self.begin = begin

    def captions(self, raw: Any, infos: Mapping[str, Any]) -> list[CaptionText]:
        """[E] captions.

        Raises: CaptionError where the function raised, or returned other than one entry for each environment.
        """
        path = self.settings.path
        try:
            told = self._function(raw, infos)
        except Exception as error:
            raise CaptionError(
                f"captioner.path: {path} raised {type(error).__name__}: {error}{raised_at(error)}. It is called as "
                f"{path.partition(':')[2]}(raw observation, infos)"
            ) from error
        envs = envs_of(raw)
        if isinstance(told, str) or not isinstance(told, Sequence) or len(told) != envs:
            found = f"{len(told)} entries" if isinstance(told, Sequence) and not isinstance(told, str) else repr(told)
            raise CaptionError(
                f"captioner.path: {path} returned {found[:200]} for {envs} environments; it must return a list with "
                "one text (or None, or CaptionText) for each"
            )
        return [self._caption(entry, env) for env, entry in enumerate(told)]

    def _caption(self, entry: Any, env: int) -> CaptionText:
        if not isinstance(entry, CaptionText):
            return self._reader.read(entry, env, f"what {self.settings.path} returned")
        if len(entry.keys) > self.keys_per_caption or bool(entry.text) != bool(entry.keys):
            raise CaptionError(
                f"environment {env}: {self.settings.path} returned {entry.text!r} with {len(entry.keys)} keys; a "
                f"caption has 1 to captioner.keys_per_caption ({self.keys_per_caption}) of them, the empty text none"
            )
        said: Any = entry.text  # a user's code may have put anything there
        keys: Any = entry.keys
        texts = [key.text if isinstance(key, KeyText) else None for key in keys]
        is_text = isinstance(said, str) and all(isinstance(text, str) and text for text in texts)
        # A key that stood there twice would be counted twice, and pay as if it had been heard before.
        if not is_text or len(set(texts)) < len(texts):
            raise CaptionError(
                f"environment {env}: {self.settings.path} returned {str(entry)[:300]}; its text must be a str, and its "
                "keys KeyText, each with a text of its own that is not empty"
            )
        if all(storable(text) == text for text in (entry.text, *(key.text for key in entry.keys))):
            return entry
        return CaptionText(storable(entry.text), tuple(replace(key, text=storable(key.text)) for key in entry.keys))


def _imported(settings: FunctionCaptionerSettings) -> Callable[[Any, Mapping[str, Any]], Any]:
    module, _, attribute = settings.path.partition(":")
    try:
        found: Any = getattr(importlib.import_module(module), attribute)
        if settings.is_maker and callable(found):
            found = found()
    except Exception as error:
        raise ConfigError(
            f"captioner.path: {settings.path!r} cannot be {'made' if settings.is_maker else 'imported'}: "
            f"{type(error).__name__}: {error}. It must name a function as module:function, and the module must be on "
            "the path of every worker"
        ) from error
    if not callable(found):
        raise ConfigError(
            f"captioner.path: {settings.path!r} is a {type(found).__name__}; it must be a function of (raw "
            "observation, infos), or with captioner.is_maker=true return one"
        )
    return found  # type: ignore[no-any-return]
