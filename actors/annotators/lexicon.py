"""Labels by regular expressions from a YAML file: needs no model and no network, so that everything always runs.

    goal: Make progress in the game: …
    unmatched: unhelpful            # or invalid (asked again, then parked), or helpful
    rules:                          # the first one that matches a key decides
      - match: '^The door opens'
        label: helpful
        why: a way further is open

Difference from ONI: no language model is asked. A lexicon is a judge for tests, demonstrations and baselines: the
lexicon ``all_ones`` pays every caption, which is ONI's reward without a judge.
"""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import yaml

from onibi.platform.annotation.annotator import AnnotationRequest, PairRequest, prefer_by_scores
from onibi.platform.annotation.captions import text_hash
from onibi.platform.annotation.labels import Label, LabelValue, Preference, prompt_hash
from onibi.platform.config import Settings
from onibi.platform.errors import ConfigError

LEXICON_FOLDER = Path(__file__).parent / "lexicons"
"""Lexicons that ship with the package; a setting names them without ".yaml"."""

_FILE_KEYS = ("goal", "unmatched", "rules")
_RULE_KEYS = ("match", "label", "why")
_RULE_LABELS = (LabelValue.HELPFUL.value, LabelValue.UNHELPFUL.value)
_UNMATCHED = tuple(value.value for value in LabelValue)
_SCORES = {LabelValue.HELPFUL: 1.0, LabelValue.UNHELPFUL: 0.0, LabelValue.INVALID: math.nan}


@dataclass(frozen=True, kw_only=True)
class LexiconSettings(Settings):
    """Which lexicon judges."""

    kind: Literal["lexicon"] = "lexicon"
    lexicon: str = "nethack"  # name of one that ships with Onibi, or path of a YAML file
    goal: str | None = None  # must be the lexicon's own where given: rules answer one goal
    # Label of keys that no rule matches; null: the file's. "invalid" is asked again and parked in the end.
    unmatched: Literal["helpful", "unhelpful", "invalid"] | None = None


@dataclass(frozen=True)
class LexiconRule:
    """One rule: a key in which ``pattern`` is found gets ``value``."""

    pattern: re.Pattern[str]
    value: LabelValue
    why: str


@dataclass(frozen=True)
class Lexicon:
    """A checked lexicon file."""

    path: Path
    goal: str
    unmatched: LabelValue
    rules: tuple[LexiconRule, ...]

    def judge(self, key: str) -> tuple[LabelValue, str]:
        """Verdict on a key, and which rule gave it, in words."""
        for number, rule in enumerate(self.rules, start=1):
            if rule.pattern.search(key):
                return rule.value, f"rule {number}: {rule.why}"
        return self.unmatched, "no rule matches"


class LexiconAnnotator:
    """Judges keys by the first matching rule.

    Args:
        settings: which lexicon.
        clock: seconds since 1970, for the labels' time.
    Raises: ConfigError where the file is missing or at fault; all faults of a file at once.
    """

    Settings: ClassVar[type[LexiconSettings]] = LexiconSettings

    def __init__(self, settings: LexiconSettings, clock: Callable[[], float] = time.time) -> None:
        self.settings = settings
        self.lexicon = read_lexicon(_path_of(settings.lexicon))
        self._clock = clock
        if settings.goal is not None and settings.goal.split() != self.lexicon.goal.split():
            raise ConfigError(
                f"annotator.goal is {settings.goal!r}, but the rules of {self.lexicon.path} were written for "
                f"{self.lexicon.goal!r}. Leave it out, or write a lexicon for yours and name its "
                "path in annotator.lexicon"
            )
        if settings.unmatched is not None:
            given = LabelValue(settings.unmatched)
            self.lexicon = Lexicon(self.lexicon.path, self.lexicon.goal, given, self.lexicon.rules)

    @property
    def goal(self) -> str:
        """The lexicon's goal."""
        return self.lexicon.goal

    @property
    def model(self) -> str:
        """The lexicon's name."""
        return self.lexicon.path.stem

    @property
    def is_free(self) -> bool:
        """Rules cost nothing."""
        return True

    @property
    def prompt_version(self) -> str:
        """Hash of goal and rules: an edited lexicon judges anew, a moved or re-commented one does not."""
        rules = (f"{rule.value.value}\n{rule.pattern.pattern}" for rule in self.lexicon.rules)
        return prompt_hash("lexicon", self.lexicon.goal, self.lexicon.unmatched.value, *rules)

    def annotate(self, requests: Sequence[AnnotationRequest], goal: str) -> Iterator[Label]:
        """One label per request, in order. Raises: ConfigError for a goal that the rules were not written for."""
        if goal != self.lexicon.goal:
            raise ConfigError(f"lexicon {self.lexicon.path} judges {self.lexicon.goal!r}, it was asked about {goal!r}")
        version = self.prompt_version
        for request in requests:
            started = time.perf_counter()
            value, reply = self.lexicon.judge(request.key_text)
            yield Label(
                key_hash=text_hash(request.key_text),
                key_text=request.key_text,
                raw_text=request.raw_text,
                value=value,
                score=_SCORES[value],
                annotator="lexicon",
                model=self.model,
                prompt_version=version,
                goal=goal,
                latency_seconds=time.perf_counter() - started,
                tokens=0,
                reply=reply,
                time_seconds=self._clock(),
            )

    def prefer(self, pairs: Sequence[PairRequest], goal: str) -> Iterator[Preference]:
        """By the labels of both keys: a helpful one wins, else they tie."""
        return prefer_by_scores(self, pairs, goal)

    def statistics(self) -> dict[str, float]:
        """Nothing beside what every annotator's labels tell."""
        return {}

    def close(self) -> None:
        """Holds nothing."""


