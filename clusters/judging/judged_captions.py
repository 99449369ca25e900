"""Captions that were judged by hand, against which annotators are measured (``onibi annotate --benchmark``).

A set is a CSV file of captions with a column of verdicts for each goal, and beside it ``goals.yaml`` with the goals in
plain words. The one that ships holds captions of real NetHack and MiniHack games (docs/judges.md).
"""

from __future__ import annotations

import csv
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

import yaml

from onibi.platform.errors import ConfigError

SHIPPED = Path(__file__).parents[1] / "judge_captions" / "nethack.csv"
"""The set that ships with the package."""

_GOALS_FILE = "goals.yaml"
_KEY, _CAPTION, _TASK = "key", "caption", "task"


class HandLabel(StrEnum):
    """Verdict by hand. ``LEAVE_OUT``: it depends on what the caption does not tell; it counts for nobody."""

    HELPFUL = "helpful"
    UNHELPFUL = "unhelpful"
    LEAVE_OUT = "leave_out"


@dataclass(frozen=True)
class JudgedCaption:
    """One caption: its key, the sentence as it was said, and the verdict for each goal."""

    key: str
    caption: str
    labels: Mapping[str, HandLabel]


@dataclass(frozen=True)
class JudgedSet:
    """Captions and the goals they were judged against."""

    path: Path
    goals: Mapping[str, str]  # in plain words, by name
    captions: tuple[JudgedCaption, ...]

    def for_goal(self, goal: str) -> list[tuple[JudgedCaption, bool]]:
        """The captions that have a verdict for this goal, each with whether it is helpful.

        Raises: ConfigError for a goal that the set does not have.
        """
        if goal not in self.goals:
            raise ConfigError(f"{self.path} has no goal {goal!r}; it was judged for {', '.join(self.goals)}")
        verdicts = [(caption, caption.labels[goal]) for caption in self.captions]
        return [
            (caption, label is HandLabel.HELPFUL) for caption, label in verdicts if label is not HandLabel.LEAVE_OUT
        ]


def read_judged_captions(path: Path = SHIPPED) -> JudgedSet:
    """Read and check a set.

    Raises: ConfigError where a file is missing or at fault; all faults of the captions at once.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as opened:  # spreadsheets put a byte order mark in front
            reader = csv.DictReader(opened)
            columns = list(reader.fieldnames or ())
            rows = list(reader)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ConfigError(f"captions judged by hand: {path} cannot be read ({error}); name a CSV file") from error
    goals = _read_goals(path.parent / _GOALS_FILE)
    judged = [column for column in columns if column not in (_KEY, _CAPTION, _TASK)]
    unknown = sorted(set(judged) - set(goals))
    if _KEY not in columns or _CAPTION not in columns or not judged or unknown:
        raise ConfigError(
            f"{path}: its columns are {', '.join(columns) or 'none'}; it needs {_KEY}, {_CAPTION}, and one for "
            f"each goal of {_GOALS_FILE} ({', '.join(goals)})"
            + (f"; not known: {', '.join(unknown)}" if unknown else "")
        )
    faults: list[str] = []
    captions = [_read_row(number, row, judged, faults) for number, row in enumerate(rows, start=2)]
    seen: dict[str, int] = {}
    for number, row in enumerate(rows, start=2):
        first = seen.setdefault(str(row[_KEY]), number)
        if first != number:
            faults.append(f"line {number}: the key {row[_KEY]!r} stands in line {first}, too")
    if faults or not captions:
        raise ConfigError(f"{path}: " + ("\n".join(faults) or "it holds no captions"))
    return JudgedSet(path, {goal: goals[goal] for goal in goals if goal in judged}, tuple(captions))


def _read_row(number: int, row: Mapping[str, str], goals: list[str], faults: list[str]) -> JudgedCaption:
    labels = {}
    for goal in goals:
        found = row[goal]
        if found not in tuple(HandLabel):
            faults.append(f"line {number}: {goal} is {found!r}; allowed: {', '.join(HandLabel)}")
        else:
            labels[goal] = HandLabel(found)
    for column in (_KEY, _CAPTION):
        if not (row[column] or "").strip():
            faults.append(f"line {number}: {column} is empty")
    return JudgedCaption(row[_KEY], row[_CAPTION], labels)


def _read_goals(path: Path) -> dict[str, str]:
    try:
        document = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(
            f"goals of captions judged by hand: {path} cannot be read ({error}); beside the captions it maps names of "
            "goals to goals in plain words"
        ) from error
    if not isinstance(document, dict) or not all(
        isinstance(name, str) and isinstance(text, str) and text.strip() for name, text in document.items()
    ):
        raise ConfigError(f"{path}: it must map names of goals to goals in plain words")
    return {name: " ".join(text.split()) for name, text in document.items()}
