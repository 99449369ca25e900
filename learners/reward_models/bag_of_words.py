"""Hashed bag of words: fast, learns from a few dozen labels, knows no order beyond neighbouring words."""

from __future__ import annotations

import re
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from onibi.platform.config import Settings

if TYPE_CHECKING:
    from torch import Generator

    from onibi.learners.reward_models.member_layers import MemberEncoder

_WORD = re.compile(r"\w+(?:'\w+)?|[^\w\s]")


@dataclass(frozen=True, kw_only=True)
class BagOfWordsSettings(Settings):
    """Words and pairs of neighbours, hashed into buckets, each with a vector; a text is their scaled sum."""

    kind: Literal["bag_of_words"] = "bag_of_words"
    buckets: Annotated[int, Field(ge=2, le=1 << 20)] = 4096
    width: Annotated[int, Field(ge=1)] = 32  # of the vectors
    words: Annotated[int, Field(ge=1)] = 32  # of a text that are read, from its start
    neighbours: bool = True  # pairs of neighbouring words as well


class BagOfWords:
    """Lower-case words and signs of a text, and pairs of neighbours, as bucket numbers from 1."""

    Settings: ClassVar[type[BagOfWordsSettings]] = BagOfWordsSettings

    def __init__(self, settings: BagOfWordsSettings) -> None:
        self.settings = settings

    def tokens(self, texts: Sequence[str]) -> NDArray[np.int32]:
        """[texts, W] int32, W = words, twice as many with neighbours; 0 pads."""
        settings = self.settings
        tokens = np.zeros((len(texts), settings.words * (2 if settings.neighbours else 1)), np.int32)
        for row, text in zip(tokens, texts, strict=True):
            words = _WORD.findall(text.lower())[: settings.words]
            if settings.neighbours:
                words += [f"{first} {second}" for first, second in pairwise(words)]
            row[: len(words)] = [zlib.crc32(_bytes(word)) % (settings.buckets - 1) + 1 for word in words]
        return tokens

    def network(self, generators: Sequence[Generator]) -> MemberEncoder:
        """[N, B, W] → ReLU of the scaled sums [N, B, width]."""
        from onibi.learners.reward_models.text_networks import BagNetwork

        return BagNetwork(generators, self.settings.buckets, self.settings.width)


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")
