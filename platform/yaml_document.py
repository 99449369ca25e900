"""YAML text to plain values with the place of each key, and back.

Read after the core schema of YAML 1.2, where PyYAML alone reads 1.1: ``1e-4`` is a number (there it is text), ``off``,
``no`` and ``on`` are text (there booleans), ``12:30`` and dates are text, ``010`` is ten. Underscores between digits
(``1_000_000``) stay allowed. A key that stands twice in one mapping is an error, as is a key that is no text.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from onibi.platform.errors import ConfigError

KeyPath = tuple[str | int, ...]
"""Where a value stands: names of keys and positions in lists, outermost first."""

_BOOL = re.compile(r"true|True|TRUE|false|False|FALSE")
_NULL = re.compile(r"~|null|Null|NULL|")
_INT = re.compile(r"[-+]?[0-9](?:_?[0-9])*|0x[0-9a-fA-F]+|0o[0-7]+")
_FLOAT = re.compile(
    r"[-+]?(?:\.[0-9]+|[0-9](?:_?[0-9])*(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)"
)


@dataclass(frozen=True, kw_only=True)
class Document:
    """A mapping, and where each of its keys was written.

    Args:
        source: name of the file, for messages.
        mapping: plain values: mappings with text keys, lists, text, numbers, booleans, None.
        places: for each key path what to call its place, ``run.yaml:12`` or ``--set a.b=c``.
    """

    source: str
    mapping: dict[str, Any]
    places: Mapping[KeyPath, str] = field(default_factory=dict)

    def place(self, path: KeyPath) -> str:
        """Where ``path``, or the closest section around it, was written, and each ``--set`` of something inside it.

        What is wrong with a section may be one value's fault: the line that began the section need not be the culprit.
        """
        written = (self.places[path[:length]] for length in range(len(path), 0, -1) if path[:length] in self.places)
        found = [next(written, self.source)]
        for inner, place in self.places.items():
            if inner[: len(path)] == path and place.startswith("--set ") and place not in found:
                found.append(place)
        return " with ".join([found[0], ", ".join(found[1:])] if found[1:] else found)


def by_line(place: str) -> list[str | int]:
    """To sort places by: line 10 comes behind line 9."""
    return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", place)]


class _Loader(yaml.SafeLoader):
    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012 (PyYAML's own form)


class _Dumper(yaml.SafeDumper):
    # Both schemas: text that either of them would read as something else is quoted.
    yaml_implicit_resolvers = {  # noqa: RUF012
        letter: list(resolvers) for letter, resolvers in yaml.SafeDumper.yaml_implicit_resolvers.items()
    }

    def ignore_aliases(self, data: object) -> bool:  # noqa: ARG002 (the base's signature)
        """Equal lists are written out each time: a reader need not know anchors."""
        return True


def _whole(pattern: re.Pattern[str]) -> re.Pattern[str]:
    return re.compile(rf"(?:{pattern.pattern})\Z")


for _class in (_Loader, _Dumper):
    for _tag, _pattern, _first in (
        ("bool", _BOOL, "tTfF"),
        ("null", _NULL, ["~", "n", "N", ""]),
        ("int", _INT, "-+0123456789"),
        ("float", _FLOAT, "-+.0123456789"),
    ):
        _class.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", _whole(_pattern), list(_first))
_Loader.add_implicit_resolver("tag:yaml.org,2002:merge", re.compile(r"<<\Z"), ["<"])


def _construct_int(loader: _Loader, node: yaml.ScalarNode) -> int:
    text = str(loader.construct_scalar(node))
    return int(text, 0) if text.startswith(("0x", "0o")) else int(text)


def _construct_float(loader: _Loader, node: yaml.ScalarNode) -> float:
    text = str(loader.construct_scalar(node)).lower()
    return float(text.replace(".inf", "inf").replace(".nan", "nan"))


_Loader.add_constructor("tag:yaml.org,2002:int", _construct_int)
_Loader.add_constructor("tag:yaml.org,2002:float", _construct_float)


def parse_value(text: str, source: str) -> Any:
    """One YAML value, as after ``--set key=``. Raises: ConfigError where it is not YAML."""
    return _parse(text, source, {})


def parse_document(text: str, source: str) -> Document:
    """A run's YAML text.

    Args:
        text: YAML; empty text is an empty mapping.
        source: what to call it in messages.

    Raises:
        ConfigError: not YAML, a key twice, a key that is no text, a tag like ``!!python/object``, or no mapping at all.
    """
    places: dict[KeyPath, str] = {}
    value = _parse(text, source, places)
    if value is None:
        value = {}
    if not isinstance(value, dict):
        found = type(value).__name__
        raise ConfigError(f"{source}: holds {found} at the top, expected a mapping of settings (key: value).")
    return Document(source=source, mapping=value, places=places)


def read_document(path: Path) -> Document:
    """The YAML file at ``path``. Raises: ConfigError where it cannot be read, and as ``parse_document``."""
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: byte {error.start} is not UTF-8. Save the file as UTF-8 text.") from error
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror}).") from error
    return parse_document(text, str(path))


def to_yaml(mapping: Mapping[str, Any]) -> str:
    """``mapping`` as YAML that ``parse_document`` reads back to the same values."""
    return yaml.dump(dict(mapping), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)


def _parse(text: str, source: str, places: dict[KeyPath, str]) -> Any:
    try:
        loader = _Loader(text)
        try:
            node = loader.get_single_node()
            return None if node is None else _build(loader, node, source, (), places, ())
        finally:
            loader.dispose()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"{source}:{mark.line + 1}" if mark else source
        raise ConfigError(f"{where}: not YAML: {error.problem or error}.") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ConfigError(f"{source}: not YAML: {str(error).splitlines()[0]}.") from error


def _build(
    loader: _Loader, node: yaml.Node, source: str, path: KeyPath, places: dict[KeyPath, str], around: tuple[int, ...]
) -> Any:
    """The value of ``node``; ``around`` holds the nodes that it stands in, against an alias of one of them."""
    where = f"{source}:{node.start_mark.line + 1}"
    if id(node) in around:
        raise ConfigError(f"{where}: {_dotted(path)} contains itself through an alias.")
    inner = (*around, id(node))
    if isinstance(node, yaml.MappingNode):
        _check_keys(loader, node, source)
        loader.flatten_mapping(node)
        mapping: dict[str, Any] = {}
        for key_node, value_node in node.value:
            key = str(loader.construct_object(key_node))
            places[*path, key] = f"{source}:{key_node.start_mark.line + 1}"
            mapping[key] = _build(loader, value_node, source, (*path, key), places, inner)
        return mapping
    if isinstance(node, yaml.SequenceNode):
        values = []
        for index, item in enumerate(node.value):
            places[*path, index] = f"{source}:{item.start_mark.line + 1}"
            values.append(_build(loader, item, source, (*path, index), places, inner))
        return values
    return loader.construct_object(node)


def _check_keys(loader: _Loader, node: yaml.MappingNode, source: str) -> None:
    """Before merging: what a merge (``<<``) brings in may stand once more."""
    lines: dict[str, int] = {}
    for key_node, _ in node.value:
        line = key_node.start_mark.line + 1
        if key_node.tag == "tag:yaml.org,2002:merge":
            continue
        key = loader.construct_object(key_node) if isinstance(key_node, yaml.ScalarNode) else key_node
        if not isinstance(key, str):
            found = repr(key) if isinstance(key_node, yaml.ScalarNode) else "a list or mapping"
            raise ConfigError(f"{source}:{line}: a key is {found}, expected text; write it in quotes.")
        if key in lines:
            raise ConfigError(f"{source}:{line}: {key!r} stands here and on line {lines[key]}; leave one of them out.")
        lines[key] = line


def _dotted(path: KeyPath) -> str:
    return ".".join(map(str, path)) or "the document"
