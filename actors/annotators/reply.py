"""Reads what a language model answered, strictly: a verdict is taken only where nothing else can be meant.

Whatever is odd gives no verdict for the captions concerned, and for all of a request where it is unclear which caption
an answer belongs to: wrong counts, unknown numbers, one number twice, words beside the answer, a reply that was cut.
No verdict is an ``INVALID`` label: asked again, never counted as unhelpful.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

_FENCE = re.compile(r"\A```(?:json)?[ \t]*\n(.*?)\n?```\Z", re.DOTALL | re.IGNORECASE)
_LINE = re.compile(r"\A(?P<number>\d{1,4})[ \t]*[:.)][ \t]*(?P<answer>\S.*?)\Z")
_ARROW = "=>"
QUOTES = "\"'*`“”"
"""May stand around an answer and say nothing."""


@dataclass(frozen=True)
class Verdict:
    """What a reply says of one caption or pair.

    ``word`` is one of the allowed words; None where none can be read, ``fault`` then says why. ``text`` is the part of
    the reply that speaks of it, or the whole reply.
    """

    word: str | None
    text: str
    fault: str = ""


class _Unreadable(Exception):
    """The reply as a whole cannot be read."""


def read_reply(text: str, count: int, words: Sequence[str], *, explain: bool, complete: bool) -> list[Verdict]:
    """Verdicts 1 to ``count``, in order.

    Args:
        text: the reply; JSON where it starts like it, lines otherwise.
        count: captions asked about.
        words: the allowed answers.
        explain: whether an analysis stands with each answer.
        complete: False where the server says that the reply was cut: then nothing is taken.
    """
    try:
        if not complete:
            raise _Unreadable("the reply was cut at its length")
        body = _without_thoughts(text.strip())
        fence = _FENCE.match(body)
        if fence is not None:
            body = fence.group(1).strip()
        if not body:
            raise _Unreadable("the reply is empty")
        read = _read_json if body[0] in "{[" else _read_lines
        return read(body, count, words, explain)
    except _Unreadable as error:
        return [Verdict(None, text, str(error))] * count


def _without_thoughts(text: str) -> str:
    # Reasoning models of servers that do not take the thoughts out; some have their begin in the prompt's template.
    _, end, answer = text.rpartition("</think>")
    if not end and text.startswith("<think>"):
        raise _Unreadable("the reply ends within its thoughts")
    return answer.strip()


def _read_json(body: str, count: int, words: Sequence[str], explain: bool) -> list[Verdict]:
    try:
        answers = json.loads(body, object_pairs_hook=_without_repeats)
    except (ValueError, RecursionError) as error:
        raise _Unreadable(f"not JSON: {str(error)[:200]}") from error
    if not isinstance(answers, Mapping):
        raise _Unreadable(f"found a JSON {type(answers).__name__}, expected an object")
    names = [str(number) for number in range(1, count + 1)]
    if set(answers) != set(names):
        raise _Unreadable(f"found {len(answers)} keys, expected exactly 1 to {count}")
    if count == 1:
        return [_json_verdict(answers["1"], body, words, explain)]
    return [_json_verdict(answers[name], _entry_text(name, answers[name]), words, explain) for name in names]


def _entry_text(name: str, answer: object) -> str:
    return json.dumps({name: answer}, ensure_ascii=False)


def _without_repeats(pairs: list[tuple[str, object]]) -> dict[str, object]:
    mapping = dict(pairs)
    if len(mapping) != len(pairs):
        raise ValueError("one key stands twice")
    return mapping


def _json_verdict(entry: object, text: str, words: Sequence[str], explain: bool) -> Verdict:
    label = entry
    if explain:
        if not isinstance(entry, Mapping) or set(entry) != {"analysis", "label"}:
            return Verdict(None, text, "expected an object of analysis and label")
        label = entry["label"]
    word = _word(label, words) if isinstance(label, str) else None
    return Verdict(word, text, "" if word else f"the label is none of {', '.join(words)}")


def _read_lines(body: str, count: int, words: Sequence[str], explain: bool) -> list[Verdict]:
    lines = [line.strip() for line in body.splitlines() if line.strip()]
    if count == 1 and len(lines) == 1 and not explain:
        word = _word(lines[0], words)
        if word is not None:
            return [Verdict(word, lines[0])]
    found: dict[int, tuple[str, str]] = {}
    for line in lines:
        match = _LINE.match(line)
        if match is None:
            raise _Unreadable(f"a line is no answer: {line[:80]!r}")
        number = int(match["number"])
        if number in found:
            raise _Unreadable(f"number {number} is answered twice")
        found[number] = (match["answer"], line)
    if set(found) != set(range(1, count + 1)):
        raise _Unreadable(f"answers for {len(found)} numbers, expected exactly 1 to {count}")
    return [_line_verdict(*found[number], words, explain) for number in range(1, count + 1)]


def _line_verdict(answer: str, line: str, words: Sequence[str], explain: bool) -> Verdict:
    label = answer
    if explain:
        if answer.count(_ARROW) != 1:
            return Verdict(None, line, f"expected one {_ARROW!r} between analysis and answer")
        label = answer.partition(_ARROW)[2]
    word = _word(label, words)
    return Verdict(word, line, "" if word else f"the answer is none of {', '.join(words)}")


def _word(text: str, words: Sequence[str]) -> str | None:
    """The allowed word that the text is, but for its case, quotes or stars around it, and a full stop."""
    bare = text.strip().strip(QUOTES).removesuffix(".").strip(QUOTES).lower()
    return bare if bare in words else None
