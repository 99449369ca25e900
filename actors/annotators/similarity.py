"""Labels by shared words: the cosine of two bags of words, ONI's reward without a model (ELLM-BoW, arXiv 2410.23022).

    x, y = how often each word stands in the caption, in the goal          score = x·y / (|x| |y|)

Words are stems, lower case, without the stop words that any text has. The caption is read by its key.

Score and label agree at 0.5 for all annotators, so that the cosine c is stretched on both sides of ``threshold`` t:
c / 2t below, and 1 − (1 − c) / 2(1 − t) above it. t = 0.5 leaves it as it is.

Differences from the reference: words are stemmed by their endings, so that "door" meets "doors" and "opens" meets
"opened"; it counts words of any kind, where the reference embeds them by a fixed vocabulary.
"""

from __future__ import annotations

import math
import re
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar, Literal

from onibi.platform.annotation.annotator import AnnotationRequest, PairRequest, prefer_by_scores
from onibi.platform.annotation.captions import text_hash
from onibi.platform.annotation.labels import Label, LabelValue, Preference, prompt_hash
from onibi.platform.config import Settings
from onibi.platform.errors import ConfigError

_FORMULA = "1"  # changed with every change of how a score comes about
_WORD = re.compile(r"[a-z]+(?:'[a-z]+)?")
_ENDINGS = ("ing", "ied", "ies", "ed", "es", "s", "e")
_STOP_WORDS = frozenset(
    re.findall(
        r"\S+",
        """
        a an and are as at be been but by can could did do does for from had has have he her here his i if in into is
        it its it's me my no nor not of off on or our out she so some than that the their them then there these they
        this those to too up us was we were what when where which who will with would you your
        """,
    )
)
"""Words that any text has."""


@dataclass(frozen=True, kw_only=True)
class SimilaritySettings(Settings):
    """What is helpful, in the words that helpful captions use."""

    kind: Literal["similarity"] = "similarity"
    goal: str = "Find a key, unlock and open the door, find the stairs, kill the monster, pick up gold and items."
    threshold: float = 0.2  # cosine from which a caption is helpful

    def __post_init__(self) -> None:
        if not bag_of_words(self.goal):
            raise ValueError(f"goal is {self.goal!r}; it needs a word that not every text has")
        if not 0.0 < self.threshold < 1.0:
            raise ValueError(f"threshold is {self.threshold}; allowed: above 0 and below 1")


class SimilarityAnnotator:
    """Judges keys by the words that they share with the goal.

    Args:
        settings: goal and threshold.
        clock: seconds since 1970, for the labels' time.
    """

    Settings: ClassVar[type[SimilaritySettings]] = SimilaritySettings
    is_free = True
    model = "bag of words"

    def __init__(self, settings: SimilaritySettings, clock: Callable[[], float] = time.time) -> None:
        self.settings = settings
        self._clock = clock
        self._goal_words = bag_of_words(settings.goal)

    @property
    def goal(self) -> str:
        """The goal in plain words."""
        return " ".join(self.settings.goal.split())

    @property
    def prompt_version(self) -> str:
        """Hash of goal and threshold."""
        return prompt_hash("similarity", _FORMULA, self.goal, str(self.settings.threshold))

    def annotate(self, requests: Sequence[AnnotationRequest], goal: str) -> Iterator[Label]:
        """One label per request, in order. Raises: ConfigError for another goal than the settings'."""
        if goal != self.goal:
            raise ConfigError(f"annotator similarity judges {self.goal!r}, it was asked about {goal!r}")
        version = self.prompt_version
        for request in requests:
            started = time.perf_counter()
            words = bag_of_words(request.key_text)
            cosine = word_cosine(words, self._goal_words)
            shared = ", ".join(sorted(words.keys() & self._goal_words.keys()))
            yield Label(
                key_hash=text_hash(request.key_text),
                key_text=request.key_text,
                raw_text=request.raw_text,
                value=LabelValue.HELPFUL if cosine >= self.settings.threshold else LabelValue.UNHELPFUL,
                score=stretched(cosine, self.settings.threshold),
                annotator="similarity",
                model=self.model,
                prompt_version=version,
                goal=goal,
                latency_seconds=time.perf_counter() - started,
                tokens=0,
                reply=f"cosine {cosine:.3f}" + (f", shares: {shared}" if shared else ", shares no word"),
                time_seconds=self._clock(),
            )

    def prefer(self, pairs: Sequence[PairRequest], goal: str) -> Iterator[Preference]:
        """The key with the higher score, ``prefer_by_scores``."""
        return prefer_by_scores(self, pairs, goal)

    def statistics(self) -> dict[str, float]:
        """Nothing that would be worth a metric."""
        return {}

    def close(self) -> None:
        """Holds nothing."""


def bag_of_words(text: str) -> Counter[str]:
    """How often each stem stands in a text, stop words left out."""
    return Counter(_stem(word) for word in _WORD.findall(text.lower()) if word not in _STOP_WORDS)


def word_cosine(first: Counter[str], second: Counter[str]) -> float:
    """Cosine in [0, 1] of two bags of words; 0 where one is empty."""
    shared = sum(count * second[word] for word, count in first.items())
    lengths = math.sqrt(sum(count**2 for count in first.values()) * sum(count**2 for count in second.values()))
    return min(shared / lengths, 1.0) if lengths else 0.0


def stretched(cosine: float, threshold: float) -> float:
    """Score in [0, 1], linear in the cosine on each side of ``threshold``, where it is 0.5."""
    return cosine / (2 * threshold) if cosine < threshold else 1 - (1 - cosine) / (2 * (1 - threshold))


@lru_cache(maxsize=1 << 14)
def _stem(word: str) -> str:
    """A word without its ending: doors, opened, opening → door, open, open. Crude, and the same for both texts."""
    for ending in _ENDINGS:
        if word.endswith(ending) and len(word) - len(ending) >= 3:
            stem = word[: -len(ending)]
            # unlocked, hitting: a consonant that was doubled before the ending
            return stem[:-1] if len(stem) > 3 and stem[-1] == stem[-2] and stem[-1] not in "lsz" else stem
    return word
