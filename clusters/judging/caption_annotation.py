"""Judging captions that are stored already: what is left to ask, what that costs, and asking it (no Ray).

Verdicts go into an annotation table as they come, so whatever ends the work, the next call goes on where it ended: what
a judge has answered is not asked again, in another run or by another command either, not even one that asks it at the
same time.
"""

from __future__ import annotations

import itertools
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field

import numpy as np

from onibi.clusters.judging.verdict_keeper import DiskRefusedError, Verdict, VerdictKeeper
from onibi.clusters.judging.work_claims import WorkClaims, name_of
from onibi.platform.annotation.annotator import AnnotationRequest, Annotator, PairRequest, Request, judge_of, with_votes
from onibi.platform.annotation.captions import KeyIndex, text_hash
from onibi.platform.annotation.estimate import NOTHING, AnnotationEstimate, Estimating
from onibi.platform.annotation.labels import Label, PreferenceValue
from onibi.platform.annotation.stored_captions import StoredCaptions
from onibi.platform.annotation.table import AnnotationTable
from onibi.platform.errors import AnnotatorError, BudgetSpentError, ConfigError
from onibi.platform.rewards.training import LabelledKeys

_BATCH_ITEMS = 256  # handed to an annotator at once; it cuts them into calls as it likes
_ATTEMPTS = 3  # of an item whose reply could not be read
_SILENT_ROUNDS = 2  # in a row without any verdict, behind which what an annotator leaves out is given up
_FIRST_PAUSE_SECONDS, _LONGEST_PAUSE_SECONDS = 1.0, 60.0
_LOOK_SECONDS = 1.0  # between two looks at what somebody else asks
_WORTH = {PreferenceValue.FIRST: 1.0, PreferenceValue.SECOND: 0.0, PreferenceValue.TIE: 0.5}


@dataclass(frozen=True)
class Work:
    """What an annotator is to be asked."""

    items: tuple[Request, ...]
    """In order: of keys the most met first, each vote after the one before."""
    known: int
    """What it has answered already, and is not asked again."""


@dataclass
class Outcome:
    """How far the work came."""

    total: int
    answered: int = 0
    """Items with a verdict that can be read."""
    elsewhere: int = 0
    """How many of those a run or another command was answered meanwhile."""
    asked_elsewhere: int = 0
    """Items that one of them asks now."""
    invalid: int = 0
    """Replies that could not be read."""
    unreadable: int = 0
    """Items given up for that."""
    tokens: int = 0
    cost: float = 0.0
    seconds: float = 0.0
    stopped_by: str = ""
    """What ended the work before all was asked; empty where nothing did."""
    verdicts: dict[str, int] = field(default_factory=dict)
    """How often each one was given."""

    @property
    def left(self) -> int:
        """Items without a verdict."""
        return self.total - self.answered

    @property
    def why_left(self) -> str:
        """Why something is left; empty where nothing is."""
        if self.stopped_by or not self.left:
            return self.stopped_by
        silent = self.left - self.unreadable
        reasons = [f"replies about {self.unreadable:,} could not be read"] if self.unreadable else []
        return " and ".join(reasons + ([f"{silent:,} were given no verdict"] if silent else []))


def label_work(captions: StoredCaptions, annotator: Annotator, table: AnnotationTable, *, votes: int) -> Work:
    """Labels that ``annotator`` has not given yet: ``votes`` of each key."""
    judge = judge_of(annotator)
    known = {
        (label.key_hash, label.vote)
        for label in table.labels(judge.prompt_version, judge.model, judge.goal)
        if label.is_readable
    }
    wanted = [
        AnnotationRequest(key=KeyIndex(index), key_text=key.text, raw_text=key.raw_text, vote=vote)
        for vote in range(votes)
        for index, key in enumerate(captions.keys)
    ]
    open_items = tuple(item for item in wanted if (text_hash(item.key_text), item.vote) not in known)
    return Work(open_items, len(wanted) - len(open_items))


def pair_work(
    captions: StoredCaptions, annotator: Annotator, table: AnnotationTable, *, pairs: int, rng: np.random.Generator
) -> Work:
    """Preferences that it has not given yet, among ``pairs`` different pairs of different keys.

    The same ``rng`` draws the same pairs, and more of them begin with the same ones: so a longer work goes on from a
    shorter one. Raises: ConfigError where there are fewer pairs.
    """
    count = len(captions.keys)
    if pairs > count * (count - 1) // 2:
        raise ConfigError(
            f"{captions.source}: {count} keys make {count * (count - 1) // 2} pairs, {pairs} were asked for. Ask for "
            "fewer, or name a source with more captions."
        )
    judge = judge_of(annotator)
    known = {
        frozenset((preference.first_hash, preference.second_hash))
        for preference in table.preferences(judge.prompt_version, judge.model, judge.goal)
        if preference.is_readable
    }
    requests = [
        AnnotationRequest(key=KeyIndex(index), key_text=key.text, raw_text=key.raw_text)
        for index, key in enumerate(captions.keys)
    ]
    wanted = [
        PairRequest(first=requests[first], second=requests[second])
        for first, second in itertools.islice(_pairs(count, rng), pairs)
    ]
    open_items = tuple(pair for pair in wanted if name_of(pair) not in known)
    return Work(open_items, len(wanted) - len(open_items))


