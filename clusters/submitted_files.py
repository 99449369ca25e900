"""Files that a run's judges read: named by a relative path they are here, and a submitted job would not find them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from onibi.actors.annotators.lexicon import LEXICON_FOLDER
from onibi.actors.annotators.prompt_template import shipped_prompts
from onibi.clusters.run_settings import RunSettings
from onibi.platform.config import to_mapping
from onibi.platform.errors import ConfigError

_SECTIONS = ("annotator", "annotators", "annotation", "reward_model")
_SERVED = ("openai",)
"""Kinds whose ``model`` is a server's, never a folder."""


def check_files(settings: RunSettings) -> None:
    """Whether the cluster can find every file and folder that the settings name.

    They are not sent along: a job's folder is removed at its end, and a resumed run reads them again. An absolute path,
    or one of ``~``, is taken to be the cluster's.

    Raises: ConfigError naming each setting whose path is relative.
    """
    mapping = to_mapping(settings)
    named = [found for section in _SECTIONS for found in _relative(mapping[section], section)]
    if named:
        listed = ", ".join(f"{name} is {value!r}" for name, value in named)
        raise ConfigError(
            f"{listed}: files of this machine are not sent, and in the job's folder, where a relative path would lie, "
            "nothing outlives the job. Put them where all nodes of the cluster see them, and give the absolute path "
            "there."
        )


def _relative(section: Mapping[str, Any], name: str) -> Iterator[tuple[str, str]]:
    for key, value in section.items():
        if isinstance(value, Mapping):
            yield from _relative(value, f"{name}.{key}")
        elif isinstance(value, str) and _is_file_here(section, name, key, value):
            yield f"{name}.{key}", value


def _is_file_here(section: Mapping[str, Any], name: str, key: str, value: str) -> bool:
    """Whether a setting names a file or folder, and by a relative path."""
    if not value or Path(value).is_absolute() or (value.startswith("~") and key != "lexicon"):  # there ~ is not read
        return False
    kind = section.get("kind")
    match key:
        case "lexicon":
            return not (LEXICON_FOLDER / f"{value}.yaml").is_file()
        case "prompt":
            return value not in shipped_prompts()
        case "path":
            return kind == "replay"  # of other kinds it is an import path
        case "table":
            return name == "annotation" and value not in ("auto", "none")
        case "file" | "fitted":
            return True
        case "model":
            return kind not in _SERVED and Path(value).is_dir()  # else it is a name on a hub
    return False
