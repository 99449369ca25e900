"""What the annotation desk asks, and what answers: the seam between captions and whoever judges them."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

from onibi.platform.annotation.captions import KeyIndex, text_hash
from onibi.platform.annotation.labels import Judge, Label, LabelValue, Preference, PreferenceValue


@dataclass(frozen=True, kw_only=True)
class AnnotationRequest:
    """One key to be judged: rules match ``key_text``, a language model reads ``raw_text``."""

    key: KeyIndex
    key_text: str
    raw_text: str
    vote: int = 0
    """Which of a judge's independent labels of this key; whoever asked stamps it on the label (``with_votes``)."""
    lease: int = 0
    """Of the queue that it was taken from: one that is given back after the key was taken again changes nothing."""


@dataclass(frozen=True, kw_only=True)
class PairRequest:
    """Two keys: which of them helps more?"""

    first: AnnotationRequest
    second: AnnotationRequest
    lease: int = 0
    """As that of an ``AnnotationRequest``."""


Request = AnnotationRequest | PairRequest
"""What the desk asks an annotator."""


class Annotator(Protocol):
    """Judges caption keys against a goal. One file in ``actors/annotators`` and one line in its registry."""

    @property
    def goal(self) -> str:
        """The goal in plain words that this annotator's settings name."""

    @property
    def model(self) -> str:
        """Which model, rules or table judge; ``Label.model`` of all its labels."""

    @property
    def prompt_version(self) -> str:
        """``labels.prompt_hash`` over all that shapes its verdicts: kind, model, prompt or rules, goal."""

    @property
    def is_free(self) -> bool:
        """Whether it costs neither money nor noticeable time, so that its labels need no shared table."""

    def annotate(self, requests: Sequence[AnnotationRequest], goal: str) -> Iterator[Label]:
        """Judge keys.

        Args:
            requests: what to judge; may be empty.
            goal: what "helpful" is measured against.
        Yields: labels as soon as they are there, in any order, one per request or none (it is then asked again when
            its lease ends); a reply that cannot be read is ``LabelValue.INVALID``.

        Raises:
            AnnotatorError: it cannot judge now; it is asked again after a while. What was yielded before counts.
            BudgetSpentError: it judges no more in this run.
        """

    def prefer(self, pairs: Sequence[PairRequest], goal: str) -> Iterator[Preference]:
        """Judge which key of each pair helps more; as ``annotate``. ``prefer_by_scores`` does it by two labels."""

    def statistics(self) -> dict[str, float]:
        """Metrics since it was made, without their prefix ``annotator/NAME/``, may be empty: requests, retries,
        tokens, cost, budget_left_…
        """

    def close(self) -> None:
        """Release what it holds; it is not asked any more."""


@runtime_checkable
class Interruptible(Protocol):
    """An annotator that waits for answers beside whoever reads them."""

    def interrupt(self) -> None:
        """Ask nothing more, from any thread: its reader gets what has come, and then an AnnotatorError."""


def judge_of(annotator: Annotator) -> Judge:
    """Whose labels an annotator's labels are."""
    return Judge(annotator.prompt_version, annotator.model, annotator.goal)


def label_for(
    annotator: Annotator | Judge,
    request: AnnotationRequest,
    score: float | None,
    *,
    reply: str = "",
    kind: str = "custom",
    latency_seconds: float = 0.0,
    tokens: int = 0,
    cost: float = 0.0,
    clock: Callable[[], float] = time.time,
) -> Label:
    """An annotator's label of one request: all that the annotator need not know is filled in.

    Args:
        annotator: whose label it is: anything that has ``prompt_version``, ``model`` and ``goal``.
        request: what was asked.
        score: 0 to 1; 0.5 or more is helpful. None: the reply could not be read, the label is invalid.
        reply: why, as it is shown to people.
        kind: the annotator's name in the registry.
        latency_seconds: how long this answer took.
        tokens: of prompt and reply together.
        cost: in money.
        clock: seconds since 1970.
    Raises: CaptionError for another score.
    """
    return Label(
        key_hash=text_hash(request.key_text),
        key_text=request.key_text,
        raw_text=request.raw_text,
        value=LabelValue.INVALID if score is None else LabelValue.of_score(score),
        score=math.nan if score is None else float(score),
        annotator=kind,
        model=str(annotator.model),
        prompt_version=str(annotator.prompt_version),
        goal=str(annotator.goal),
        latency_seconds=latency_seconds,
        tokens=tokens,
        reply=reply,
        time_seconds=clock(),
        cost=cost,
        vote=request.vote,
    )


