"""The two questions that a language model can be asked about captions, and what is made of its answers.

A *verdict* is the value of a label or preference as text ("helpful", "second"); the *word* that the model writes for it
depends on the form of the answer (``prompt.WORDS``).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

from onibi.actors.annotators.prompt import WORDS, AnswerForm, Prompt, PromptWriter
from onibi.platform.annotation.annotator import AnnotationRequest, PairRequest
from onibi.platform.annotation.captions import storable, text_hash
from onibi.platform.annotation.labels import Label, LabelValue, Preference, PreferenceValue

_REPLY_CHARACTERS = 2000  # of a reply that is kept with a label

Item = TypeVar("Item", contravariant=True)
Result = TypeVar("Result", covariant=True)


@dataclass(frozen=True, kw_only=True)
class Origin:
    """Who judges, under which prompt, against which goal."""

    annotator: str
    model: str
    prompt_version: str
    goal: str


@dataclass(frozen=True, kw_only=True)
class Judged:
    """What a model's answer says of one item.

    ``verdict`` is None where it could not be read, ``fault`` then says why. ``probability`` of each verdict, where it
    was scored by probabilities. Tokens and cost are this item's part of its request's.
    """

    verdict: str | None
    probability: Mapping[str, float] | None = None
    reply: str
    fault: str = ""
    latency_seconds: float
    tokens: int
    cost: float
    time_seconds: float

    @property
    def kept_reply(self) -> str:
        """The reply as it is kept: cut, never empty, and with the fault behind it."""
        # A JSON escape can make half of a surrogate pair, which no file takes.
        text = storable(self.reply) or "(empty)"
        if len(text) > _REPLY_CHARACTERS:
            text = f"{text[:_REPLY_CHARACTERS]}…"
        return f"{text} [unreadable: {storable(self.fault)}]" if self.fault else text


class Question(Protocol[Item, Result]):
    """What is asked about items, and what an answer becomes."""

    def words(self, form: AnswerForm) -> Mapping[str, str]:
        """Verdict → the model's word for it."""

    def prompt(self, writer: PromptWriter, items: Sequence[Item], form: AnswerForm) -> Prompt:
        """The prompt about these items; WORD takes one."""

    def result(self, item: Item, judged: Judged, origin: Origin) -> Result:
        """The label or preference."""


class LabelQuestion:
    """Is the caption helpful?"""

    def words(self, form: AnswerForm) -> Mapping[str, str]:
        """Verdict → the model's word for it."""
        return WORDS[LabelValue][form]

    def prompt(self, writer: PromptWriter, items: Sequence[AnnotationRequest], form: AnswerForm) -> Prompt:
        """The prompt about these captions."""
        return writer.labels(items, form)

    def result(self, item: AnnotationRequest, judged: Judged, origin: Origin) -> Label:
        """A label; its score is the probability of "helpful", or 1 and 0 where there is none."""
        value, score = LabelValue.INVALID, math.nan
        if judged.verdict is not None and judged.probability is not None:
            score = judged.probability[LabelValue.HELPFUL.value]
            value = LabelValue.of_score(score)
        elif judged.verdict is not None:
            value = LabelValue(judged.verdict)
            score = float(value is LabelValue.HELPFUL)
        return Label(
            key_hash=text_hash(item.key_text),
            key_text=item.key_text,
            raw_text=item.raw_text,
            value=value,
            score=score,
            annotator=origin.annotator,
            model=origin.model,
            prompt_version=origin.prompt_version,
            goal=origin.goal,
            latency_seconds=judged.latency_seconds,
            tokens=judged.tokens,
            reply=judged.kept_reply,
            time_seconds=judged.time_seconds,
            cost=judged.cost,
            vote=item.vote,
        )


class PairQuestion:
    """Which of two captions helps more?"""

    def words(self, form: AnswerForm) -> Mapping[str, str]:
        """Verdict → the model's word for it."""
        return WORDS[PreferenceValue][form]

    def prompt(self, writer: PromptWriter, items: Sequence[PairRequest], form: AnswerForm) -> Prompt:
        """The prompt about these pairs."""
        return writer.preferences(items, form)

    def result(self, item: PairRequest, judged: Judged, origin: Origin) -> Preference:
        """A preference."""
        return Preference(
            first_hash=text_hash(item.first.key_text),
            second_hash=text_hash(item.second.key_text),
            first_text=item.first.key_text,
            second_text=item.second.key_text,
            value=PreferenceValue.INVALID if judged.verdict is None else PreferenceValue(judged.verdict),
            annotator=origin.annotator,
            model=origin.model,
            prompt_version=origin.prompt_version,
            goal=origin.goal,
            latency_seconds=judged.latency_seconds,
            tokens=judged.tokens,
            reply=judged.kept_reply,
            time_seconds=judged.time_seconds,
            cost=judged.cost,
        )
