"""What can be chosen about a recurrent core, and the column that holds its state. No torch: actors import this."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from onibi.platform.config import Settings
from onibi.platform.number_ranges import Count
from onibi.platform.spec import ArraySpec

STATE_COLUMN = "recurrent_state"
"""What replay calls the state before the row's observation was read: a state of R2D2's, an extra column of slabs'."""


@dataclass(frozen=True, kw_only=True)
class CoreSettings(Settings):
    """The memory between encoder and head."""

    cell: Literal["lstm", "gru"] = "lstm"
    size: Count = 128  # H: features handed to the head; the state has 2 H numbers, H with gru
    layer_norm: bool = False  # LayerNorm of what the head reads; the state itself stays as the cell made it


def state_size(settings: CoreSettings) -> int:
    """S, the numbers in a state: an LSTM's h and c side by side, a GRU's h."""
    return (2 if settings.cell == "lstm" else 1) * settings.size


def state_column(settings: CoreSettings) -> ArraySpec:
    """The column of replay that holds the state of each row."""
    return ArraySpec(name=STATE_COLUMN, dtype="float32", shape=(state_size(settings),))
