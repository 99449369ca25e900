"""What a learner wants to draw: three descriptions, each naming a sampler and the shape of its batches."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from onibi.platform.config import Settings
from onibi.platform.number_ranges import Count, NotNegative, Probability
from onibi.platform.replay.samplers.fifo_sampler import Slab
from onibi.platform.replay.samplers.newest_first_sampler import NewestFirstSettings
from onibi.platform.replay.samplers.sequences import Sequences
from onibi.platform.replay.samplers.trajectory_sampler import TrajectorySettings
from onibi.platform.replay.samplers.uniform_sampler import UniformSettings
from onibi.platform.replay.samplers.window_gather import EachRow
from onibi.platform.replay.samplers.windows import Windows

Batch: TypeAlias = Windows | Sequences | Slab
"""What a draw returns: [B, n], [T, B] or [B, T]; see each class for its arrays."""


@dataclass(frozen=True, kw_only=True)
class PrioritySettings(Settings):
    """Draws in proportion to p^exponent, weighed with (N · P)^−importance_exponent (Schaul et al. 2016)."""

    exponent: NotNegative = 0.6  # α; 0: uniform
    importance_exponent: Probability = 0.4  # β at the first batch
    importance_exponent_final: Probability = 1.0  # β after importance_anneal_updates batches
    importance_anneal_updates: Count | None = None  # null: β stays as it is at first

    def __post_init__(self) -> None:
        if self.importance_anneal_updates is None and self.importance_exponent_final != 1.0:
            raise ValueError(
                f"importance_exponent_final is {self.importance_exponent_final}, which is never reached while "
                "importance_anneal_updates is null: set both, or importance_exponent alone"
            )

    def importance_exponent_at(self, batch: int) -> float:
        """β of the batch with this number, counted from 0 over the whole run: linear from the first to the final."""
        if self.importance_anneal_updates is None:
            return self.importance_exponent
        share = min(1.0, batch / self.importance_anneal_updates)
        return self.importance_exponent + share * (self.importance_exponent_final - self.importance_exponent)


SAMPLING = {
    "uniform": "onibi.platform.replay.samplers.uniform_sampler:UniformSampler",
    "newest_first": "onibi.platform.replay.samplers.newest_first_sampler:NewestFirstSampler",
    "trajectory_weighted": "onibi.platform.replay.samplers.trajectory_sampler:TrajectoryWeightedSampler",
}
"""Ways to choose windows without priorities: kind → sampler."""

Sampling: TypeAlias = UniformSettings | NewestFirstSettings | TrajectorySettings


@dataclass(frozen=True, kw_only=True)
class WindowDraws:
    """``Windows`` of at most ``n_steps``, drawn by priority, or as ``sampling`` says where there are none."""

    n_steps: int
    batch_size: int
    priorities: PrioritySettings | None = None
    sampling: Sampling = field(default_factory=UniformSettings)
    each_row: EachRow = field(default_factory=EachRow)

    @property
    def batch_rows(self) -> int:
        """The most rows that the limiter counts for one batch."""
        return self.batch_size

    @property
    def window_rows(self) -> int:
        """The longest reach of a draw in rows: the ring is made for it."""
        return self.n_steps


@dataclass(frozen=True, kw_only=True)
class SequenceDraws:
    """``Sequences`` of up to ``burn_in`` + ``length`` rows, starts every ``period`` rows; see ``SequenceSampler``.

    ``first_row_columns`` are states (a recurrent one) or extra columns of the first row alone; they come in
    ``first_extra``.
    """

    length: int
    burn_in: int
    period: int
    batch_size: int
    tail: Literal["pad", "shift"] = "pad"
    priorities: PrioritySettings | None = None
    first_row_columns: tuple[str, ...] = ()

    @property
    def batch_rows(self) -> int:
        """The most rows that the limiter counts for one batch: burn-in and padding are not counted."""
        return self.length * self.batch_size

    @property
    def window_rows(self) -> int:
        """The longest reach of a draw in rows."""
        return self.burn_in + self.length


@dataclass(frozen=True, kw_only=True)
class SlabDraws:
    """``Slab`` of ``rows`` consecutive rows of ``batch_lanes`` lanes, each row once: for on-policy learners."""

    rows: int
    batch_lanes: int

    @property
    def batch_size(self) -> int:
        """B, the lanes of a slab."""
        return self.batch_lanes

    @property
    def batch_rows(self) -> int:
        """The most rows that the limiter counts for one batch: final rows are not counted."""
        return self.rows * self.batch_lanes

    @property
    def window_rows(self) -> int:
        """The longest reach of a draw in rows."""
        return self.rows


Draws: TypeAlias = WindowDraws | SequenceDraws | SlabDraws
