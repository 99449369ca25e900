"""Which annotator judges stored captions: the one that is asked for, set up as the run that heard them has it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from onibi.actors.annotators.auto import without_auto
from onibi.actors.annotators.registry import ANNOTATORS
from onibi.platform.annotation.annotator import Annotator
from onibi.platform.config import load_class, read_chosen
from onibi.platform.errors import ConfigError
from onibi.platform.run_folder import find_run

_AUTO = "auto"


def judge_of(source: str, runs_folder: Path, named: str | None, overrides: list[str]) -> Annotator:
    """The annotator for the captions of a run, a folder or a file.

    Args:
        source: what was heard; settings are taken from it where it is a run.
        runs_folder: where runs are looked for.
        named: a kind, or the name of one of the run's ``annotators``; None for the run's own judge, or ``auto``.
        overrides: ``KEY=VALUE`` of its settings, later ones win.
    Raises: ConfigError where there is no such annotator, its settings are wrong, or those of the run cannot be read:
        another judge would be asked, and perhaps paid, in the place of its own.
    """
    own = _settings(_config(source, runs_folder), named)
    chosen: Any = without_auto(read_chosen(ANNOTATORS, own, source=f"annotator {own['kind']}", overrides=overrides))
    annotator: Annotator = load_class(ANNOTATORS, chosen.kind)(chosen)
    return annotator


def _config(source: str, runs_folder: Path) -> dict[str, Any]:
    """The settings of a run; empty where the source is none."""
    try:
        run = find_run(runs_folder, source)
    except ConfigError:
        return {}
    return run.read_config()


def _settings(config: dict[str, Any], named: str | None) -> dict[str, Any]:
    """Of the annotator that is ``named``, as the run has it; of its kind alone where the run has none like it."""
    own, others = config.get("annotator") or {"kind": _AUTO}, config.get("annotators") or {}
    if named is None:
        heard = config.get("captioner", {}).get("kind") != "none"
        return dict(own) if heard else {"kind": _AUTO}
    if named in others:
        return dict(others[named])
    alike = [each for each in (own, *others.values()) if each["kind"] == named]
    return dict(alike[0]) if alike else {"kind": named}
