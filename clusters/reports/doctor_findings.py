"""What ``onibi doctor`` found, as rows for a terminal and an exit code."""

from __future__ import annotations

import enum
from collections.abc import Iterable
from dataclasses import dataclass

from rich.table import Table
from rich.text import Text


class Finding(enum.Enum):
    """GOOD; WARNING: a run starts, but see the hint; MISSING: what was asked about is not there and no run starts."""

    GOOD = "good"
    WARNING = "warning"
    MISSING = "missing"


@dataclass(frozen=True)
class DoctorRow:
    """One line: what was looked at, how it stands, what was found, and what to do about it ("" for nothing)."""

    name: str
    finding: Finding
    found: str
    hint: str = ""


def exit_code(rows: Iterable[DoctorRow]) -> int:
    """1 where something needed is missing, else 0."""
    return int(any(row.finding is Finding.MISSING for row in rows))


def doctor_table(rows: Iterable[DoctorRow]) -> Table:
    """The rows for a terminal."""
    marks = {
        Finding.GOOD: Text("✓", "green"),
        Finding.WARNING: Text("!", "bold yellow"),
        Finding.MISSING: Text("✗", "bold red"),
    }
    table = Table.grid(padding=(0, 2))
    table.add_column()
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for row in rows:
        found = Text(row.found)
        if row.hint:
            found.append(f"\n→ {row.hint}", "yellow")
        table.add_row(marks[row.finding], row.name, found)
    return table
