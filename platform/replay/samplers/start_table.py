"""Which rows may be drawn as starts, and how often: a sum tree over slots that knows whose row lies in each."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onibi.platform.errors import ReplayError
from onibi.platform.replay.samplers.frame_stack import first_read
from onibi.platform.replay.samplers.sum_tree import SumTree

_NO_ROW = -1
_REDRAWS = 64
_WAITING_MOST = 64
"""Updates that may wait for the next draw."""
_UNRATED = np.iinfo(np.int32).max
"""Reward version of a first priority: it was made without any reward, so none is newer."""
_LARGEST = 1e200
"""A priority may not be larger after the exponent: sums of a whole ring must stay finite."""


class StartTable:
    """Starts of L' lanes × ``slots``, each with a priority p; drawn with probability p^exponent / Σ p^exponent.

    A start is known by (place of its lane, row). ``first`` is the first row of what is drawn by it, at most
    ``look_back`` rows before it; with ``look_back`` 0 it is the row itself. A draw may read ``frames_before`` rows more
    before that (stacked frames): once the earliest of them is overwritten, the start is dropped.
    """

    def __init__(self, lanes: int, slots: int, *, exponent: float, look_back: int, frames_before: int = 0) -> None:
        """Empty. Raises: ReplayError where ``exponent`` is negative or not finite."""
        if not 0 <= exponent < float("inf"):
            raise ReplayError(f"priority exponent {exponent} is not allowed, it must be finite and at least 0")
        self._lanes, self._slots, self._exponent = lanes, slots, exponent
        self._frames_before, self._reach = frames_before, look_back + frames_before
        self._tree = SumTree(lanes * slots)
        self._row = np.full(lanes * slots, _NO_ROW, np.int64)
        self._first = self._row if look_back == 0 else np.full(lanes * slots, _NO_ROW, np.int64)
        self._held = np.zeros(lanes, np.int64)  # no start below it is in the table
        self._version = np.full(lanes * slots, _UNRATED, np.int32)  # of the rewards that a priority was made with
        self._newest_version = -1
        # New values that the tree has not seen: one walk up the tree for several batches' updates costs a fraction of
        # one for each.
        self._waiting: list[tuple[NDArray[np.int64], NDArray[np.float64]]] = []
        self.largest = 1.0
        """Largest priority ever set, at least 1: what new starts get."""
        self.stale_draws = 0
        """Draws by a priority that was made with older rewards than the newest priorities were."""

    @property
    def total(self) -> float:
        """Σ p^exponent over all starts."""
        self._settle()
        return self._tree.total

    @property
    def starts(self) -> int:
        """Number of starts held, those of priority 0 included; looks at every slot."""
        return int(np.count_nonzero(self._row != _NO_ROW))

    def add(
        self, place: NDArray[np.int64], row: NDArray[np.int64], first: NDArray[np.int64], priority: NDArray[np.float64]
    ) -> None:
        """Take in new starts, [m] each; what lay in their slots is forgotten."""
        self._settle()
        leaf = place * self._slots + row % self._slots
        self._row[leaf] = row
        self._first[leaf] = first
        self._version[leaf] = _UNRATED
        self._tree.set(leaf, self._powered(priority))

    def drop(self, oldest: NDArray[np.int64], taken: NDArray[np.int64]) -> None:
        """Forget starts that read a row below ``oldest`` [L']; ``taken`` [L'] is above every start in the table."""
        stop = np.minimum(oldest + self._reach, taken)
        count = np.maximum(stop - self._held, 0)
        total = int(count.sum())
        if total:
            self._settle()
            place = np.repeat(np.arange(self._lanes), count)
            row = np.arange(total) + np.repeat(self._held - (np.cumsum(count) - count), count)
            leaf = place * self._slots + row % self._slots
            leaf = leaf[(self._row[leaf] == row) & (first_read(self._first[leaf], self._frames_before) < oldest[place])]
            self._row[leaf] = _NO_ROW
            self._tree.set(leaf, np.zeros(len(leaf)))
        self._held = np.maximum(self._held, oldest)

    def update(
        self,
        place: NDArray[np.int64],
        row: NDArray[np.int64],
        priority: NDArray[np.float64],
        current: NDArray[np.bool_],
        reward_version: int = 0,
    ) -> int:
        """New priorities, [m] each, where ``current``, made with rewards of one version; of a start named twice the
        last one holds.

        Returns: how many were applied: starts that are not in the table any more are left alone.
        Raises: ReplayError for a priority that is none, current or not: nothing is changed then.
        """
        value = self._powered(priority)
        leaf = row % self._slots
        leaf += place * self._slots
        known = np.take(self._row, leaf, mode="clip") == row
        known &= current
        if not known.all():
            leaf, value, priority = leaf[known], value[known], priority[known]
        if len(leaf):
            self._waiting.append((leaf, value))
            self._version[leaf] = reward_version
            self._newest_version = max(self._newest_version, reward_version)
            if len(self._waiting) == _WAITING_MOST:
                self._settle()
            self.largest = max(self.largest, float(priority.max()))
        return len(leaf)

    def draw(
        self, count: int, rng: np.random.Generator
    ) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]:
        """``count`` independent draws: (place, row, first, probability), [count] each.

        Raises: ReplayError where every priority is 0.
        """
        total = self.total
        if not total > 0:
            held = self.starts
            if not held:
                raise ReplayError("no start can be drawn: none is held; draw after more steps came in")
            raise ReplayError(
                f"no start can be drawn: {held} are held, their priorities are all 0. Add a small constant to "
                "priorities, or draw after more steps came in"
            )
        leaf = np.empty(count, np.int64)
        missing: Any = slice(None)
        missing_count = count
        values = self._tree.values
        for _ in range(_REDRAWS):
            leaf[missing] = self._tree.find(rng.random(missing_count) * total)
            value = np.take(values, leaf, mode="clip")
            missing = np.flatnonzero(value == 0)  # rounding at a border between shares
            missing_count = len(missing)
            if not missing_count:
                self.stale_draws += int(
                    np.count_nonzero(np.take(self._version, leaf, mode="clip") < self._newest_version)
                )
                return leaf // self._slots, self._row[leaf], self._first[leaf], value / total
        raise AssertionError("a sum tree with a positive total found empty leaves only")

    def state(self) -> dict[str, Any]:
        """Arrays of the starts held (``leaf``, ``row``, ``first`` int64; ``value`` float64; ``version`` int32) and
        plain values.
        """
        self._settle()
        leaf = np.flatnonzero(self._row != _NO_ROW)
        return {
            "leaf": leaf,
            "row": self._row[leaf],
            "first": self._first[leaf],
            "value": self._tree.values[leaf].copy(),
            "version": self._version[leaf],
            "newest_version": self._newest_version,
            "stale_draws": self.stale_draws,
            "held": self._held.copy(),
            "largest": self.largest,
            "exponent": self._exponent,
            "slots": self._slots,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Become what ``state`` was taken of. Raises: ReplayError where lanes, slots or exponent differ."""
        held = np.asarray(state["held"], np.int64)
        found = (len(held), int(state["slots"]), float(state["exponent"]))
        if found != (self._lanes, self._slots, self._exponent):
            raise ReplayError(
                f"the state is of {found[0]} lanes x {found[1]} slots with exponent {found[2]}, this sampler has "
                f"{self._lanes} x {self._slots} with {self._exponent}; restore it with the ring and settings it "
                "was taken with, or start a new sampler"
            )
        leaf = np.asarray(state["leaf"], np.int64)
        self._tree, self._waiting = SumTree(self._lanes * self._slots), []
        self._tree.set(leaf, np.asarray(state["value"], np.float64))
        self._row[:], self._first[:] = _NO_ROW, _NO_ROW
        self._row[leaf] = np.asarray(state["row"], np.int64)
        self._first[leaf] = np.asarray(state["first"], np.int64)
        self._version[:] = _UNRATED
        self._version[leaf] = np.asarray(state.get("version", _UNRATED), np.int32)  # older checkpoints have none
        self._newest_version, self.stale_draws = int(state.get("newest_version", -1)), int(state.get("stale_draws", 0))
        self._held, self.largest = held.copy(), float(state["largest"])

    def _settle(self) -> None:
        """Hand the tree what waits, in the order of the updates."""
        if self._waiting:
            self._tree.set(*(np.concatenate(parts) for parts in zip(*self._waiting, strict=True)))
            self._waiting = []

    def _powered(self, priority: NDArray[np.float64]) -> NDArray[np.float64]:
        with np.errstate(over="ignore", invalid="ignore"):
            value = np.power(priority, self._exponent)
        # min and max hand a NaN on, and no comparison with one is true.
        if len(value) and not (priority.min() >= 0 and priority.max() < np.inf and value.max() <= _LARGEST):
            wrong = ~((priority >= 0) & np.isfinite(priority) & (value <= _LARGEST))
            index = int(np.argmax(wrong))
            raise ReplayError(
                f"priority {index} of {len(priority)} is {priority[index]}; allowed are finite numbers from 0 whose "
                f"power {self._exponent} is at most {_LARGEST:g}. Look for a loss that is not finite"
            )
        return value