def read_lexicon(path: Path) -> Lexicon:
    """Read and check a lexicon file.

    Raises: ConfigError naming the file and, for each fault, the rule's number, the pattern and the position in it.
    """
    try:
        document = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        shipped = ", ".join(sorted(file.stem for file in LEXICON_FOLDER.glob("*.yaml")))
        raise ConfigError(
            f"lexicon {path} cannot be read ({error}); give the path of a YAML file, or one of: {shipped}"
        ) from error
    except yaml.YAMLError as error:
        raise ConfigError(f"lexicon {path} is not valid YAML: {error}. Put patterns in single quotes") from error
    if not isinstance(document, dict):
        raise ConfigError(
            f"lexicon {path}: found {type(document).__name__} at the top, expected the keys {', '.join(_FILE_KEYS)}"
        )
    faults = [f"unknown key {key!r}; allowed are {', '.join(_FILE_KEYS)}" for key in document if key not in _FILE_KEYS]
    goal = document.get("goal")
    if not isinstance(goal, str) or not goal.strip():
        faults.append(f"goal is {goal!r}; it must be the goal in plain words")
    unmatched = document.get("unmatched")
    if unmatched not in _UNMATCHED:
        faults.append(f"unmatched is {unmatched!r}; allowed are {', '.join(_UNMATCHED)}")
    entries = document.get("rules")
    if not isinstance(entries, list):
        faults.append(f"rules is {type(entries).__name__}; it must be a list (an empty one is [])")
        entries = []
    rules = [_read_rule(number, entry, faults) for number, entry in enumerate(entries, start=1)]
    if faults:
        raise ConfigError(f"lexicon {path}: " + "\n".join(faults))
    return Lexicon(
        path, " ".join(str(goal).split()), LabelValue(str(unmatched)), tuple(rule for rule in rules if rule is not None)
    )


def _read_rule(number: int, entry: Any, faults: list[str]) -> LexiconRule | None:
    place = f"rule {number}"
    if not isinstance(entry, dict) or set(entry) != set(_RULE_KEYS):
        found = sorted(map(str, entry)) if isinstance(entry, dict) else type(entry).__name__
        faults.append(f"{place}: found {found}, expected the keys {', '.join(_RULE_KEYS)}")
        return None
    pattern, label, why = (entry[key] for key in _RULE_KEYS)
    if label not in _RULE_LABELS:
        faults.append(f"{place}: label is {label!r}; allowed are {', '.join(_RULE_LABELS)}")
    if not isinstance(why, str) or not why.strip():
        faults.append(f"{place}: why is {why!r}; say in a few words why the rule judges so")
    if not isinstance(pattern, str) or not pattern:
        faults.append(f"{place}: match is {pattern!r}; it must be a regular expression in quotes")
        return None
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        faults.append(f"{place}: pattern {pattern!r} is broken at position {error.pos}: {error.msg}")
        return None
    if compiled.search("") is not None:
        faults.append(
            f"{place}: pattern {pattern!r} matches everything, so no later rule could; name what it should find"
        )
    return LexiconRule(compiled, LabelValue(label), str(why)) if label in _RULE_LABELS else None


def _path_of(lexicon: str) -> Path:
    shipped = LEXICON_FOLDER / f"{lexicon}.yaml"
    return shipped if shipped.is_file() else Path(lexicon)
