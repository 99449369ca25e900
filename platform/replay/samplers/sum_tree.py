"""A binary sum tree in one array: draws and updates of many leaves at once."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_TOP = 1 << 10
"""Nodes of the level that a draw looks through by its running sum, which is faster than that many levels of descent."""
_DENSE = 16
"""A level with at most this many nodes per changed leaf is recomputed whole: a contiguous sum beats scattered ones."""


class SumTree:
    """Non-negative values at leaves 0 to ``leaves - 1``, all float64, with the sum of every pair above them.

    Node i has children 2i and 2i + 1, the root is node 1. ``set`` computes the nodes above changed leaves anew from
    their children instead of adding differences to them. So errors do not pile up over updates: every node is off by at
    most ``depth × 2⁻⁵³`` of its value, 3e-15 at a million leaves, and no rebuild is ever due.
    """

    def __init__(self, leaves: int) -> None:
        """All values 0. Raises: ValueError where ``leaves`` is below 1."""
        if leaves < 1:
            raise ValueError(f"a sum tree of {leaves} leaves cannot be made, it needs at least 1")
        self.leaves = leaves
        self._width = 1 << (leaves - 1).bit_length()  # of the leaf level
        self._node = np.zeros(2 * self._width)
        self._top = min(_TOP, self._width)
        self._ends: NDArray[np.float64] | None = None  # running sum of that level, until values change

    @property
    def total(self) -> float:
        """Sum of all values."""
        return float(self._node[1])

    @property
    def values(self) -> NDArray[np.float64]:
        """[leaves], a read-only view."""
        view = self._node[self._width : self._width + self.leaves]
        view.flags.writeable = False
        return view

    def set(self, leaf: NDArray[np.int64], value: NDArray[np.float64]) -> None:
        """Set values, [m] each. Of a leaf named twice the last value holds.

        Raises: ValueError where a leaf does not exist or a value is negative or not finite; nothing is changed then.
        """
        if not len(leaf):
            return
        if leaf.min() < 0 or leaf.max() >= self.leaves:
            raise ValueError(f"leaves {leaf.min()} to {leaf.max()} were named, the tree has 0 to {self.leaves - 1}")
        if not (value >= 0).all() or not np.isfinite(value).all():
            raise ValueError("a value is negative or not finite; a sum tree holds finite values from 0")
        self._ends = None
        node = leaf + self._width
        self._node[node] = value
        width = self._width
        while width > 1:
            width >>= 1
            if width <= _DENSE * len(leaf):
                self._sum_levels(width)
                return
            left = node & ~1
            node >>= 1
            self._node[node] = np.take(self._node, left, mode="clip") + np.take(self._node, left + 1, mode="clip")

    def find(self, target: NDArray[np.float64]) -> NDArray[np.int64]:
        """[m] the leaf in whose share of [0, total) each target lies, leaf 0's share first.

        With targets uniform in [0, total) leaf i is found with probability value_i / total. Rounding may lead to a leaf
        of value 0 (about one in 10¹⁵ times): ask again then.
        """
        level = self._top
        if self._ends is None:
            self._ends = np.zeros(level + 1)
            np.cumsum(self._node[level : 2 * level], out=self._ends[1:])
        node = np.searchsorted(self._ends[1:], target, side="right")
        np.minimum(node, level - 1, out=node)
        rest = target - np.take(self._ends, node, mode="clip")
        node += level
        while level < self._width:
            level <<= 1
            node <<= 1
            left = np.take(self._node, node, mode="clip")
            right = rest >= left
            left *= right
            rest -= left
            node += right
        return np.minimum(node - self._width, self.leaves - 1)

    def _sum_levels(self, width: int) -> None:
        """Recompute the level of ``width`` nodes and all above it."""
        while width:
            np.add(
                self._node[2 * width : 4 * width : 2],
                self._node[2 * width + 1 : 4 * width : 2],
                out=self._node[width : 2 * width],
            )
            width >>= 1