def estimate(annotator: Annotator, work: Work) -> AnnotationEstimate:
    """What the work would cost; asks nobody."""
    if not work.items or not isinstance(annotator, Estimating):
        return NOTHING
    return annotator.estimate(work.items)  # type: ignore[arg-type]  # all of one kind


def carry_out(
    annotator: Annotator,
    work: Work,
    table: AnnotationTable,
    *,
    patience_seconds: float,
    on_progress: Callable[[Outcome], None] = lambda _: None,
    waiting: Callable[[], AbstractContextManager[None]] = nullcontext,
    should_stop: Callable[[], bool] = lambda: False,
    sleep: Callable[[float], None] = time.sleep,
) -> Outcome:
    """Ask all of the work, and append every verdict to the table: one that costs something as it comes.

    Args:
        patience_seconds: how long to wait, in pauses that grow to a minute, for an annotator that cannot judge now and
            gives no verdict between; then the rest is left.
        on_progress: told now and then.
        waiting: entered while it waits for a verdict or pauses; KeyboardInterrupt in it leaves the rest.
        should_stop: asked before each batch and where an annotator cannot judge; True leaves the rest.
        sleep: pauses.
    Raises: ConfigError, CaptionError: the annotator's own, which no waiting mends.
    """
    outcome, keeper = Outcome(len(work.items)), VerdictKeeper(table, at_once=not annotator.is_free)
    claims = WorkClaims(table, judge_of(annotator))
    answered: set[object] = set()
    began = time.monotonic()

    def judged(batch: Sequence[Request]) -> Iterator[Verdict]:
        if should_stop():
            raise KeyboardInterrupt
        verdicts = _verdicts(annotator, batch)
        while True:
            try:
                with waiting():
                    verdict = next(verdicts, None)
            except AnnotatorError as error:
                if should_stop():
                    raise KeyboardInterrupt from error
                raise
            if verdict is None:
                break
            claims.renew()
            if name_of(verdict) in answered:  # a second answer to one question: the first counts, and both are paid
                outcome.tokens, outcome.cost = outcome.tokens + verdict.tokens, outcome.cost + verdict.cost
                continue
            if verdict.is_readable:
                answered.add(name_of(verdict))
            keeper.keep(verdict)
            _count(outcome, verdict)
            outcome.seconds = time.monotonic() - began
            on_progress(outcome)
            yield verdict
        keeper.flush()

    def pause(seconds: float) -> None:
        keeper.flush()
        with waiting():
            sleep(seconds)
        on_progress(outcome)

    try:
        _ask_all(work.items, claims, judged, pause, patience_seconds, outcome)
    except KeyboardInterrupt:
        outcome.stopped_by = "interrupted"
    except (BudgetSpentError, DiskRefusedError) as error:
        outcome.stopped_by = str(error)
    finally:
        lost = keeper.close()
        claims.close()
    for verdict in lost:
        _count(outcome, verdict, -1)
    if lost:
        outcome.stopped_by += f" ({len(lost):,} answers of the last second are lost)"
    outcome.seconds = time.monotonic() - began
    return outcome


def _ask_all(
    items: Sequence[Request],
    claims: WorkClaims,
    judged: Callable[[Sequence[Request]], Iterator[Verdict]],
    pause: Callable[[float], None],
    patience_seconds: float,
    outcome: Outcome,
) -> None:
    """Ask in rounds, until every item has a readable verdict or is given up."""
    waiting, waited, silent_rounds = list(items), 0.0, 0
    unreadable: Counter[object] = Counter()
    while waiting and silent_rounds < _SILENT_ROUNDS:
        again: list[Request] = []
        elsewhere: list[Request] = []
        asked = False
        heard_before = outcome.answered + outcome.invalid
        while waiting:
            batch, waiting = _split(waiting)
            batch, others, answered = claims.claim(batch)
            outcome.elsewhere += answered
            outcome.answered += answered
            elsewhere += others
            outcome.asked_elsewhere = len(elsewhere)
            if not batch:
                continue
            asked = True
            missing = {name_of(item): item for item in batch}
            heard: set[object] = set()
            fault: AnnotatorError | None = None
            try:
                for verdict in judged(batch):
                    name = name_of(verdict)
                    heard.add(name)
                    unreadable[name] += not verdict.is_readable
                    if verdict.is_readable or unreadable[name] == _ATTEMPTS:
                        missing.pop(name, None)
            except BudgetSpentError:
                raise
            except AnnotatorError as error:
                fault = error
            if fault is None:
                again += missing.values()
                waited = 0.0
                continue
            again += [item for name, item in missing.items() if name in heard]
            waiting = [item for name, item in missing.items() if name not in heard] + waiting
            waited = 0.0 if heard else waited
            seconds = min(max(_FIRST_PAUSE_SECONDS, waited), _LONGEST_PAUSE_SECONDS)
            if waited + seconds > patience_seconds or not fault.may_pass:
                outcome.stopped_by = str(fault)
                return
            pause(seconds)
            waited += seconds
        if asked:
            silent_rounds = silent_rounds + 1 if outcome.answered + outcome.invalid == heard_before else 0
        if elsewhere and not again:
            pause(_LOOK_SECONDS)
        waiting = again + elsewhere
    outcome.unreadable = sum(count >= _ATTEMPTS for count in unreadable.values())


