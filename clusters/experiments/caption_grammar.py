"""Captions from a grammar whose worth is known: what a judge's noise does to a reward can be measured exactly."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


_VERBS = _words(
    "see hit open take drop kick read eat drink push pull break bend fill empty light throw carry hide find bury climb "
    "feed free trap lock unlock paint polish sharpen repair burn freeze melt bless curse trade weigh name follow"
)
_ADJECTIVES = _words(
    "old small large red blue green rusty shiny broken cracked wooden iron silver golden heavy light dusty wet cold "
    "warm strange plain cursed blessed hollow sharp blunt round narrow tall"
)
_NOUNS = _words(
    "door key sword shield lamp chest box coin ring stone rope ladder book scroll map bottle cup plate knife axe bow "
    "arrow helmet boot cloak glove belt bag barrel crate table chair bed mirror clock bell drum flute harp candle "
    "torch wand staff orb crown statue altar fountain lever wheel gear chain hook net cage trap bridge boat anchor"
)
_PLACES = _words("hall cellar kitchen attic library chapel garden tower vault mine cave crypt")
SLOTS = (_VERBS, _ADJECTIVES, _NOUNS, _PLACES)

_VERB, _NOUN = 0, 2


@dataclass(frozen=True)
class GradedCaptions:
    """Distinct captions, how often a policy that nobody optimised brings each, and what each is truly worth."""

    texts: list[str]
    base: NDArray[np.float64]
    """[n], probabilities; their sum is 1."""
    gold: NDArray[np.float64]
    """[n], of mean 0 and standard deviation 1 under ``base``. No judge and no model sees it."""


def make_captions(count: int, together: float, rng: np.random.Generator) -> GradedCaptions:
    """Sentences "You VERB the ADJECTIVE NOUN in the PLACE.", drawn uniformly from the grammar's sentences.

        base  ∝ Π over words of 1/rank          (Zipf, in each place of the sentence for itself)
        gold  =  Σ over words of u(word) + together · v(verb, noun),     u, v ~ N(0, 1), then standardised

    Args:
        count: n.
        together: how much a verb and a noun count together, beyond each alone.
        rng: draws sentences and worths.
    Raises: ValueError where the grammar has not so many sentences.
    """
    sizes = [len(slot) for slot in SLOTS]
    if not 1 <= count <= np.prod(sizes):
        raise ValueError(f"captions is {count}; the grammar has 1 to {np.prod(sizes)} sentences")
    sentences = rng.choice(int(np.prod(sizes)), size=count, replace=False)
    words = np.stack(np.unravel_index(sentences, sizes), axis=1)
    base = np.prod([1.0 / (words[:, place] + 1) for place in range(len(SLOTS))], axis=0)
    base /= base.sum()
    gold = sum((rng.normal(size=size)[words[:, place]] for place, size in enumerate(sizes)), np.zeros(count))
    gold += together * rng.normal(size=(sizes[_VERB], sizes[_NOUN]))[words[:, _VERB], words[:, _NOUN]]
    gold -= base @ gold
    gold /= np.sqrt(base @ gold**2)
    texts = [_sentence(row) for row in words]
    return GradedCaptions(texts, base, gold)


def _sentence(words: NDArray[np.int64]) -> str:
    verb, adjective, noun, place = (slot[word] for slot, word in zip(SLOTS, words, strict=True))
    return f"You {verb} the {adjective} {noun} in the {place}."
