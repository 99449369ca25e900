"""Words for settings: what was found, what is allowed, what was meant."""

from __future__ import annotations

import difflib
import enum
import pathlib
import types
import typing
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Literal, Union

from annotated_types import Ge, Gt, Interval, Le, Lt, MaxLen, MinLen, MultipleOf
from pydantic import AllowInfNan
from pydantic.fields import FieldInfo

_LONGEST_VALUE = 80  # characters of a found value that a message repeats
_SIMPLE: dict[Any, str] = {
    bool: "true or false",
    int: "a whole number",
    float: "a finite number",
    str: "text",
    type(None): "null",
    None: "null",
    Any: "any value",
}


def dotted(path: Iterable[str | int]) -> str:
    """``learner.discount`` of its parts; the top has a name as well."""
    return ".".join(map(str, path)) or "the settings"


def nearest(word: str, known: Iterable[Any]) -> str:
    """A question with the nearest of ``known``, or with the three shortest that begin with the word; a blank before it
    and empty where none is near.
    """
    candidates = [text for text in known if isinstance(text, str)]
    begun = sorted((text for text in candidates if word and text.startswith(word)), key=lambda text: (len(text), text))
    matches = begun[:3] or difflib.get_close_matches(word, candidates, n=1)
    return f" Did you mean {' or '.join(map(repr, matches))}?" if matches else ""


def describe_found(value: Any) -> str:
    """A value as its writer would know it again."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, Mapping):
        return f"a mapping with {', '.join(map(str, value)) or 'no keys'}"
    text = repr(list(value) if isinstance(value, tuple) else value)
    return text if len(text) <= _LONGEST_VALUE else f"{text[:_LONGEST_VALUE]}…"


def is_union(hint: Any) -> bool:
    """Whether ``hint`` is ``A | B`` or ``Optional[A]``."""
    return typing.get_origin(hint) in (Union, types.UnionType)


def whole_where_needed(hint: Any, value: Any) -> Any:
    """``value``; a float without a fraction (``1e5``) as a whole number where these are allowed and floats are not."""
    is_whole = isinstance(value, float) and value.is_integer()
    return int(value) if is_whole and _takes(hint, int) and not _takes(hint, float) else value


def _takes(hint: Any, kind: type) -> bool:
    if typing.get_origin(hint) is Annotated:
        return _takes(typing.get_args(hint)[0], kind)
    return any(_takes(member, kind) for member in typing.get_args(hint)) if is_union(hint) else hint is kind


def describe_hint(hint: Any) -> str:
    """What a field of this type takes, in words, bounds included."""
    arguments = typing.get_args(hint)
    origin = typing.get_origin(hint)
    if origin is Annotated:
        return ", ".join([describe_hint(arguments[0]), *_bounds(arguments[1:])])
    if origin is Literal:
        values = ", ".join(repr(value) for value in arguments)
        return f"one of {values}" if len(arguments) > 1 else values
    if is_union(hint):
        return " or ".join(describe_hint(member) for member in arguments)
    if origin is tuple and len(arguments) == 2 and arguments[1] is Ellipsis:
        return f"a list, each {describe_hint(arguments[0])}"
    if origin is tuple:
        return f"a list of {len(arguments)}: {'; '.join(describe_hint(item) for item in arguments)}"
    if origin is list:
        return f"a list, each {describe_hint(arguments[0])}"
    if origin is not None and issubclass(origin, Mapping):
        return f"a mapping of names, each to {describe_hint(arguments[1])}"
    if isinstance(hint, type) and issubclass(hint, enum.Enum):
        return f"one of {', '.join(repr(member.value) for member in hint)}"
    if isinstance(hint, type) and issubclass(hint, pathlib.PurePath):
        return "a path"
    return _SIMPLE.get(hint) or f"a section ({getattr(hint, '__name__', hint)})"


def _bounds(metadata: Iterable[Any]) -> list[str]:
    words: list[str] = []
    for item in metadata:
        match item:
            case FieldInfo():
                words.extend(_bounds(item.metadata))
            case Interval():
                words.extend(_bounds(item))
            case Ge():
                words.append(f"at least {item.ge}")
            case Gt():
                words.append(f"above {item.gt}")
            case Le():
                words.append(f"at most {item.le}")
            case Lt():
                words.append(f"below {item.lt}")
            case MinLen():
                words.append(f"at least {item.min_length} long")
            case MaxLen():
                words.append(f"at most {item.max_length} long")
            case MultipleOf():
                words.append(f"a multiple of {item.multiple_of}")
            case AllowInfNan(allow_inf_nan=True):
                words.append("infinity and NaN too")
    return words
