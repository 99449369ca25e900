"""What annotators that prompt a language model have in common, wherever it answers: goal, prompt, kinds of question."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from typing import Generic, Protocol, TypeVar

from onibi.actors.annotators.call_statistics import CallStatistics
from onibi.actors.annotators.prompt import PromptWriter
from onibi.actors.annotators.prompt_template import read_prompt_template
from onibi.actors.annotators.question import Item, LabelQuestion, PairQuestion, Question, Result
from onibi.platform.annotation.annotator import AnnotationRequest, PairRequest
from onibi.platform.annotation.labels import Label, Preference


class PromptedSettings(Protocol):
    """What the settings of all of them say."""

    @property
    def model(self) -> str:
        """Name of the model, where it is asked."""

    @property
    def goal(self) -> str | None:
        """In plain words; None for the template's."""

    @property
    def prompt(self) -> str:
        """Template that ships with Onibi, or path of a YAML file."""

    @property
    def caption_characters(self) -> int:
        """Of one caption; the rest is cut."""

    @property
    def whole_captions(self) -> bool:
        """Whether a sentence is shown together with the caption in which it was heard."""


S = TypeVar("S", bound=PromptedSettings)


class LanguageModelAnnotator(ABC, Generic[S]):
    """Labels single captions and compares pairs of them by asking a language model.

    Args:
        settings: which model and prompt.
        clock: seconds since 1970, for the labels' time.
        explain: one sentence of analysis before each answer.
    Raises: ConfigError where the prompt template is missing or at fault.
    """

    def __init__(self, settings: S, clock: Callable[[], float], *, explain: bool) -> None:
        self.settings, self._clock, self._explain = settings, clock, explain
        self._template = read_prompt_template(settings.prompt)
        self._statistics = CallStatistics()
        self._unable = False

    @property
    def goal(self) -> str:
        """The goal of the settings, or the template's."""
        return " ".join((self.settings.goal or self._template.goal).split())

    @property
    def model(self) -> str:
        """The model's name, as the settings have it."""
        return self.settings.model

    @property
    def prompt_version(self) -> str:
        """Hash of the model and of all that shapes its answers."""
        return self._version(self.goal)

    @property
    def is_free(self) -> bool:
        """Never: an answer takes time, and maybe money."""
        return False

    def annotate(self, requests: Sequence[AnnotationRequest], goal: str) -> Iterator[Label]:
        """Labels as they come. Raises: AnnotatorError where the model cannot be asked, BudgetSpentError."""
        return self._ask(LabelQuestion(), requests, goal)

    def prefer(self, pairs: Sequence[PairRequest], goal: str) -> Iterator[Preference]:
        """Preferences as they come; as ``annotate``."""
        return self._ask(PairQuestion(), pairs, goal)

    def statistics(self) -> dict[str, float]:
        """Metrics since it was made."""
        metrics = self._statistics.metrics()
        if self._unable:
            metrics["healthy"] = 0.0
        return metrics

    @abstractmethod
    def close(self) -> None:
        """Let go of whatever answers."""

    @abstractmethod
    def _ask(self, question: Question[Item, Result], items: Sequence[Item], goal: str) -> Iterator[Result]:
        """The results as they come."""

    @abstractmethod
    def _version(self, goal: str) -> str:
        """See ``prompt_version``."""

    def _writer(self, goal: str) -> PromptWriter:
        settings = self.settings
        return PromptWriter(
            template=self._template,
            goal=goal,
            caption_characters=settings.caption_characters,
            whole_captions=settings.whole_captions,
            explain=self._explain,
        )
