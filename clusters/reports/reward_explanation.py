"""What a run pays its captions, and why: keys by pay, who judged them how, and the alarms that were up (no Ray)."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from onibi.clusters.caption_pay import PAID
from onibi.platform.annotation.labels import (
    Label,
    LabelValue,
    Preference,
    PreferenceTable,
    PreferenceValue,
    labels_from_arrow,
    preferences_from_arrow,
)
from onibi.platform.checkpoint import load_checkpoint
from onibi.platform.errors import ConfigError
from onibi.platform.history import ENV_STEPS, Row, read_history
from onibi.platform.rewards.hack_alarms import ALARMS
from onibi.platform.run_folder import RunFolder

FIGURES = (
    "rewards/best_key_share",
    "rewards/heard_share",
    "rewards/new_keys_per_episode",
    "rewards/discounted_total_of_success",
    "rewards/discounted_total_of_failure",
    "actors/success_rate",
    "actors/intrinsic_return",
)
"""Metrics of a run's history that tell of its caption rewards."""


@dataclass(frozen=True, kw_only=True)
class ExplainedKey:
    """One key."""

    key: str
    example: str
    """A caption that brought it."""
    sightings: int
    """Rows in which it was met."""
    paid: float | None
    """r_int that it brought in rollouts, before the coefficient; None where nothing has kept it."""
    share: float | None
    """Of all that was paid."""
    verdict: str
    """Of the newest readable label; "never asked", or "" where there is none."""
    score: float | None
    """Mean of the readable labels."""
    votes: int
    """Readable labels: the newest of each judge and vote."""
    helpful_votes: int
    unreadable: int
    """Replies that could not be read."""
    won: int
    """Pairs in which it was the better one; of several answers of a judge on one pair the newest counts."""
    lost: int
    tied: int
    replies: tuple[str, ...]
    """What judges answered, the newest first, each with its judge."""


@dataclass(frozen=True, kw_only=True)
class AlarmCourse:
    """When an alarm was up in a run."""

    name: str
    is_up: bool
    """At the end of the history."""
    share: float
    """Of the history's intervals."""
    first_env_steps: int
    last_env_steps: int


@dataclass(frozen=True, kw_only=True)
class Explanation:
    """All that is told of a run's caption rewards."""

    run: str
    goals: tuple[str, ...]
    env_steps: int
    """Of the checkpoint that the keys are from."""
    keys: tuple[ExplainedKey, ...]
    """The best paid first, then the most met."""
    alarms: tuple[AlarmCourse, ...]
    """Those that were up at any time."""
    figures: dict[str, float] = field(default_factory=dict)
    """The newest of ``FIGURES`` in the history, by their names."""

    def to_json(self, limit: int) -> dict[str, Any]:
        """As plain values, with the first ``limit`` keys."""
        told = asdict(self)
        told["keys"] = list(told["keys"][:limit])
        return told


def explain(run: RunFolder) -> Explanation:
    """Read a run's newest whole checkpoint and its history.

    Raises: CheckpointError where it has no whole checkpoint, ConfigError where it hears no captions.
    """
    checkpoint = load_checkpoint(run.checkpoints)
    tables = checkpoint.tables
    if "keys" not in tables or not tables["keys"].num_rows:
        raise ConfigError(f"run {run.name!r}: has no captions, so none are paid. Does its captioner.kind say none?")
    labels = labels_from_arrow(tables["labels"], source=f"{run.name}, labels")
    pairs = (
        preferences_from_arrow(tables["preferences"], source=f"{run.name}, preferences")
        if "preferences" in tables
        else []
    )
    rows = tables["keys"].to_pylist()
    paid = _paid(run, rows, tables)
    keys = _explained(rows, paid, labels, pairs)
    history = read_history(run.history)
    return Explanation(
        run=run.name,
        goals=tuple(dict.fromkeys([*(label.goal for label in labels), *(pair.goal for pair in pairs)])),
        env_steps=checkpoint.step,
        keys=tuple(sorted(keys, key=lambda key: (-(key.paid or 0.0), -key.sightings, key.key))),
        alarms=alarm_courses(history),
        figures={name: value for name in FIGURES if (value := _newest(history, name)) is not None},
    )