def with_votes(labels: Iterator[Label], requests: Sequence[AnnotationRequest]) -> Iterator[Label]:
    """The labels of ``requests``, each with its request's vote."""
    votes = {text_hash(request.key_text): request.vote for request in requests}
    for label in labels:
        vote = votes.get(label.key_hash, 0)
        yield label if label.vote == vote else replace(label, vote=vote)


def prefer_by_scores(
    annotator: Annotator, pairs: Sequence[PairRequest], goal: str, known: dict[int, Label] | None = None
) -> Iterator[Preference]:
    """Preferences of an annotator that judges single keys: the higher score wins, equal scores tie.

    Each distinct key is judged once; a pair is yielded when both its keys are, as invalid where one's label is. Tokens,
    cost and latency of a key are counted in the first pair that it completes.

    Args:
        annotator: is asked about the keys.
        pairs: to compare.
        goal: as of ``annotate``.
        known: readable labels by key hash, not asked for again; new ones are added. None: those of these pairs alone.
    Raises: what ``annotate`` raises.
    """
    known = {} if known is None else known
    labels, counted = dict(known), set(known)
    waiting: dict[int, list[PairRequest]] = {}
    requests: dict[int, AnnotationRequest] = {}
    for pair in pairs:
        missing = {text_hash(one.key_text): one for one in (pair.first, pair.second)}
        missing = {key_hash: one for key_hash, one in missing.items() if key_hash not in known}
        if not missing:
            yield _by_scores(pair, labels, [])
        for key_hash, request in missing.items():
            requests.setdefault(key_hash, request)
            waiting.setdefault(key_hash, []).append(pair)
    for label in annotator.annotate(list(requests.values()), goal) if requests else ():
        labels[label.key_hash] = label
        if label.is_readable:
            known[label.key_hash] = label
        for pair in waiting.pop(label.key_hash, []):
            hashes = text_hash(pair.first.key_text), text_hash(pair.second.key_text)
            if all(key_hash in labels for key_hash in hashes):
                new = [labels[key_hash] for key_hash in dict.fromkeys(hashes) if key_hash not in counted]
                counted.update(hashes)
                yield _by_scores(pair, labels, new)


def _by_scores(pair: PairRequest, labels: Mapping[int, Label], new: Sequence[Label]) -> Preference:
    """Of a pair whose keys have labels; ``new`` are those whose cost no other pair has borne."""
    first, second = (labels[text_hash(one.key_text)] for one in (pair.first, pair.second))
    newest = max(first, second, key=lambda label: label.time_seconds)
    return Preference(
        first_hash=first.key_hash,
        second_hash=second.key_hash,
        first_text=first.key_text,
        second_text=second.key_text,
        value=_preferred(first, second),
        annotator=newest.annotator,
        model=newest.model,
        prompt_version=newest.prompt_version,
        goal=newest.goal,
        latency_seconds=max((one.latency_seconds for one in new), default=0.0),
        tokens=sum(one.tokens for one in new),
        cost=sum(one.cost for one in new),
        reply=f"{first.score:.6g} against {second.score:.6g}",
        time_seconds=newest.time_seconds,
    )


def _preferred(first: Label, second: Label) -> PreferenceValue:
    if LabelValue.INVALID in (first.value, second.value):
        return PreferenceValue.INVALID
    if first.score == second.score:
        return PreferenceValue.TIE
    return PreferenceValue.FIRST if first.score > second.score else PreferenceValue.SECOND
