"""Priorities of a sampler's starts: first ones, updates that may come late, importance weights."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from onibi.platform.errors import ReplayError
from onibi.platform.replay.ring.reader import RingReader
from onibi.platform.replay.row_intake import NewRows
from onibi.platform.replay.samplers.start_table import StartTable
from onibi.platform.spec import ROLE_FINAL

log = logging.getLogger(__name__)

MAXIMUM = "maximum"
"""``default_priority`` that gives new starts the largest priority seen so far."""


def importance_weights(probability: NDArray[np.float64], exponent: float) -> NDArray[np.float32]:
    """w_i = (N · P(i))^-β / max_j (N · P(j))^-β = (min_j P(j) / P(i))^β over the batch (Schaul et al. 2016, §3.4).

    Args:
        probability: [B], above 0.
        exponent: β from 0 (no correction) to 1 (full).
    Returns: [B], the largest is 1. N cancels out.
    """
    weights: NDArray[np.float64] = (probability.min() / probability) ** exponent
    return weights.astype(np.float32)


def check_importance_exponent(exponent: float) -> float:
    """``exponent``. Raises: ReplayError where it is not from 0 to 1."""
    if not 0 <= exponent <= 1:
        raise ReplayError(f"importance_exponent {exponent} is not allowed, it must be from 0 to 1")
    return exponent


class StartPriorities:
    """First priorities and updates of the starts of one ``StartTable``."""

    def __init__(self, reader: RingReader, lanes: NDArray[np.int64], table: StartTable, default_priority: str) -> None:
        """Raises: ReplayError where ``default_priority`` is neither "maximum" nor a scalar float column."""
        self._reader, self._lanes, self._table = reader, lanes, table
        self._place = np.full(reader.lanes, -1, np.int64)
        self._place[lanes] = np.arange(len(lanes))
        self._column = None if default_priority == MAXIMUM else default_priority
        fitting = [c.name for c in reader.spec.extra if c.shape == () and np.dtype(c.dtype).kind == "f"]
        if self._column is not None and self._column not in fitting:
            raise ReplayError(
                f"{reader.path}: default_priority {default_priority!r} is neither {MAXIMUM!r} nor one of the scalar "
                f"float columns {fitting}; let the learner declare it as an extra column"
            )
        self.late_updates = 0
        self.replaced = 0

    @property
    def columns(self) -> Sequence[str]:
        """What ``first`` reads of new rows."""
        return () if self._column is None else (self._column,)

    def first(self, rows: NewRows, chosen: NDArray[np.int64]) -> NDArray[np.float64]:
        """Priorities of starts that the new rows ``chosen`` [m] tell of; ``rows.columns`` holds ``role``.

        Of a column, what is NaN, infinite or negative counts as the largest so far, for the row is in the ring and
        cannot be refused any more; so does a final row, whose columns are empty.
        """
        if self._column is None:
            return np.full(len(chosen), self._table.largest)
        given = rows.columns[self._column][chosen].astype(np.float64)
        given[rows.columns["role"][chosen] == ROLE_FINAL] = self._table.largest
        good = np.isfinite(given) & (given >= 0)
        if not good.all():
            if not self.replaced:
                log.warning(
                    "column %r brings priorities that are NaN, infinite or negative; such rows get the largest "
                    "priority so far. Look at the actors' priorities",
                    self._column,
                )
            self.replaced += int(np.count_nonzero(~good))
            given[~good] = self._table.largest
        return given

    def update(self, lane: ArrayLike, generation: ArrayLike, priority: ArrayLike, reward_version: int = 0) -> int:
        """See ``PrioritizedSampler.update``."""
        lanes, rows = np.asarray(lane, np.int64), np.asarray(generation, np.int64)
        values = np.asarray(priority, np.float64)
        if not lanes.shape == rows.shape == values.shape or lanes.ndim != 1:
            raise ReplayError(
                f"{self._reader.path}: lane {lanes.shape}, generation {rows.shape} and priority {values.shape} must "
                "be [m] each; pass the windows' own lane and generation"
            )
        if not len(lanes):
            return 0
        place = self._place[lanes] if lanes.min() >= 0 and lanes.max() < len(self._place) else None
        if place is None or place.min() < 0:
            raise ReplayError(
                f"{self._reader.path}: priorities of lanes {np.unique(lanes).tolist()[:8]} came in, this sampler draws "
                f"from {self._lanes.tolist()[:8]}; update the sampler that the windows came from"
            )
        applied = self._table.update(place, rows, values, rows >= self._reader.oldest_now()[lanes], reward_version)
        self.late_updates += len(lanes) - applied
        return applied
