"""Prompt templates: YAML files that say what is judged and against what; wording that users may replace.

    version: 1
    context: …                  # what the judge sees, and of which world
    goal: …                     # used where the settings name none
    helpful: …                  # what the word means
    unhelpful: …
    examples:                   # worked ones, each under a goal of its own: the judge learns to judge *against a goal*
      - {goal: …, caption: …, label: helpful | unhelpful, why: …}
    pair_examples:
      - {goal: …, first: …, second: …, answer: first | second | tie, why: …}

How the answer must look is not the template's: that is read by ``reply`` and written by ``prompt``.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from onibi.platform.annotation.labels import LabelValue, PreferenceValue
from onibi.platform.config_words import describe_found, nearest
from onibi.platform.errors import ConfigError

PROMPT_FOLDER = Path(__file__).parent / "prompts"
"""Templates that ship with the package; a setting names them without ".yaml"."""

_TEXTS = ("context", "goal", "helpful", "unhelpful")
_LISTS = ("examples", "pair_examples")
_KEYS = ("version", *_TEXTS, *_LISTS)
_LABELS = (LabelValue.HELPFUL.value, LabelValue.UNHELPFUL.value)
_ANSWERS = (PreferenceValue.FIRST.value, PreferenceValue.SECOND.value, PreferenceValue.TIE.value)


@dataclass(frozen=True)
class LabelExample:
    """One caption judged against a goal."""

    goal: str
    caption: str
    label: LabelValue
    why: str


@dataclass(frozen=True)
class PairExample:
    """Two captions compared against a goal."""

    goal: str
    first: str
    second: str
    answer: PreferenceValue
    why: str


@dataclass(frozen=True)
class PromptTemplate:
    """A checked template file; every text on one line."""

    name: str
    version: int
    context: str
    goal: str
    helpful: str
    unhelpful: str
    examples: tuple[LabelExample, ...]
    pair_examples: tuple[PairExample, ...]


def shipped_prompts() -> list[str]:
    """Names of the templates that ship with Onibi, sorted."""
    return sorted(file.stem for file in PROMPT_FOLDER.glob("*.yaml"))


def read_prompt_template(prompt: str) -> PromptTemplate:
    """Read and check a template.

    Args:
        prompt: the name of one that ships, or the path of a YAML file.
    Raises: ConfigError with all faults of the file at once.
    """
    shipped = PROMPT_FOLDER / f"{prompt}.yaml"
    path = shipped if shipped.is_file() else Path(prompt).expanduser()
    try:
        document = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        known = shipped_prompts()
        raise ConfigError(
            f"prompt template {prompt!r} cannot be read ({error}).{nearest(prompt, known)} Give the path of a YAML "
            f"file, or one of: {', '.join(known)}"
        ) from error
    except yaml.YAMLError as error:
        raise ConfigError(f"prompt template {path} is not valid YAML: {error}") from error
    if not isinstance(document, dict):
        raise ConfigError(f"prompt template {path}: found {describe_found(document)}, expected keys {', '.join(_KEYS)}")
    faults = [
        f"unknown key {key!r}.{nearest(str(key), _KEYS)} Allowed: {', '.join(_KEYS)}"
        for key in document
        if key not in _KEYS
    ]
    version = document.get("version")
    if not isinstance(version, int) or isinstance(version, bool) or version < 1:
        faults.append(f"version is {describe_found(version)}; it must be a whole number from 1, raised with each edit")
    texts = {key: _text(document, key, "", faults) for key in _TEXTS}
    labels = _entries(document, "examples", ("goal", "caption", "label", "why"), ("label", _LABELS), faults)
    pairs = _entries(
        document, "pair_examples", ("goal", "first", "second", "answer", "why"), ("answer", _ANSWERS), faults
    )
    if faults:
        raise ConfigError(f"prompt template {path}:\n  " + "\n  ".join(faults))
    return PromptTemplate(
        name=path.stem,
        version=int(str(version)),
        **texts,
        examples=tuple(
            LabelExample(entry["goal"], entry["caption"], LabelValue(entry["label"]), entry["why"]) for entry in labels
        ),
        pair_examples=tuple(
            PairExample(entry["goal"], entry["first"], entry["second"], PreferenceValue(entry["answer"]), entry["why"])
            for entry in pairs
        ),
    )


def _text(mapping: dict[Any, Any], key: str, place: str, faults: list[str]) -> str:
    value = mapping.get(key)
    if not isinstance(value, str) or not value.strip():
        faults.append(f"{place}{key} is {describe_found(value)}; it must be text")
        return ""
    return " ".join(value.split())


def _entries(
    document: dict[Any, Any], name: str, keys: tuple[str, ...], choice: tuple[str, tuple[str, ...]], faults: list[str]
) -> list[dict[str, str]]:
    found = document.get(name)
    if not isinstance(found, list):
        faults.append(f"{name} is {describe_found(found)}; it must be a list (an empty one is [])")
        return []
    entries = []
    for number, entry in enumerate(found, start=1):
        place = f"{name}, entry {number}: "
        if not isinstance(entry, dict) or set(entry) != set(keys):
            faults.append(f"{place}found {describe_found(entry)}, expected the keys {', '.join(keys)}")
            continue
        texts = {key: _text(entry, key, place, faults) for key in keys}
        field, allowed = choice
        if texts[field] and texts[field] not in allowed:
            faults.append(f"{place}{field} is {texts[field]!r}; allowed are {', '.join(allowed)}")
        entries.append(texts)
    return entries
