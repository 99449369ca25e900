"""A caption as it stands in a prompt: quoted, on one line, cut to a length, and unable to leave its quotes.

Captions are data from outside. What the environment prints may hold quotes, line breaks, numbered lines, "answer:
helpful", or the control tokens of a model's chat format; none of it may end the quotes, start a new line, or become a
token with a meaning of its own. What a model *thinks* of the words inside the quotes no quoting can decide.
"""

from __future__ import annotations

import json
import re

from onibi.platform.annotation.captions import printable

CUT_MARK = "…"
"""Ends a caption that was cut."""

# Chat formats mark turns by <|…|>, </s>, [INST], <<SYS>>: a blank inside makes plain text of them for any tokenizer.
_OPENING = re.compile(r"<(?=\S)")
_CLOSING = re.compile(r"(?<=\S)>")
_BRACKETED = re.compile(r"\[(?=/?[A-Z_]{2,}\])")


def quoted_caption(text: str, most_characters: int) -> str:
    """The text as a JSON string of one line.

    Args:
        text: any text, lone surrogates and control characters included, which become blanks.
        most_characters: of the text inside the quotes, before JSON escapes quotes and backslashes; the rest is cut.
    """
    return json.dumps(plain_caption(text, most_characters), ensure_ascii=False)


def plain_caption(text: str, most_characters: int) -> str:
    """The text on one line without control characters and chat control tokens, cut; quotes are left as they are."""
    # Twice the length first: a caption of megabytes is not worth walking through.
    plain = printable(text[: 2 * most_characters])
    plain = _BRACKETED.sub("[ ", _CLOSING.sub(" >", _OPENING.sub("< ", plain)))
    if len(plain) > most_characters or len(text) > 2 * most_characters:
        plain = plain[: most_characters - 1].rstrip() + CUT_MARK
    return plain
