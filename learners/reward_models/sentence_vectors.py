"""Frozen sentence embeddings: knows what words mean before the first label; only the head is trained."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from onibi.platform.config import Settings
from onibi.platform.sentence_encoder import PACKAGED_MODEL, SentenceEncoder, open_encoder

if TYPE_CHECKING:
    from torch import Generator

    from onibi.learners.reward_models.member_layers import MemberEncoder


@dataclass(frozen=True, kw_only=True)
class SentenceVectorsSettings(Settings):
    """A sentence model that stays as it is."""

    kind: Literal["sentence"] = "sentence"
    model: str = PACKAGED_MODEL  # or the folder of a sentence-transformers model, or a name that it finds


class SentenceVectors:
    """Vectors of length 1 from a sentence model, which is opened when it is first used.

    Raises: ConfigError, then, where the model is not installed.
    """

    Settings: ClassVar[type[SentenceVectorsSettings]] = SentenceVectorsSettings

    def __init__(self, settings: SentenceVectorsSettings) -> None:
        self.settings = settings

    @cached_property
    def encoder(self) -> SentenceEncoder:
        """The sentence model."""
        return open_encoder(self.settings.model)

    def tokens(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """[texts, D] float32."""
        return self.encoder.encode(texts)

    def network(self, generators: Sequence[Generator]) -> MemberEncoder:  # noqa: ARG002 (nothing is drawn)
        """[N, B, D] → the same, scaled so that an entry is about 1."""
        from onibi.learners.reward_models.text_networks import ScaledVectors

        return ScaledVectors(self.encoder.dimensions)
