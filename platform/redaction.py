"""Keeps secrets out of what is shown, logged or uploaded."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from itertools import pairwise
from typing import Any

HIDDEN = "***"
"""Stands where a secret was."""

# Words of a name, so that `max_tokens` and `tokenizer` stay readable while `hf_token` and `tokenSecret` do not.
_WORDS = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])|\d+")
_SECRET_WORDS = frozenset(
    {"token", "secret", "secrets", "password", "passwd", "passphrase", "credential", "bearer", "apikey"}
)
_KEYS_OF = frozenset({"api", "access", "private", "auth", "authorization"})
# The last word of a name: `openai_key`, `X-Auth`; but what is looked up by a key is none: `info_key`.
_SECRET_ENDS = frozenset({"key", "auth", "authorization"})
_LOOKED_UP = frozenset({"info", "label", "caption", "observation", "obs", "row", "sort", "group", "primary", "public"})
_POINTERS = frozenset({"env", "variable", "file", "path"})
# Up to the last @ before the path, as passwords hold @, too; and beyond a / where no port stands before it.
_USER_IN_URL = re.compile(r"(?<=://)(?:[^/\s]+|(?![^/\s:@]*:\d{1,5}/)[^/\s:@]*:[^\s'\"<>]+)(?=@)")
# Whatever the name: a word behind "Bearer" that is none of English, and the beginnings by which services mark theirs.
_SECRET_VALUE = re.compile(
    r"(?<=\b[Bb]earer )(?=\S*\d|\S{20})[\w.~+/=-]+|(?<![\w-])(?:sk-[\w-]+|(?:hf|gh[a-z])_\w{16,})"
)
_SHORTEST_SECRET = 4  # characters of one that is looked for in other text
_QUERY_ENTRY = re.compile(r"(?<=[?&])([^=&\s]+)=([^&\s]+)")
_SECRET_IN_QUERY = frozenset({"sig", "signature"})  # and what names a secret elsewhere, too


def names_a_secret(name: str) -> bool:
    """Whether a setting of this name holds a secret: `api_key`, `hf_token`; not `api_key_env`, which names a place."""
    words = _words(name)
    if not words or words[-1] in _POINTERS:
        return False
    return _is_told_by(words) or (words[-1] in _SECRET_ENDS and not _LOOKED_UP.intersection(words[:-1]))


def without_secrets(value: Any) -> Any:
    """A copy of nested mappings and lists with secrets replaced by ``***``: by name, by look, and in URLs."""
    if isinstance(value, Mapping):
        return {key: HIDDEN if _hides(str(key), entry) else without_secrets(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [without_secrets(entry) for entry in value]
    if not isinstance(value, str):
        return value
    return _SECRET_VALUE.sub(HIDDEN, _QUERY_ENTRY.sub(_shown_entry, _USER_IN_URL.sub(HIDDEN, value)))


def text_without_secrets(text: str, settings: Any) -> str:
    """What somebody else wrote about ``settings``, without the secrets in them and without those that show as such."""
    for secret in sorted(set(_secrets(settings)), key=len, reverse=True):
        text = text.replace(secret, HIDDEN)
    return str(without_secrets(text))


def _shown_entry(found: re.Match[str]) -> str:
    name = found[1]
    return f"{name}={HIDDEN}" if names_a_secret(name) or name.lower() in _SECRET_IN_QUERY else found[0]


def flattened(mapping: Mapping[str, Any]) -> dict[str, str]:
    """Nested settings as ``{"learner.discount": "0.99"}``: strings as they are, all else as JSON."""
    flat: dict[str, str] = {}
    for key, value in mapping.items():
        if isinstance(value, Mapping) and value:
            flat.update({f"{key}.{inner}": text for inner, text in flattened(value).items()})
        else:
            flat[str(key)] = value if isinstance(value, str) else json.dumps(value, default=str)
    return flat


def _hides(name: str, value: Any) -> bool:
    # An empty or absent secret says that none is set: worth knowing, and nothing to hide.
    if not names_a_secret(name) or value in (None, "", False):
        return False
    # A section of settings may bear any name, as `annotators: {key: …}`; what is secret in it has names of its own.
    return not isinstance(value, Mapping) or _is_told_by(_words(name))


def _words(name: str) -> list[str]:
    return [word.lower() for word in _WORDS.findall(name)]


def _is_told_by(words: list[str]) -> bool:
    """Whether a name of these words leaves no doubt."""
    return any(word in _SECRET_WORDS for word in words) or any(
        first in _KEYS_OF and second in ("key", "keys") for first, second in pairwise(words)
    )


def _secrets(settings: Any, *, hidden: bool = False) -> Iterator[str]:
    if isinstance(settings, Mapping):
        for name, entry in settings.items():
            yield from _secrets(entry, hidden=hidden or _hides(str(name), entry))
    elif isinstance(settings, list | tuple):
        for entry in settings:
            yield from _secrets(entry, hidden=hidden)
    elif hidden and len(str(settings)) >= _SHORTEST_SECRET:
        yield str(settings)
