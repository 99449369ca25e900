"""Documents over one another: a run file over the preset that it extends, ``--set a.b=c`` over both."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from onibi.platform.config_words import describe_found, dotted
from onibi.platform.errors import ConfigError
from onibi.platform.yaml_document import Document, KeyPath, parse_value


def merge(base: Document, top: Document) -> Document:
    """``base`` with the values of ``top`` over it, section by section; lists are replaced whole, and ``{}`` empties.

    A section whose written ``kind`` differs in ``top`` is replaced whole, too: the rest belongs to the old kind.
    """
    return Document(
        source=top.source,
        mapping=_merged(base.mapping, top.mapping),
        places={**base.places, **top.places},
    )


def overridden(document: Document, overrides: Sequence[str], faults: list[str]) -> Document:
    """``document`` with each ``a.b=c`` merged over it; what is wrong with one is added to ``faults``."""
    for override in _kinds_first(overrides):
        try:
            document = merge(document, _override_document(override, document))
        except ConfigError as error:
            faults.append(str(error))
    return document


def _merged(base: Mapping[str, Any], top: Mapping[str, Any]) -> dict[str, Any]:
    if "kind" in base and "kind" in top and base["kind"] != top["kind"]:
        return dict(top)
    result = dict(base)
    for key, value in top.items():
        both = isinstance(value, Mapping) and value and isinstance(result.get(key), Mapping)
        result[key] = _merged(result[key], value) if both else value
    return result


def _kinds_first(overrides: Sequence[str]) -> list[str]:
    """A new kind drops the old one's keys, and must not drop what another override gives to the new one.

    One that empties (``a={}``) drops the kind as well, and stays before all that follow it.
    """
    ranks = []
    for text in overrides:
        key, _, value = text.partition("=")
        ranks.append(0 if value.strip() == "{}" else 1 if key.strip().endswith(".kind") else 2)
    stretches = itertools.accumulate(int(rank == 0) for rank in ranks)
    order = sorted(zip(stretches, ranks, range(len(overrides)), strict=True))
    return [overrides[at] for _, _, at in order]


def _override_document(override: str, document: Document) -> Document:
    """What ``--set a.b=c`` adds: {a: {b: c}}."""
    written = f"--set {override}"
    key, equals, text = override.partition("=")
    names = tuple(key.strip().split("."))
    if not equals or not all(names):
        raise ConfigError(f"{written}: expected a key and a value, as in --set learner.discount=0.99.")
    value = parse_value(text, written)
    places: dict[KeyPath, str] = {names: written}
    section: Any = document.mapping
    for depth, name in enumerate(names[:-1], start=1):
        section = section.get(name)
        if section is None:
            places[names[:depth]] = written
            section = {}
        elif not isinstance(section, Mapping):
            where = dotted(names[:depth])
            raise ConfigError(f"{written}: {where} is {describe_found(section)}, which has no keys; set {where} whole.")
    for name in reversed(names):
        value = {name: value}
    return Document(source=document.source, mapping=value, places=places)
