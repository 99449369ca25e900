"""Annotators by ``kind``: who judges captions. One file and one line each."""

from __future__ import annotations

ANNOTATORS = {
    "lexicon": "onibi.actors.annotators.lexicon:LexiconAnnotator",
    "openai": "onibi.actors.annotators.openai:OpenaiAnnotator",
}
