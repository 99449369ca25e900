"""Text encoders of reward models by name, imported when used. A new one is one file and one line here."""

from __future__ import annotations

TEXT_ENCODERS = {
    "bag_of_words": "onibi.learners.reward_models.bag_of_words:BagOfWords",
    "characters": "onibi.learners.reward_models.characters:Characters",
    "sentence": "onibi.learners.reward_models.sentence_vectors:SentenceVectors",
}
