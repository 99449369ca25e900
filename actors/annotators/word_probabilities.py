"""Scores from the probabilities of the words that a model might have answered with, instead of from its answer.

For words w of verdicts v, with p(t) the probability of token t as the first of the answer:

    P(v) = Σ p(t) over tokens t that begin w and no other word       score = P(helpful) / (P(helpful) + P(unhelpful))

Only where the words hold at least ``least_share`` of the probability together is there a verdict at all: a model that
is about to say something else has not judged.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class WordScores:
    """How likely each verdict is.

    ``share``: probability of all the words together; ``probability``: of each verdict, in parts of that share, or None
    where the share is too small to mean anything.
    """

    share: float
    probability: dict[str, float] | None

    def describe(self) -> str:
        """For the label's reply: what the model would have said, in numbers."""
        if self.probability is None:
            return f"the answer's words hold only {self.share:.3g} of the probability"
        scores = ", ".join(f"{verdict} {probability:.6g}" for verdict, probability in self.probability.items())
        return f"{scores} (of a share of {self.share:.3g})"


def word_scores(tokens: Iterable[tuple[str, float]], words: Mapping[str, str], least_share: float) -> WordScores:
    """Scores from the likeliest first tokens.

    Args:
        tokens: token text and natural logarithm of its probability; values that are no logarithm of one are skipped,
            and so is what stands there twice. Two tokens of one text ("yes" with and without a blank) differ in theirs.
        words: verdict → its word.
        least_share: of the words' probability together, 0 to 1.
    """
    sums = dict.fromkeys(words, 0.0)
    for token, log_probability in dict.fromkeys(tokens):
        verdict = verdict_of_token(token, words)
        # Above 0 within rounding; NaN compares false.
        if verdict is not None and log_probability <= 1e-3:
            sums[verdict] += math.exp(min(log_probability, 0.0))
    share = sum(sums.values())
    # A sum above 1 beyond rounding is no distribution: repeated tokens, or numbers made up.
    if not least_share <= share <= 1.01 or share == 0.0:
        return WordScores(share, None)
    return WordScores(min(share, 1.0), {verdict: value / share for verdict, value in sums.items()})


def verdict_of_token(token: str, words: Mapping[str, str]) -> str | None:
    """The verdict whose word begins with this token, whatever its case and the blanks before; None for none or two."""
    # "Ġ" and "▁" stand for a blank in vocabularies that servers hand through.
    bare = token.strip().lstrip("Ġ▁").lower()
    if not bare:
        return None
    found = [verdict for verdict, word in words.items() if word.startswith(bare)]
    return found[0] if len(found) == 1 else None
