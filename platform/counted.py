"""Numbers of things in messages: 1 row, 1,024 rows."""

from __future__ import annotations


def counted(number: int, thing: str) -> str:
    """The number with what it is of, in the plural unless it is 1; ``thing`` takes an s."""
    return f"{number:,} {thing}{'' if number == 1 else 's'}"
