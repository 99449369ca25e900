"""Where a fragment meets the rows before it: the heads that its lanes left in the ring, and episodes' ends."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onibi.platform.errors import ReplayError
from onibi.platform.replay.ring.commit import by_lane
from onibi.platform.replay.ring.layout import RingLayout
from onibi.platform.spec import ROLE_FINAL


@dataclass(frozen=True)
class Border:
    """Of a fragment's lanes in the ring, [E] each."""

    cursor: NDArray[np.int64]
    """Number of the head row."""
    is_open: NDArray[np.bool_]
    """Whether a head is there."""
    foreign: NDArray[np.bool_]
    """Whether it is another one than the fragment's first row."""
    at: tuple[Any, Any]
    """Index [lanes, slots] of the head rows: no copy where the lanes are in step."""


class FragmentBorder:
    """Looks at the rows that a fragment goes on from.

    Args:
        path: of the ring, for messages.
        layout: its layout.
        columns: its columns, [lanes × slots, ...] each; held until the writer lets go of the border.
    """

    def __init__(self, path: Path, layout: RingLayout, columns: Mapping[str, NDArray[Any]]) -> None:
        self._path, self._layout = path, layout
        self._heads = {name: _bits(by_lane(columns[name], layout)) for name in layout.spec.head_columns}
        self._flags = [by_lane(columns[name], layout) for name in ("terminated", "truncated")]

    def meet(
        self, group: int, cursor: NDArray[np.int64], is_open: NDArray[np.bool_], columns: Mapping[str, NDArray[Any]]
    ) -> Border:
        """Compare the fragment's first rows with the heads in the ring.

        Args:
            group: whose lanes.
            cursor, is_open: [E] of the group's committed record.
            columns: of the fragment, [E, R, ...] each.
        """
        at = self._at(group, cursor)
        foreign = np.zeros(len(cursor), np.bool_)
        for name, heads in self._heads.items():
            equal = heads[at] == _bits(columns[name])[:, 0]  # bits, so that NaN equals itself
            if not equal.all():  # the rare case, looked at lane by lane
                foreign |= ~equal.reshape(len(cursor), -1).all(axis=1)
        return Border(cursor=cursor, is_open=is_open, foreign=foreign & is_open, at=at)

    def check(self, group: int, border: Border, rows: NDArray[np.int64], goes_on: NDArray[np.bool_], role: Any) -> None:
        """``FragmentCheck``'s rule across the border to the last fragment.

        Args:
            group: whose lanes.
            border: what ``meet`` gave.
            rows: [E] committed rows of the fragment.
            goes_on: [E] lanes whose head stays open.
            role: [E, R] of the fragment.
        Raises: ReplayError where an episode ended with the newest row, and the first row now is not final.
        """
        newest = border.cursor - 1
        lanes, slots = border.at
        at = lanes, (slots - 1) % self._layout.slots
        ended = (self._flags[0][at] | self._flags[1][at]) != 0
        if not ended.any():
            return
        wrong = goes_on & (newest >= 0) & ended & (rows > 0) & (role[:, 0] != ROLE_FINAL)
        if wrong.any():
            raise ReplayError(
                f"{self._path}: fragment of group {group}: lane {int(np.argmax(wrong))} ended its episode with the "
                "last fragment's newest row, but the first row now is not final. Write the final observation as a row "
                "of its own (role final) before the next episode's first"
            )

    def release(self) -> None:
        """Forget the ring's columns."""
        self._heads, self._flags = {}, []

    def _at(self, group: int, numbers: NDArray[np.int64]) -> tuple[Any, Any]:
        first = group * self._layout.lanes_per_group
        slots = numbers % self._layout.slots
        if (slots == slots[0]).all():
            return slice(first, first + len(numbers)), int(slots[0])
        return np.arange(first, first + len(numbers)), slots


def _bits(column: NDArray[Any]) -> NDArray[Any]:
    """A column as unsigned integers of its own width; no copy, whatever its strides."""
    return column.view(np.dtype(f"u{column.dtype.itemsize}"))
