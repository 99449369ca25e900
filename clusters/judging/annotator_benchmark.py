"""Measures an annotator against captions judged by hand: a user learns how good a judge is before paying for a run."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from onibi.actors.annotators.auto import without_auto
from onibi.actors.annotators.registry import ANNOTATORS
from onibi.clusters.judging.judged_captions import SHIPPED, JudgedCaption, read_judged_captions
from onibi.clusters.reports.figures import UNKNOWN, count_text, share_text
from onibi.platform.annotation.annotator import AnnotationRequest, Annotator
from onibi.platform.annotation.captions import KeyIndex, printable, text_hash
from onibi.platform.annotation.judge_scores import Estimate, JudgeScores, judge_scores
from onibi.platform.annotation.labels import Label, LabelValue
from onibi.platform.config import load_class, read_chosen, read_settings
from onibi.platform.errors import AnnotatorError, ConfigError

_FIXED_GOAL = ("lexicon", "replay", "custom")  # rules, recorded labels and users' classes have a goal of their own
_RESAMPLES = 2_000
_ANY_WIDTH = 10_000  # characters
_ATTEMPTS = 3  # of captions without a label that can be read, as the desk asks again


@dataclass(frozen=True)
class BenchmarkRow:
    """One annotator on one goal."""

    goal: str  # its name in the set
    annotator: str
    model: str
    asked_goal: str  # what the annotator was asked, in plain words
    own_goal: bool  # it judges that goal and no other
    scores: JudgeScores
    first_seconds: float  # until the first label: a model is loaded, a server wakes up
    seconds: float  # for all others
    tokens: int
    cost: float
    stopped_by: str  # why captions are left without a label; "" where that has no reason of its own

    @property
    def captions_per_second(self) -> float:
        """Labels a second, the first one left out."""
        return (self.scores.labelled - 1) / self.seconds if self.seconds > 0 and self.scores.labelled > 1 else math.nan


def run_benchmark(
    kind: str,
    settings: Sequence[str] = (),
    goals: Sequence[str] = (),
    *,
    captions: Path = SHIPPED,
    limit: int | None = None,
    seed: int = 1,
    on_progress: Callable[[str, int, int], None] = lambda _goal, _answered, _total: None,
) -> list[BenchmarkRow]:
    """Ask an annotator about all captions of a set, for each goal, and compare.

    Args:
        kind: of the annotator; ``auto`` is resolved.
        settings: its settings, "key=value". With ``goal=…`` among them that is asked, else the goal of the set.
        goals: names of the set's goals; all where empty.
        captions: the set.
        limit: only so many captions of each goal, drawn with the seed, as many helpful ones as their share gives.
        seed: of the draw and of the intervals.
        on_progress: told (goal, captions answered, captions) now and then.
    Returns: a row for each goal.
    Raises: ConfigError for what is not allowed; AnnotatorError where it cannot judge at all.
    """
    judged = read_judged_captions(captions)
    rows = []
    for goal in goals or tuple(judged.goals):
        chosen = _drawn(judged.for_goal(goal), limit, np.random.default_rng([seed, 0]))
        annotator, own_goal = _make(kind, settings, judged.goals[goal])
        try:
            rows.append(_measure(annotator, kind, goal, chosen, own_goal, seed, on_progress))
        finally:
            annotator.close()
    return rows


def benchmark_table(rows: Sequence[BenchmarkRow], width: int | None = None) -> Group:
    """The rows for people, with 95% intervals.

    Args:
        rows: of one annotator or of several.
        width: characters of the terminal; where one table is wider, there are two, each with some of the columns.
    """
    title = Text("Annotators against captions judged by hand", "italic")
    whole = _table_of(rows, _COLUMNS)
    tables: list[RenderableType] = [title, whole]
    if width is not None and Console(width=_ANY_WIDTH).measure(whole).maximum > width:
        who = list(dict.fromkeys(_COLUMNS["annotator"](row) for row in rows))
        told = [Text(f"annotator: {who[0]}"), Text()] if len(who) == 1 else []
        tables = [title, *told, *(_table_of(rows, _with_whom(names, who), lines=False) for names in _HALVES)]
    notes = [f"{row.goal}: {row.stopped_by}" for row in rows if row.stopped_by]
    if any(row.own_goal for row in rows):
        notes.append("* it judges its own goal, not this one")
    return Group(*tables, *(Text(printable(note), "dim") for note in notes))


def _with_whom(names: Sequence[str], who: Sequence[str]) -> Sequence[str]:
    return names if len(who) == 1 else (names[0], "annotator", *names[1:])


def _table_of(rows: Sequence[BenchmarkRow], names: Iterable[str], *, lines: bool = True) -> Table:
    table = Table() if lines else Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for name in names:
        table.add_column(name, justify="left" if name in ("goal", "annotator") else "right", no_wrap=True)
    for row in rows:
        table.add_row(*(Text(_COLUMNS[name](row)) for name in names))  # names of models come from outside: no markup
    if not lines:
        table.add_row()
    return table


def _make(kind: str, settings: Sequence[str], goal: str) -> tuple[Annotator, bool]:
    """The annotator, asked about ``goal`` where it can be; and whether it only judges a goal of its own."""
    asked = [*settings]
    own_goal = any(setting.partition("=")[0].strip() == "goal" for setting in settings)
    resolved = kind
    if kind == "auto":
        chosen = without_auto(read_settings(load_class(ANNOTATORS, "auto").Settings, {"kind": "auto"}))
        resolved = str(chosen.kind)  # type: ignore[attr-defined]
    if resolved in _FIXED_GOAL:
        own_goal = True
    document: dict[str, object] = {"kind": resolved}
    if not own_goal:
        document["goal"] = goal
    made = read_chosen(ANNOTATORS, document, source=f"--annotator {kind}", overrides=asked)
    annotator: Annotator = load_class(ANNOTATORS, resolved)(made)
    return annotator, own_goal


def _drawn(
    judged: list[tuple[JudgedCaption, bool]], limit: int | None, rng: np.random.Generator
) -> list[tuple[JudgedCaption, bool]]:
    """``limit`` of the captions in random order, of each kind its share and at least one."""
    if limit is None or limit >= len(judged):
        return judged
    if limit < 2:
        raise ConfigError(f"--limit {limit}: an AUC needs 2 captions or more, a helpful and an unhelpful one")
    helpful = [number for number, (_, is_helpful) in enumerate(judged) if is_helpful]
    others = [number for number, (_, is_helpful) in enumerate(judged) if not is_helpful]
    wanted = min(max(1, round(limit * len(helpful) / len(judged))), limit - 1)
    chosen = [*rng.permutation(helpful)[:wanted], *rng.permutation(others)[: limit - wanted]]
    return [judged[int(number)] for number in rng.permutation(chosen)]


def _measure(
    annotator: Annotator,
    kind: str,
    goal: str,
    judged: list[tuple[JudgedCaption, bool]],
    own_goal: bool,
    seed: int,
    on_progress: Callable[[str, int, int], None],
) -> BenchmarkRow:
    requests = [
        AnnotationRequest(key=KeyIndex(number), key_text=caption.key, raw_text=caption.caption)
        for number, (caption, _) in enumerate(judged)
    ]
    labels: dict[int, Label] = {}
    tokens, cost, stopped_by = 0, 0.0, ""
    started = first_at = last_at = time.perf_counter()
    for batch in (requests[:1], *[requests] * _ATTEMPTS):  # the first one alone: it loads a model
        left = [request for request in batch if text_hash(request.key_text) not in labels]
        if not left:
            continue
        try:
            for label in annotator.annotate(left, annotator.goal):
                tokens, cost = tokens + label.tokens, cost + label.cost
                if label.is_readable:
                    labels[label.key_hash] = label
                    on_progress(goal, len(labels), len(requests))
        except AnnotatorError as error:
            stopped_by = str(error)
        last_at = time.perf_counter()
        if len(batch) == 1:
            first_at = last_at
        if stopped_by:
            break
    if not labels:
        raise AnnotatorError(
            f"benchmark: annotator {kind} gave no label that can be read for any of {len(requests)} captions"
            + (f": {stopped_by}" if stopped_by else "")
        )
    found = [labels.get(text_hash(request.key_text)) for request in requests]
    scores = judge_scores(
        np.array([is_helpful for _, is_helpful in judged], np.bool_),
        np.array([0.0 if label is None else label.score for label in found], np.float64),
        np.array([label is not None and label.value is LabelValue.HELPFUL for label in found], np.bool_),
        np.array([label is not None for label in found], np.bool_),
        np.random.default_rng([seed, 1]),
        resamples=_RESAMPLES,
    )
    return BenchmarkRow(
        goal=goal,
        annotator=next(iter(labels.values())).annotator,
        model=annotator.model,
        asked_goal=annotator.goal,
        own_goal=own_goal,
        scores=scores,
        first_seconds=first_at - started,
        seconds=last_at - first_at,
        tokens=tokens,
        cost=cost,
        stopped_by=stopped_by,
    )


def _estimate_text(estimate: Estimate) -> str:
    if not math.isfinite(estimate.value):
        return UNKNOWN
    return f"{estimate.value:.2f} ({estimate.low:.2f} to {estimate.high:.2f})"


_COLUMNS: dict[str, Callable[[BenchmarkRow], str]] = {
    "goal": lambda row: row.goal + (" *" if row.own_goal else ""),
    "annotator": lambda row: printable(f"{row.annotator} ({Path(row.model).name})"),
    "captions": lambda row: str(row.scores.captions),
    "helpful": lambda row: share_text(row.scores.helpful / row.scores.captions),
    "AUC": lambda row: _estimate_text(row.scores.auc),
    "precision": lambda row: _estimate_text(row.scores.precision),
    "recall": lambda row: _estimate_text(row.scores.recall),
    "unlabelled": lambda row: share_text(row.scores.unlabelled_share),
    "captions/s": lambda row: count_text(row.captions_per_second),
    "tokens": lambda row: f"{row.tokens:,}",
    "cost": lambda row: f"{row.cost:,.4f}" if row.cost else "0",
}
_HALVES = (
    ("goal", "AUC", "precision", "recall"),
    ("goal", "captions", "helpful", "unlabelled", "captions/s", "tokens", "cost"),
)
