"""Annotators by ``kind``: who judges captions. One file and one line each."""

from __future__ import annotations

ANNOTATORS = {
    "auto": "onibi.actors.annotators.auto:AutoAnnotator",
    "custom": "onibi.actors.annotators.custom:CustomAnnotator",
    "embedding": "onibi.actors.annotators.embedding:EmbeddingAnnotator",
    "lexicon": "onibi.actors.annotators.lexicon:LexiconAnnotator",
    "openai": "onibi.actors.annotators.openai:OpenaiAnnotator",
    "replay": "onibi.actors.annotators.replay:ReplayAnnotator",
    "similarity": "onibi.actors.annotators.similarity:SimilarityAnnotator",
    "transformers": "onibi.actors.annotators.transformers:TransformersAnnotator",
}
