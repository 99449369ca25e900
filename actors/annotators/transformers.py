"""Labels by a causal language model in the annotator's own process, through the ``transformers`` package.

    annotator:
      kind: transformers
      model: HuggingFaceTB/SmolLM2-1.7B-Instruct      # or the folder of a model that lies on this machine
      device: auto
      gpus: 1

Nothing is generated: one forward pass gives the probabilities of the first token of the answer, and the score is the
share of "yes" in "yes" and "no" (``word_probabilities``), here over the whole vocabulary. So a label costs one pass
over its prompt, and every answer can be read, or the model was about to say something else, which is ``invalid``.

Differences from ONI: its model answers in words, which are parsed.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field

from onibi.actors.annotators.language_model import LanguageModelAnnotator
from onibi.actors.annotators.prompt import AnswerForm
from onibi.actors.annotators.question import Item, Judged, Origin, Question, Result
from onibi.platform.annotation.labels import prompt_hash
from onibi.platform.config import Settings
from onibi.platform.errors import AnnotatorError, ConfigError
from onibi.platform.shell_words import pip_install

if TYPE_CHECKING:
    from onibi.actors.annotators.causal_model import CausalModel

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class TransformersSettings(Settings):
    """Which model judges, and on what."""

    kind: Literal["transformers"] = "transformers"
    model: str  # name on the Hugging Face hub, or folder with config, tokenizer and weights
    revision: str | None = None  # of a model on the hub; null: the newest
    local_files_only: bool = False  # never ask the hub, take what was downloaded before
    goal: str | None = None  # in plain words; null: the prompt template's
    prompt: str = "nethack"  # template that ships with Onibi (general, minigrid, nethack), or path of a YAML file
    device: Literal["auto", "cpu", "cuda"] = "auto"
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"  # auto: the weights' own
    batch_captions: Annotated[int, Field(ge=1)] = 16  # in one forward pass
    caption_characters: Annotated[int, Field(ge=16)] = 300  # of one caption; the rest is cut
    whole_captions: bool = True  # show a sentence together with the caption in which it was heard
    least_word_share: Annotated[float, Field(gt=0, le=1)] = 0.1  # of probability on the answer's words, else invalid
    cpus: Annotated[float, Field(ge=0)] = 1.0  # that Ray sets aside for it; ignored in serial mode
    gpus: Annotated[float, Field(ge=0)] = 0.0

    def __post_init__(self) -> None:
        if not self.model:
            raise ValueError("model is empty; give a folder, or a name on the Hugging Face hub")


class TransformersAnnotator(LanguageModelAnnotator[TransformersSettings]):
    """Judges with a model in this process, which is loaded with the first batch.

    Args:
        settings: which model and prompt.
        clock: seconds since 1970, for the labels' time.
    Raises: ConfigError where the prompt template is missing or at fault, or the package is not installed.
    """

    Settings: ClassVar[type[TransformersSettings]] = TransformersSettings

    def __init__(self, settings: TransformersSettings, clock: Callable[[], float] = time.time) -> None:
        from importlib.util import find_spec  # the package itself takes seconds to import

        if find_spec("transformers") is None:
            raise ConfigError(
                f"annotator transformers: the package is not installed; {pip_install('onibi[transformers]')}"
            )
        super().__init__(settings, clock, explain=False)
        self._lock = threading.Lock()
        self._model: CausalModel | None = None

    def close(self) -> None:
        """Let go of the model."""
        self._model = None

    def _ask(self, question: Question[Item, Result], items: Sequence[Item], goal: str) -> Iterator[Result]:
        writer = self._writer(goal)
        origin = Origin(annotator="transformers", model=self.model, prompt_version=self._version(goal), goal=goal)
        words = question.words(AnswerForm.WORD)
        size = self.settings.batch_captions
        for start in range(0, len(items), size):
            batch = items[start : start + size]
            prompts = [question.prompt(writer, [item], AnswerForm.WORD) for item in batch]
            started = time.perf_counter()
            self._statistics.sent(again=False)
            try:
                with self._lock:
                    scored = self._loaded().scores(prompts, words, self.settings.least_word_share)
            except AnnotatorError:
                self._unable = True
                raise
            self._unable = False
            latency = time.perf_counter() - started
            self._statistics.answered(latency, sum(tokens for _, tokens in scored), 0.0)
            for item, (scores, tokens) in zip(batch, scored, strict=True):
                self._statistics.judged(invalid=scores.probability is None)
                judged = Judged(
                    verdict=_likeliest(scores.probability),
                    probability=scores.probability,
                    reply=scores.describe(),
                    fault="" if scores.probability else "the model was about to say something else",
                    latency_seconds=latency,
                    tokens=tokens,
                    cost=0.0,
                    time_seconds=self._clock(),
                )
                yield question.result(item, judged, origin)

    def _loaded(self) -> CausalModel:
        if self._model is None:
            from onibi.actors.annotators.causal_model import CausalModel

            settings = self.settings
            started = time.perf_counter()
            self._model = CausalModel(
                settings.model,
                revision=settings.revision,
                local_files_only=settings.local_files_only,
                device=settings.device,
                dtype=settings.dtype,
            )
            log.info("%s loaded on %s in %.1f s", settings.model, self._model.device, time.perf_counter() - started)
        return self._model

    def _version(self, goal: str) -> str:
        settings = self.settings
        parts: list[Any] = [settings.revision, settings.dtype, settings.least_word_share]
        return prompt_hash(
            "transformers", settings.model, goal, self._writer(goal).fingerprint(AnswerForm.WORD), *map(str, parts)
        )


def _likeliest(probability: Mapping[str, float] | None) -> str | None:
    return None if probability is None else max(probability, key=probability.__getitem__)
