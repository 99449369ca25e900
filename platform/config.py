"""Settings: read, merged and checked for any class of settings, none of them known here by name.

Settings live beside their owner as frozen dataclasses derived from ``Settings``; each default stands there once. A
section whose class depends on its ``kind`` (a learner, an annotator) is declared with ``selected``.

    @dataclass(frozen=True, kw_only=True)
    class DqnSettings(Settings):
        kind: Literal["dqn"] = "dqn"
        discount: Annotated[float, Field(ge=0, le=1)] = 0.99

    @dataclass(frozen=True, kw_only=True)
    class RunSettings(Settings):
        seed: int = 0
        learner: Settings = selected(LEARNERS, "dqn")

    read_settings(RunSettings, {"learner": {"discount": 0.9}}, overrides=["seed=3"])

Values are checked by pydantic, strictly (``"0.9"`` is no number) and as JSON, since a strict check from Python would
refuse a list where a tuple is declared. All faults are told at once.
"""

from __future__ import annotations

import dataclasses
import enum
import functools
import importlib
import json
import typing
from collections.abc import Callable, Mapping, Sequence
from pathlib import PurePath
from types import NoneType
from typing import Any, ClassVar, TypeVar

from pydantic import ConfigDict, TypeAdapter, ValidationError

from onibi.platform.config_merge import overridden
from onibi.platform.config_words import describe_found, describe_hint, dotted, is_union, nearest, whole_where_needed
from onibi.platform.errors import ConfigError
from onibi.platform.user_code import raised_at
from onibi.platform.yaml_document import Document, KeyPath, by_line

_REGISTRY, _DEFAULT_KIND, _OPTIONAL, _EACH = (
    f"onibi.{name}" for name in ("registry", "default_kind", "optional", "each")
)
_FAULTY: Any = object()  # stands for a value whose fault is already noted


