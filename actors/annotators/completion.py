"""Reads the body of a chat completion or completion, trusting nothing in it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from onibi.actors.annotators.reply import QUOTES
from onibi.platform.errors import AnnotatorError

_MOST_TOKENS = 10_000_000  # of one answer; more is no count
_MOST_LOGARITHM = 10**300


@dataclass(frozen=True)
class Completion:
    """One answer.

    ``complete`` is False where it was cut or withheld. ``prompt_tokens`` and ``reply_tokens`` are None where the server
    does not count. ``first_tokens`` are the likeliest tokens at the place of the first one that is more than blanks and
    quotes, with the natural logarithms of their probabilities; None where the server gives none.
    """

    text: str
    complete: bool
    prompt_tokens: int | None
    reply_tokens: int | None
    first_tokens: list[tuple[str, float]] | None


class CompletionFault(AnnotatorError):
    """A body that holds no completion."""


def read_completion(body: bytes) -> Completion:
    """The only choice of a completion, of either API.

    Raises: CompletionFault where the body is not JSON, holds no choice or several, or no text.
    """
    try:
        answer = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise CompletionFault(f"not JSON ({str(error)[:200]}): {body[:80]!r}") from error
    choices = answer.get("choices") if isinstance(answer, Mapping) else None
    if not isinstance(choices, list) or len(choices) != 1 or not isinstance(choices[0], Mapping):
        raise CompletionFault(f"expected an object with one choice: {body[:80]!r}")
    choice = choices[0]
    message = choice.get("message")
    text = message.get("content") if isinstance(message, Mapping) else choice.get("text")
    if text is None and isinstance(message, Mapping):
        text = ""  # a refusal, a call of a tool, thoughts alone: an answer with nothing to read
    if not isinstance(text, str):
        raise CompletionFault(f"the choice has no text: {body[:80]!r}")
    # Servers that know no reason send null.
    complete = choice.get("finish_reason") in ("stop", "stop_sequence", "eos", "eos_token", None)
    usage = answer.get("usage")
    counts = usage if isinstance(usage, Mapping) else {}
    reply_tokens = _count(counts.get("completion_tokens"))
    return Completion(
        text=text,
        complete=complete,
        # No prompt has 0 tokens, and no text: servers that do not count say so, too.
        prompt_tokens=_count(counts.get("prompt_tokens")) or None,
        reply_tokens=None if text and not reply_tokens else reply_tokens,
        first_tokens=_first_tokens(choice.get("logprobs")),
    )


def _count(value: Any) -> int | None:
    return value if type(value) is int and 0 <= value <= _MOST_TOKENS else None


def _first_tokens(logprobs: Any) -> list[tuple[str, float]] | None:
    if not isinstance(logprobs, Mapping):
        return None
    content = logprobs.get("content")
    if isinstance(content, list):  # chat: a list of {token, logprob, top_logprobs: [{token, logprob}]}
        places = [place for place in content if isinstance(place, Mapping)]
        sampled = [place.get("token") for place in places]
        tops = [_pairs(place.get("top_logprobs")) for place in places]
    else:  # completion: lists {tokens: [token], top_logprobs: [{token: logprob}]}
        tokens, top = logprobs.get("tokens"), logprobs.get("top_logprobs")
        if not isinstance(tokens, list) or not isinstance(top, list):
            return None
        sampled = tokens
        tops = [_pairs(place) for place in top]
    for token, likeliest in zip(sampled, tops, strict=False):
        if isinstance(token, str) and token.strip().strip(QUOTES):
            return likeliest or None
    return None


def _pairs(top: Any) -> list[tuple[str, float]]:
    if isinstance(top, Mapping):
        found = list(top.items())
    elif isinstance(top, list):
        found = [(entry.get("token"), entry.get("logprob")) for entry in top if isinstance(entry, Mapping)]
    else:
        return []
    return [(token, float(value)) for token, value in found if isinstance(token, str) and _is_logarithm(value)]


def _is_logarithm(value: Any) -> bool:
    # A whole number of JSON has any length, and those beyond 1e308 are no float.
    return type(value) is float or (type(value) is int and abs(value) <= _MOST_LOGARITHM)
