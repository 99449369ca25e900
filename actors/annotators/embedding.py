"""Labels by meaning: how near a caption lies to the goal in plain words, by a small sentence model. No server, no key.

    pull  = the greatest cosine of the caption with a sentence of the goal, or with one of ``good``
    push  = the greatest cosine with one of ``bad``, and ``threshold`` at least
    score = 1 / (1 + exp(−(pull − push) / temperature))          helpful where score ≥ 0.5, as pull ≥ push

So without bad examples a caption is helpful from the cosine ``threshold`` on; a bad example takes those that are nearer
to it than to goal and good ones. Scores are rounded to four digits, so that the batch in which a caption was asked
cannot change its label.

The caption is read by its key, which is one sentence: a raw caption may hold several. "#" is read as "some" and the
inventory letter of "* - a key" as "You have".

Differences from ONI's similarity reward (ELLM-BoW, arXiv 2410.23022): sentences of a transformer instead of a bag of
words, examples beside the goal, and a label as any other annotator's, so that it can be stored, shared and explained.
A sentence model knows what a text is about, hardly what it says of it: "You succeed in locking the door." lies as near
to "Open the locked door." as "You succeed in unlocking the door.". Examples help a little;
``onibi annotate --benchmark`` tells how far to trust it.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from onibi.platform.annotation.annotator import AnnotationRequest, PairRequest, prefer_by_scores
from onibi.platform.annotation.captions import text_hash
from onibi.platform.annotation.labels import Label, LabelValue, Preference, prompt_hash
from onibi.platform.config import Settings
from onibi.platform.errors import ConfigError
from onibi.platform.sentence_encoder import PACKAGED_MODEL, SentenceEncoder, is_installed, model_identity, open_encoder

_FORMULA = "1"  # changed with every change of how a score comes about
_BATCH_KEYS = 64
_DIGITS = 4
_SENTENCE_END = re.compile(r"(?<=[.!?;])\s+")
_INVENTORY_LETTER = re.compile(r"^\* - ")


@dataclass(frozen=True, kw_only=True)
class EmbeddingSettings(Settings):
    """What is helpful, in plain words, and the model that reads it."""

    kind: Literal["embedding"] = "embedding"
    # Sentences that each name a part of it work better than one long sentence: a caption needs to be near one of them.
    goal: str = "Make progress in the game. Open doors. Find stairs down. Pick up useful items. Defeat monsters."
    good: tuple[str, ...] = ()  # captions that are helpful
    bad: tuple[str, ...] = ()  # captions that are not, above all those that sound as if they were
    model: str = PACKAGED_MODEL  # or a folder, or a name that sentence-transformers finds
    threshold: float = 0.4  # cosine with the goal, or with a good example, from which a caption is helpful
    temperature: float = 0.05  # cosine difference that takes a score from 0.5 to 0.73

    def __post_init__(self) -> None:
        if not self.goal.strip():
            raise ValueError("goal is empty; say in plain words what is helpful")
        if not -1.0 <= self.threshold <= 1.0:
            raise ValueError(f"threshold is {self.threshold}; it is a cosine: −1 to 1")
        if not self.temperature > 0:
            raise ValueError(f"temperature is {self.temperature}; allowed: above 0")
        for name in ("good", "bad"):
            if any(not text.strip() for text in getattr(self, name)):
                raise ValueError(f"{name} has an empty example; leave it out")


class EmbeddingAnnotator:
    """Judges keys by their sentence embeddings. The model is loaded when the first key is asked.

    Args:
        settings: goal, examples and model.
        clock: seconds since 1970, for the labels' time.
    Raises: ConfigError where the model is not installed.
    """

    Settings: ClassVar[type[EmbeddingSettings]] = EmbeddingSettings
    is_free = True  # a hundred keys a second and core: given again sooner than looked up, and bit for bit alike

    def __init__(self, settings: EmbeddingSettings, clock: Callable[[], float] = time.time) -> None:
        self.settings = settings
        self.model = model_identity(settings.model)
        if not is_installed(settings.model):
            open_encoder(settings.model)  # raises, and says what is missing
        self._clock = clock
        self._encoder: SentenceEncoder | None = None
        self._anchors: tuple[NDArray[np.float32], NDArray[np.float32]] | None = None
        self._judged = 0
        self._seconds = 0.0

    @property
    def goal(self) -> str:
        """The goal in plain words."""
        return " ".join(self.settings.goal.split())

    @property
    def prompt_version(self) -> str:
        """Hash of all that shapes a verdict: the weights, the goal, the examples, the formula's settings."""
        chosen = self.settings
        figures = f"{chosen.threshold} {chosen.temperature}"
        good, bad = prompt_hash(*chosen.good), prompt_hash(*chosen.bad)
        return prompt_hash("embedding", _FORMULA, self.model, self.goal, good, bad, figures)

    def annotate(self, requests: Sequence[AnnotationRequest], goal: str) -> Iterator[Label]:
        """One label per request. Raises: ConfigError for another goal than the settings', or a damaged model."""
        if goal != self.goal:
            raise ConfigError(f"annotator embedding judges {self.goal!r}, it was asked about {goal!r}")
        version = self.prompt_version
        for first in range(0, len(requests), _BATCH_KEYS):
            batch = requests[first : first + _BATCH_KEYS]
            started = time.perf_counter()
            judged = self._judge([request.key_text for request in batch])
            seconds = time.perf_counter() - started
            self._judged += len(batch)
            self._seconds += seconds
            for request, (score, reply) in zip(batch, judged, strict=True):
                yield Label(
                    key_hash=text_hash(request.key_text),
                    key_text=request.key_text,
                    raw_text=request.raw_text,
                    value=LabelValue.of_score(score),
                    score=score,
                    annotator="embedding",
                    model=self.model,
                    prompt_version=version,
                    goal=goal,
                    latency_seconds=seconds,
                    tokens=0,
                    reply=reply,
                    time_seconds=self._clock(),
                )

    def prefer(self, pairs: Sequence[PairRequest], goal: str) -> Iterator[Preference]:
        """The key with the higher score, ``prefer_by_scores``."""
        return prefer_by_scores(self, pairs, goal)

    def statistics(self) -> dict[str, float]:
        """Keys judged, and how many a second of judging."""
        speed = {"keys_per_second": self._judged / self._seconds} if self._seconds else {}
        return {"requests": float(self._judged), **speed}

    def close(self) -> None:
        """Forget the model."""
        self._encoder = self._anchors = None

    def _judge(self, keys: list[str]) -> list[tuple[float, str]]:
        """Score of each key, and what it was near to, in words."""
        encoder, (pulling, pushing) = self._opened()
        chosen = self.settings
        attracting = [*goal_sentences(chosen.goal), *chosen.good]
        vectors = encoder.encode([spoken(key) for key in keys])
        pulls, pushes = vectors @ pulling.T, vectors @ pushing.T
        judged = []
        for pull, push in zip(pulls, pushes, strict=True):
            nearest, against = int(pull.argmax()), float(push.max(initial=-1.0))
            score = proximity(float(pull[nearest]), max(against, chosen.threshold), chosen.temperature)
            reply = f"{pull[nearest]:.2f} near {attracting[nearest]!r}"
            if against > chosen.threshold:
                reply += f", {against:.2f} near {chosen.bad[int(push.argmax())]!r}"
            judged.append((round(score, _DIGITS), reply))
        return judged

    def _opened(self) -> tuple[SentenceEncoder, tuple[NDArray[np.float32], NDArray[np.float32]]]:
        if self._encoder is None or self._anchors is None:
            self._encoder = open_encoder(self.settings.model)
            good = self._encoder.encode([*goal_sentences(self.settings.goal), *map(spoken, self.settings.good)])
            self._anchors = good, self._encoder.encode([spoken(text) for text in self.settings.bad])
        return self._encoder, self._anchors


def proximity(pull: float, push: float, temperature: float) -> float:
    """Score in (0, 1) of a cosine ``pull`` towards the goal against ``push`` away from it: a logistic of their
    difference over ``temperature``.
    """
    return float(1.0 / (1.0 + np.exp(-np.clip((pull - push) / temperature, -60.0, 60.0))))


def goal_sentences(goal: str) -> list[str]:
    """The sentences of a goal, each of which a caption may be near to."""
    return [sentence.strip() for sentence in _SENTENCE_END.split(" ".join(goal.split())) if sentence.strip()]


def spoken(key: str) -> str:
    """A key as a sentence: "* - # arrows" as "You have some arrows"."""
    return _INVENTORY_LETTER.sub("You have ", key).replace("#", "some").replace("[...]", "")