def alarm_courses(history: Sequence[Row]) -> tuple[AlarmCourse, ...]:
    """When each alarm was up; those that never were are left out."""
    courses = []
    for name in ALARMS:
        told = [
            (_number(row.get(ENV_STEPS)) or 0.0, bool(_number(row.get(f"alarms/{name}"))))
            for row in history
            if f"alarms/{name}" in row
        ]
        steps = [int(step) for step, up in told if up]
        if steps:
            courses.append(
                AlarmCourse(
                    name=name,
                    is_up=told[-1][1],
                    share=len(steps) / len(told),
                    first_env_steps=steps[0],
                    last_env_steps=steps[-1],
                )
            )
    return tuple(courses)


def _paid(run: RunFolder, rows: Sequence[Mapping[str, Any]], tables: Mapping[str, Any]) -> list[float] | None:
    """What each key was paid: by the checkpoint, else by the table of captions that an ended run left; or unknown."""
    if PAID in tables:
        known = tables[PAID]["paid"].to_pylist()
        return [*known, *[0.0] * (len(rows) - len(known))][: len(rows)]
    file = run.artifacts / "captions.csv"
    if not file.is_file():
        return None
    with file.open(encoding="utf-8", newline="") as lines:
        told = {line["key"]: float(line["paid"] or 0.0) for line in csv.DictReader(lines)}
    return [told.get(row["text"], 0.0) for row in rows]


def _explained(
    rows: Sequence[Mapping[str, Any]],
    paid: Sequence[float] | None,
    labels: Sequence[Label],
    pairs: Sequence[Preference],
) -> list[ExplainedKey]:
    of_key: dict[int, list[Label]] = {}
    for label in labels:
        of_key.setdefault(label.key_hash, []).append(label)
    scores: dict[tuple[int, PreferenceValue], int] = {}
    # Of a pair that a judge was asked about twice its newest readable answer, as with labels.
    for pair in PreferenceTable(pairs).valid({pair.judge for pair in pairs}):
        for key_hash, value in ((pair.first_hash, pair.value), (pair.second_hash, _seen_from_second(pair.value))):
            scores[key_hash, value] = scores.get((key_hash, value), 0) + 1
    total = math.fsum(paid) if paid else 0.0
    found = []
    for number, row in enumerate(rows):
        mine = of_key.get(row["hash"], [])
        readable = {(label.judge, label.vote): label for label in mine if label.is_readable}
        newest = [label for label in reversed(mine) if label.is_readable]
        verdict = newest[0].value.value if newest else "" if row["askable"] else "never asked"
        pay = None if paid is None else float(paid[number])
        found.append(
            ExplainedKey(
                key=row["text"],
                example=row["example"],
                sightings=row["sightings"],
                paid=pay,
                share=None if pay is None or total <= 0 else pay / total,
                verdict=verdict,
                score=float(np.mean([label.score for label in readable.values()])) if readable else None,
                votes=len(readable),
                helpful_votes=sum(label.value == LabelValue.HELPFUL for label in readable.values()),
                unreadable=sum(not label.is_readable for label in mine),
                won=scores.get((row["hash"], PreferenceValue.FIRST), 0),
                lost=scores.get((row["hash"], PreferenceValue.SECOND), 0),
                tied=scores.get((row["hash"], PreferenceValue.TIE), 0),
                replies=tuple(dict.fromkeys(f"{label.annotator} ({label.model}): {label.reply}" for label in newest)),
            )
        )
    return found


def _seen_from_second(value: PreferenceValue) -> PreferenceValue:
    return {PreferenceValue.FIRST: PreferenceValue.SECOND, PreferenceValue.SECOND: PreferenceValue.FIRST}.get(
        value, value
    )


def _newest(history: Sequence[Row], name: str) -> float | None:
    for row in reversed(history):
        value = _number(row.get(name))
        if value is not None:
            return value
    return None


def _number(value: float | list[float] | None) -> float | None:
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None
