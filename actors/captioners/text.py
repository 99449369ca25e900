"""Captions that stand in the observation itself: a Text leaf, such as a MiniGrid mission or a text game's answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np

from onibi.actors.captioners.plain_text import Numbers, PlainTextReader
from onibi.platform.config import Settings
from onibi.platform.errors import CaptionError
from onibi.platform.fragment import CaptionText


@dataclass(frozen=True, kw_only=True)
class TextCaptionerSettings(Settings):
    """Which leaf, and how its text becomes a key."""

    kind: Literal["text"] = "text"
    # Keys joined by ".", as "inner.mission", in a Tuple space the places from 0; null: the only Text leaf there is.
    leaf: str | None = None
    numbers: Numbers = "normalise"  # a counter in the text would make every caption new
    max_characters: int = 500  # longer ones are cut

    def __post_init__(self) -> None:
        if self.max_characters < 1:
            raise ValueError(f"max_characters is {self.max_characters}; it must be 1 or more")
        if self.leaf is not None and not all(self.leaf.split(".")):
            raise ValueError(f"leaf is {self.leaf!r}; it must be a key, or keys joined by '.', or null")


class TextCaptioner:
    """Reads the texts of one leaf: a tuple or list of E str, as Gymnasium batches Text spaces, or an array of str."""

    Settings: ClassVar[type[TextCaptionerSettings]] = TextCaptionerSettings

    def __init__(self, settings: TextCaptionerSettings) -> None:
        self.settings = settings
        self.observation_keys: tuple[str, ...] = () if settings.leaf is None else (settings.leaf.partition(".")[0],)
        self.keys_per_caption = 1
        self.key_version = f"text-1-{settings.leaf}-numbers-{settings.numbers}"
        self._reader = PlainTextReader(settings.numbers, settings.max_characters)
        self._leaf = settings.leaf

    def captions(self, raw: Any, infos: Mapping[str, Any]) -> list[CaptionText]:  # noqa: ARG002 - the contract's
        """[E] captions of the leaf's texts.

        Raises: CaptionError where there is no such leaf, or it holds no text.
        """
        if self._leaf is None:
            self._leaf = _only_text(raw)
        texts = _at(raw, self._leaf)
        place, read = f"observation {self._leaf!r}", self._reader.read
        return [read(_plain(text), env, place) for env, text in enumerate(texts)]


def text_leaves(raw: Any, prefix: str = "") -> list[str]:
    """Paths of all text leaves of a batched observation; a bare one is ""."""
    if _is_texts(raw):
        return [prefix]
    children = raw.items() if isinstance(raw, Mapping) else enumerate(raw) if isinstance(raw, tuple) else ()
    return [path for key, child in children for path in text_leaves(child, f"{prefix}.{key}" if prefix else str(key))]


def _only_text(raw: Any) -> str:
    leaves = text_leaves(raw)
    if len(leaves) != 1:
        found = ", ".join(leaves) if leaves else "none"
        raise CaptionError(
            f"captioner 'text' reads the only Text leaf of the observation; this one has {found}. "
            + ("Name one in captioner.leaf" if leaves else "Set captioner.kind to info, function or none")
        )
    return leaves[0]


def _at(raw: Any, leaf: str) -> Sequence[Any]:
    found = raw
    for key in leaf.split(".") if leaf else ():
        if isinstance(found, tuple) and not _is_texts(found):  # the leaves of a Tuple space
            found = dict(zip(map(str, range(len(found))), found, strict=True))
        if not isinstance(found, Mapping) or key not in found:
            found = None
            break
        found = found[key]
    if not _is_texts(found):
        shown = "nothing" if found is None else type(found).__name__
        allowed = ", ".join(path or "the observation itself" for path in text_leaves(raw)) or "none"
        raise CaptionError(
            f"captioner.leaf is {leaf!r}, where the observation has {shown} that is no text; its Text leaves: {allowed}"
            ". Name one of them, or set captioner.kind to info, function or none"
        )
    return found  # type: ignore[no-any-return]


def _is_texts(leaf: Any) -> bool:
    if isinstance(leaf, np.ndarray):
        return leaf.ndim == 1 and (leaf.dtype.kind == "U" or (leaf.dtype == object and _all_text(leaf.tolist())))
    return isinstance(leaf, tuple | list) and len(leaf) > 0 and _all_text(leaf)


def _all_text(values: Sequence[Any]) -> bool:
    return all(isinstance(value, str) for value in values)


def _plain(text: Any) -> Any:
    return str(text) if isinstance(text, np.str_) else text  # a subclass, but one that hashes and prints otherwise