class Settings:
    """Base of all settings: subclasses are ``@dataclass(frozen=True, kw_only=True)``.

    Field types: bool, int, float, str, Literal, Enum, Path, unions of these, ``Annotated`` with pydantic's or
    annotated_types' bounds, tuples and ``dict[str, …]`` of these, other settings classes, and tuples or dicts of
    settings, or one ``| None`` or ``| float``. ``__post_init__`` raises ValueError for what no single field shows; the
    section's path is put before its message. NaN and infinity are refused but under ``AllowInfNan(True)``.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


S = TypeVar("S", bound=Settings)


def selected(registry: Mapping[str, str], default: str, *, optional: bool = False) -> Any:
    """A dataclass field for a section whose class its ``kind`` key selects.

    Args:
        registry: kind → ``"module:Class"``; the class has a class variable ``Settings``, a settings class whose first
            field is ``kind: Literal[…]``. The module is imported when the kind is used.
        default: the kind of a section that names none.
        optional: a section that is not given at all is None.
    """
    return dataclasses.field(
        default_factory=lambda: None if optional else load_class(registry, default).Settings(),
        metadata={_REGISTRY: registry, _DEFAULT_KIND: default, _OPTIONAL: optional},
    )


def selected_each(registry: Mapping[str, str]) -> Any:
    """A field ``dict[str, …]`` of such sections under names that the user gives; each must name its ``kind``."""
    return dataclasses.field(default_factory=dict, metadata={_REGISTRY: registry, _EACH: True})


def load_class(registry: Mapping[str, str], kind: str) -> Any:
    """The class registered under ``kind``, imported now; of a kind ``module:Class`` that class, which is the user's.

    Raises:
        ConfigError: the kind is unknown (with the nearest and all known ones), or needs a package that is missing; the
            user's class cannot be imported, or has no settings.
    """
    if ":" in kind:
        return _own_class(kind)
    if kind not in registry:
        raise ConfigError(
            f"kind {kind!r} is unknown.{nearest(kind, registry)} Allowed: {', '.join(sorted(registry))}, or "
            "module:Class for one of your own."
        )
    module_name, _, class_name = registry[kind].partition(":")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] == "onibi":
            raise
        raise ConfigError(
            f"kind {kind!r} needs the Python package {error.name!r}, which is not installed. Install it (nle and "
            "minihack come with onibi[nethack], httpx2 and tenacity with onibi[openai], transformers with "
            "onibi[transformers]) or choose another kind."
        ) from error
    return getattr(module, class_name)


def _own_class(path: str) -> Any:
    module_name, _, class_name = path.partition(":")
    try:
        found = getattr(importlib.import_module(module_name), class_name)
    except (Exception, SystemExit) as error:  # whatever the user's module does when it is imported
        raise ConfigError(
            f"kind {path!r} cannot be imported: {type(error).__name__}: {error}{raised_at(error)}. Its module must be "
            "installed, on PYTHONPATH, or in the folder where onibi is called."
        ) from error
    settings: Any = getattr(found, "Settings", None)
    is_section = isinstance(settings, type) and issubclass(settings, Settings) and dataclasses.is_dataclass(settings)
    if not is_section or "kind" not in {field.name for field in dataclasses.fields(settings)}:
        raise ConfigError(
            f"kind {path!r} has no class Settings that is a frozen dataclass, a subclass of onibi.platform.config."
            "Settings, and has the field kind: subclass one of Onibi's own, as DqnSettings."
        )
    return found


def read_settings(
    cls: type[S], mapping: Mapping[str, Any] | Document, *, source: str = "settings", overrides: Sequence[str] = ()
) -> S:
    """A checked instance of ``cls``.

    Args:
        cls: the settings class.
        mapping: plain values as YAML gives them, or a document, whose lines the messages then name.
        source: what messages call a plain mapping.
        overrides: ``a.b=c`` as after ``--set``, the value in YAML, later ones win. One that changes a section's written
            ``kind`` drops the section's other keys, which belong to the old kind.

    Raises:
        ConfigError: one message with every fault: its place, the value found, what is allowed, the nearest known key.
    """
    document = mapping if isinstance(mapping, Document) else Document(source=source, mapping=dict(mapping))
    lines, faults = list[str](), list[_Fault]()
    document = overridden(document, overrides, lines)
    value = _read_section(cls, document.mapping, (), faults)
    told = sorted(((document.place(fault.path), fault.text) for fault in faults), key=lambda each: by_line(each[0]))
    lines += [f"{place}: {text}" for place, text in told]
    if lines:
        count = f"{len(lines)} faults in the settings" if len(lines) > 1 else "1 fault in the settings"
        raise ConfigError(f"{count}:\n  " + "\n  ".join(lines))
    return typing.cast(S, value)


def read_chosen(
    registry: Mapping[str, str], section: Mapping[str, Any], *, source: str, overrides: Sequence[str] = ()
) -> Any:
    """Settings of the kind that a section names, read alone. Raises: ConfigError as ``read_settings``."""
    kind = section["kind"]
    cls: type[Settings] = load_class(registry, kind).Settings
    read = functools.partial(read_settings, cls, source=source, overrides=overrides)
    return _named_by_place(registry, kind, section, read)


def to_mapping(settings: Settings) -> dict[str, Any]:
    """All values, defaults included, as plain mapping; ``read_settings`` makes an equal instance of it again."""
    fields = dataclasses.fields(settings)  # type: ignore[arg-type]  # the base itself is no dataclass
    return {field.name: _plain(getattr(settings, field.name)) for field in fields if field.init}


def chosen_values(settings: Settings) -> dict[str, Any]:
    """As ``to_mapping``, without the values that are their field's default; ``kind`` always stays.

    Settings that get a new field with a default thereby keep their form; those whose defaults change do not show it.
    """
    chosen: dict[str, Any] = {}
    for field in dataclasses.fields(settings):  # type: ignore[arg-type]  # the base itself is no dataclass
        value = getattr(settings, field.name)
        if not field.init or (field.name != "kind" and value == _default_of(field)):
            continue
        chosen[field.name] = chosen_values(value) if isinstance(value, Settings) else _plain(value)
    return chosen


@dataclasses.dataclass(frozen=True)
class _Fault:
    path: KeyPath
    text: str


def _plain(value: Any) -> Any:
    if isinstance(value, Settings):
        return to_mapping(value)
    if isinstance(value, enum.Enum):
        return value.value
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, PurePath) else value


def _default_of(field: dataclasses.Field[Any]) -> Any:
    return field.default if field.default_factory is dataclasses.MISSING else field.default_factory()


def _read_section(cls: type, value: Any, path: KeyPath, faults: list[_Fault]) -> Any:
    if value is None:  # "learner:" with nothing but comments below it
        value = {}
    if not isinstance(value, Mapping):
        text = f"{dotted(path)} is {describe_found(value)}; allowed: a section with {_names(cls)}."
        faults.append(_Fault(path, text))
        return _FAULTY
    hints = typing.get_type_hints(cls, include_extras=True)
    fields = {field.name: field for field in dataclasses.fields(cls) if field.init}
    for key in value:
        if key not in fields:
            text = f"{dotted((*path, key))}: unknown key.{nearest(key, fields)} Allowed here: {_names(cls)}."
            faults.append(_Fault((*path, key), text))
    sound = all(key in fields for key in value)
    given: dict[str, Any] = {}
    for name, field in fields.items():
        here = (*path, name)
        required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        if _EACH in field.metadata:
            given[name] = _read_each(field, value.get(name), here, faults)
        elif _REGISTRY in field.metadata:
            given[name] = _read_selected(field, hints[name], value.get(name), name in value, here, faults)
        elif name in value:
            given[name] = _read_value(hints[name], value[name], here, faults)
        elif required and _is_settings(hints[name]):
            given[name] = _read_section(hints[name], {}, here, faults)
        elif required:
            faults.append(_Fault(path, f"{dotted(here)} is missing; expected: {describe_hint(hints[name])}."))
            sound = False
    if not sound or any(item is _FAULTY for item in given.values()):
        return _FAULTY
    try:
        return cls(**given)
    except (ValueError, ConfigError) as error:
        faults.append(_Fault(path, f"{dotted(path)}: {error}" if path else str(error)))
        return _FAULTY


def _read_selected(
    field: dataclasses.Field[Any], hint: Any, value: Any, given: bool, path: KeyPath, faults: list[_Fault]
) -> Any:
    optional = is_union(hint) and NoneType in typing.get_args(hint)
    if value is None and optional and (given or field.metadata[_OPTIONAL]):
        return None
    return _read_kind(field.metadata[_REGISTRY], field.metadata[_DEFAULT_KIND], value, path, faults)


def _read_each(field: dataclasses.Field[Any], value: Any, path: KeyPath, faults: list[_Fault]) -> Any:
    if value is None:
        return {}
    if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
        text = f"{dotted(path)} is {describe_found(value)}; allowed: names, each with a section that has a kind."
        faults.append(_Fault(path, text))
        return _FAULTY
    registry = field.metadata[_REGISTRY]
    sections = {name: _read_kind(registry, None, item, (*path, name), faults) for name, item in value.items()}
    return _FAULTY if any(section is _FAULTY for section in sections.values()) else sections


def _read_kind(
    registry: Mapping[str, str], default: str | None, value: Any, path: KeyPath, faults: list[_Fault]
) -> Any:
    allowed = ", ".join(sorted(registry))
    if not isinstance(value, Mapping) and (value is not None or default is None):
        text = f"{dotted(path)} is {describe_found(value)}; allowed: a section whose kind is one of {allowed}."
        faults.append(_Fault(path, text))
        return _FAULTY
    kind = value.get("kind", default) if isinstance(value, Mapping) else default
    if not isinstance(kind, str):
        found = "is missing" if kind is None else f"is {describe_found(kind)}"
        faults.append(_Fault((*path, "kind"), f"{dotted((*path, 'kind'))} {found}; allowed: {allowed}."))
        return _FAULTY
    try:
        owner = load_class(registry, kind)
    except ConfigError as error:
        faults.append(_Fault((*path, "kind"), f"{dotted(path)}: {error}"))
        return _FAULTY
    try:
        return _named_by_place(
            registry, kind, value or {}, lambda rest: _read_section(owner.Settings, rest, path, faults)
        )
    except ValueError as error:  # of the user's own check
        faults.append(_Fault(path, f"{dotted(path)}: {error}"))
        return _FAULTY


def _named_by_place(
    registry: Mapping[str, str], kind: str, section: Mapping[str, Any], read: Callable[[Mapping[str, Any]], Any]
) -> Any:
    """What ``read`` makes of a section of a kind. A subclass of Onibi's settings need not name itself: the kind of a
    class of the user's is where it lies.
    """
    if kind in registry:
        return read(section)
    found = read({name: item for name, item in section.items() if name != "kind"})
    return found if found is _FAULTY else dataclasses.replace(found, kind=kind)


def _read_value(hint: Any, value: Any, path: KeyPath, faults: list[_Fault]) -> Any:
    if not _holds_settings(hint):
        return _read_leaf(hint, value, path, faults)
    if _is_settings(hint):
        return _read_section(hint, value, path, faults)
    arguments = typing.get_args(hint)
    if is_union(hint):
        if value is None and NoneType in arguments:
            return None
        members = [member for member in arguments if member is not NoneType]
        if len(members) > 1:  # a number or a section: the value tells
            members = [member for member in members if _is_settings(member) == isinstance(value, Mapping)]
        if len(members) != 1:
            raise TypeError(f"{dotted(path)}: {hint} cannot be told apart; declare the field with selected(…)")
        return _read_value(members[0], value, path, faults)
    if typing.get_origin(hint) is tuple and len(arguments) == 2 and arguments[1] is Ellipsis:
        if not isinstance(value, list | tuple):
            faults.append(_Fault(path, f"{dotted(path)} is {describe_found(value)}; allowed: {describe_hint(hint)}."))
            return _FAULTY
        items = tuple(_read_value(arguments[0], item, (*path, index), faults) for index, item in enumerate(value))
        return _FAULTY if any(item is _FAULTY for item in items) else items
    if typing.get_origin(hint) in (dict, Mapping) and arguments[0] is str:
        if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
            faults.append(_Fault(path, f"{dotted(path)} is {describe_found(value)}; allowed: {describe_hint(hint)}."))
            return _FAULTY
        mapping = {key: _read_value(arguments[1], item, (*path, key), faults) for key, item in value.items()}
        return _FAULTY if any(item is _FAULTY for item in mapping.values()) else mapping
    raise TypeError(f"{dotted(path)}: settings inside {hint} are not supported; see the docstring of Settings")


def _read_leaf(hint: Any, value: Any, path: KeyPath, faults: list[_Fault]) -> Any:
    odd = _not_plain(value, path)
    if odd is not None:
        faults.append(odd)
        return _FAULTY
    try:
        return _adapter(hint).validate_json(json.dumps(whole_where_needed(hint, value)))
    except ValidationError as error:
        allowed = describe_hint(hint)
        seen: set[KeyPath] = set()
        for inner in error.errors(include_url=False, include_context=False):
            found, at = _follow(value, inner["loc"], path)
            if at in seen:  # each member of a union has its own complaint about the same value
                continue
            seen.add(at)
            what = allowed if at == path else f"for {dotted(path)}: {allowed}"
            hint_text = nearest(found, typing.get_args(hint)) if isinstance(found, str) else ""
            faults.append(_Fault(at, f"{dotted(at)} is {describe_found(found)}; allowed: {what}.{hint_text}"))
        return _FAULTY


def _follow(value: Any, steps: Sequence[str | int], path: KeyPath) -> tuple[Any, KeyPath]:
    """The value that pydantic's ``loc`` points at; its names of union members are no steps."""
    for step in steps:
        known = range(len(value)) if isinstance(value, list | tuple) else value if isinstance(value, Mapping) else ()
        if step in known:
            value, path = value[step], (*path, step)
    return value, path


