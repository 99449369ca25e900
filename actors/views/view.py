"""The contract of a view."""

from __future__ import annotations

from typing import Any, Protocol

from numpy.typing import NDArray

from onibi.platform.replay.text_table import TextTable
from onibi.platform.spec import ArraySpec


class View(Protocol):
    """Turns raw batched observations into the columns that replay stores and the network reads."""

    raw_keys: tuple[str, ...]
    """Keys of a raw Dict observation that it reads; empty where it reads all."""

    specs: tuple[ArraySpec, ...]
    """The columns it makes, named ``observation`` or ``observation.KEY``."""

    texts: TextTable | None
    """Where the texts of Text leaves are kept, whose columns hold hashes; None where there is no such leaf."""

    def __call__(self, raw: Any) -> dict[str, NDArray[Any]]:
        """Columns [E, ...] of raw observations of E environments. May alias ``raw``; never writes to it."""
