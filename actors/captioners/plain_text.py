"""Texts that need no knowledge of their game as captions: one key each, cached."""

from __future__ import annotations

import re
from typing import Any, Literal

from onibi.platform.annotation.captions import EMPTY_TEXT, storable
from onibi.platform.errors import CaptionError
from onibi.platform.fragment import CaptionText, KeyText

Numbers = Literal["normalise", "keep"]

_CACHED_TEXTS = 1 << 16
_NUMBER = re.compile(r"\d+")


class PlainTextReader:
    """Makes captions of texts; the same text gives the same caption object.

    Args:
        numbers: whether numbers tell keys apart; a counter in the text would make every caption new.
        max_characters: longer texts are cut.
    """

    def __init__(self, numbers: Numbers, max_characters: int) -> None:
        self._numbers, self._max_characters = numbers, max_characters
        self._cache: dict[str, CaptionText] = {}

    def read(self, text: Any, env: int, place: str) -> CaptionText:
        """The caption of one environment's text; None and "" say nothing.

        Args:
            text: what was found.
            env: the environment's number, for errors.
            place: where it was found, for errors; "which setting" included.
        Raises: CaptionError where it is not text.
        """
        if text is None or (isinstance(text, str) and not text):
            return EMPTY_TEXT
        if isinstance(text, str) and len(text) > self._max_characters:
            text = text[: self._max_characters]  # so that no cache holds the rest
        caption = self._cache.get(text) if isinstance(text, str) else None
        return self._read(text, env, place) if caption is None else caption

    def _read(self, text: Any, env: int, place: str) -> CaptionText:
        if not isinstance(text, str):
            raise CaptionError(
                f"environment {env}: {place} is {text!r} ({type(text).__name__}); it must be text. Convert it in the "
                "environment, or set captioner.kind=none"
            )
        words = " ".join(storable(text).split())
        key = _NUMBER.sub("#", words) if self._numbers == "normalise" else words
        caption = CaptionText(words, (KeyText(key),)) if words else EMPTY_TEXT
        if len(self._cache) >= _CACHED_TEXTS:
            self._cache.clear()
        self._cache[text] = caption
        return caption