def _not_plain(value: Any, path: KeyPath) -> _Fault | None:
    """The first part that JSON would bend (a number as key becomes text) or does not know."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            if not isinstance(key, str):
                return _Fault(path, f"{dotted(path)} has the key {key!r}; allowed: text as keys.")
            fault = _not_plain(item, (*path, key))
            if fault is not None:
                return fault
        return None
    if isinstance(value, list | tuple):
        return next(filter(None, (_not_plain(item, (*path, at)) for at, item in enumerate(value))), None)
    if value is None or isinstance(value, str | bool | int | float):
        return None
    allowed = "text, numbers, booleans, null, and lists and mappings of these"
    return _Fault(path, f"{dotted(path)} is a Python {type(value).__name__}; allowed: {allowed}.")


@functools.cache
def _adapter(hint: Any) -> TypeAdapter[Any]:
    return TypeAdapter(hint, config=Settings.__pydantic_config__)


def _is_settings(hint: Any) -> bool:
    return isinstance(hint, type) and issubclass(hint, Settings)


def _holds_settings(hint: Any) -> bool:
    return _is_settings(hint) or any(_holds_settings(argument) for argument in typing.get_args(hint))


def _names(cls: type) -> str:
    return ", ".join(sorted(field.name for field in dataclasses.fields(cls) if field.init))
