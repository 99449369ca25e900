"""``onibi COMMAND --help``: prose wrapped once, at the terminal's width, and examples as they are typed."""

from __future__ import annotations

import inspect
import re
from typing import Any

from typer.core import TyperCommand

_HEADING = re.compile(r"^Examples?:\n+", re.MULTILINE)


class HelpfulCommand(TyperCommand):
    """A command whose docstring ends with ``Examples:`` and a line for each, which nothing breaks or joins.

    Typer breaks lines where the docstring does and once more where the terminal ends, examples too.
    """

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        prose, *examples = _HEADING.split(inspect.cleandoc(self.help or ""), maxsplit=1)
        self.help = "\n\n".join(" ".join(paragraph.split()) for paragraph in prose.split("\n\n"))
        self.examples = tuple(examples[0].splitlines()) if examples else ()

    def format_help(self, ctx: Any, formatter: Any) -> None:  # Any: which click typer brings differs by its version
        """Typer's own, which it prints, and the examples below, where a screen ends."""
        super().format_help(ctx, formatter)
        if self.examples:
            formatter.write("\n".join([" Examples:", *(f" {line}".rstrip() for line in self.examples), ""]))
