"""Keeps secrets out of what is shown, logged or uploaded."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from itertools import pairwise
from typing import Any

HIDDEN = "***"
"""Stands where a secret was."""

# Words of a name, so that `max_tokens` and `tokenizer` stay readable while `hf_token` and `tokenSecret` do not.
_WORDS = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])|\d+")
_SECRET_WORDS = frozenset({"token", "secret", "secrets", "password", "passwd", "passphrase", "credential"})
_KEYS_OF = frozenset({"api", "access", "private", "auth", "authorization"})
_POINTERS = frozenset({"env", "variable", "file", "path"})
_USER_IN_URL = re.compile(r"(?<=://)[^/@\s]+(?=@)")
_QUERY_ENTRY = re.compile(r"(?<=[?&])([^=&\s]+)=([^&\s]+)")
_SECRET_IN_QUERY = frozenset({"key", "sig", "signature"})  # and what names a secret elsewhere, too


def names_a_secret(name: str) -> bool:
    """Whether a setting of this name holds a secret: `api_key`, `hf_token`; not `api_key_env`, which names a place."""
    words = [word.lower() for word in _WORDS.findall(name)]
    if not words or words[-1] in _POINTERS:
        return False
    if any(word in _SECRET_WORDS for word in words) or words == ["apikey"] or words == ["authorization"]:
        return True
    return any(first in _KEYS_OF and second in ("key", "keys") for first, second in pairwise(words))


def without_secrets(value: Any) -> Any:
    """A copy of nested mappings and lists with secrets replaced by ``***``, in URLs (``user:password@``) too."""
    if isinstance(value, Mapping):
        return {key: HIDDEN if _hides(str(key), entry) else without_secrets(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [without_secrets(entry) for entry in value]
    return _QUERY_ENTRY.sub(_shown_entry, _USER_IN_URL.sub(HIDDEN, value)) if isinstance(value, str) else value


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
    return names_a_secret(name) and value not in (None, "", False)