def labelled_keys(captions: StoredCaptions, verdicts: Iterable[Verdict]) -> LabelledKeys:
    """What a reward model learns from: the source's keys, with the readable ones of these verdicts.

    A key's label is the mean score of its votes, the newest of each. Verdicts on other keys are left out.
    """
    index = {text_hash(key.text): number for number, key in enumerate(captions.keys)}
    scores: dict[int, dict[int, float]] = {}
    pairs: dict[frozenset[int], tuple[int, int, float]] = {}
    for verdict in verdicts:
        if isinstance(verdict, Label):
            if verdict.is_readable and verdict.key_hash in index:
                scores.setdefault(index[verdict.key_hash], {})[verdict.vote] = verdict.score
        elif verdict.is_readable and {verdict.first_hash, verdict.second_hash} <= index.keys():
            first, second = index[verdict.first_hash], index[verdict.second_hash]
            pairs[frozenset((first, second))] = (first, second, _WORTH[verdict.value])
    keys = sorted(scores)
    return LabelledKeys(
        version=1,
        key_texts=[key.text for key in captions.keys],
        askable=np.ones(len(captions.keys), np.bool_),
        sightings=np.array([key.sightings for key in captions.keys], np.int64),
        label_key=np.array(keys, np.int32),
        label_score=np.array([np.mean(list(scores[key].values())) for key in keys], np.float32),
        pair_first=np.array([first for first, _, _ in pairs.values()], np.int32),
        pair_second=np.array([second for _, second, _ in pairs.values()], np.int32),
        pair_preference=np.array([worth for _, _, worth in pairs.values()], np.float32),
    )


def _split(waiting: list[Request]) -> tuple[list[Request], list[Request]]:
    """The next batch, and what is left. A batch asks one vote of a key: its label names the key alone."""
    first = waiting[0]
    end = min(_BATCH_ITEMS, len(waiting))
    if isinstance(first, AnnotationRequest):
        votes = (item.vote == first.vote for item in waiting[:end] if isinstance(item, AnnotationRequest))
        end = sum(1 for _ in itertools.takewhile(bool, votes))
    return waiting[:end], waiting[end:]


def _verdicts(annotator: Annotator, batch: Sequence[Request]) -> Iterator[Verdict]:
    requests = [item for item in batch if isinstance(item, AnnotationRequest)]
    pairs = [item for item in batch if isinstance(item, PairRequest)]
    if requests:
        yield from with_votes(annotator.annotate(requests, annotator.goal), requests)
    if pairs:
        yield from annotator.prefer(pairs, annotator.goal)


def _count(outcome: Outcome, verdict: Verdict, by: int = 1) -> None:
    """Count a verdict; by -1: take it back, but for what was paid."""
    outcome.answered += by * verdict.is_readable
    outcome.invalid += by * (not verdict.is_readable)
    outcome.verdicts[verdict.value.value] = outcome.verdicts.get(verdict.value.value, 0) + by
    if by > 0:
        outcome.tokens += verdict.tokens
        outcome.cost += verdict.cost


def _pairs(count: int, rng: np.random.Generator) -> Iterator[tuple[int, int]]:
    """All pairs of ``count`` things, each once, in a random order that is made as it is read."""
    total, drawn = count * (count - 1) // 2, set[int]()
    while len(drawn) < total // 2:
        number = int(rng.integers(total))
        if number not in drawn:
            drawn.add(number)
            yield _pair(number)
    rest = np.array([number for number in range(total) if number not in drawn])
    for number in rng.permutation(rest).tolist():
        yield _pair(number)


def _pair(number: int) -> tuple[int, int]:
    """(0, 1), (0, 2), (1, 2), (0, 3), …"""
    second = int((1 + np.sqrt(1 + 8 * number)) // 2)
    while second * (second - 1) // 2 > number:  # where the root was rounded up
        second -= 1
    while (second + 1) * second // 2 <= number:
        second += 1
    return number - second * (second - 1) // 2, second
