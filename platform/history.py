"""What a run measured, one JSON line an interval: the source of curves, displays and comparisons.

MLflow gets the same figures; this file needs nothing and survives any tracking server.
"""

from __future__ import annotations

import json
import logging
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from onibi.platform.durable import write_durably
from onibi.platform.errors import OnibiError

log = logging.getLogger(__name__)

Row: TypeAlias = dict[str, float | list[float]]
"""Figures by name ``group/name``; a list where one name has several (the returns of an evaluation's episodes)."""

ENV_STEPS = "actors/env_steps"
"""The x axis of every curve."""


class History:
    """Appends rows to a JSON lines file. One process writes; any process may read meanwhile.

    A line is written by one call, so a reader sees it whole or not at all, and ``kill -9`` loses at most the line
    being written. Opening cuts off a torn last line: a later row must not be glued to it.
    """

    def __init__(self, path: Path) -> None:
        """Open or make the file. Raises: OnibiError where it cannot be read and written."""
        self.path = path
        self.lost_rows = 0
        """Rows that the disk refused."""
        try:
            self._descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
        except OSError as error:
            raise OnibiError(
                f"{path} cannot be written: {error.strerror}. Curves and evaluations are kept there: move what is in "
                "its place, or make it writable"
            ) from error
        self._cut_torn_line()

    def append(self, row: Mapping[str, float | Sequence[float]]) -> None:
        """Write one row. NaN and infinities become null, which reads back as NaN: JSON has neither.

        Raises: TypeError for a value that is no number or list of numbers.
        """
        line = json.dumps({name: _plain(value) for name, value in row.items()}, allow_nan=False)
        content = (line + "\n").encode()
        before = os.fstat(self._descriptor).st_size
        try:
            written = os.write(self._descriptor, content)
        except OSError as error:
            written, reason = 0, error.strerror
        else:
            reason = "the disk is full"
        if written < len(content):
            os.ftruncate(self._descriptor, before)  # the next row must not be glued to half a line
            self.lost_rows += 1
            if self.lost_rows == 1:  # training goes on without its history; a checkpoint that fails is the loud one
                log.warning("%s: a row was not written: %s. Curves will have a gap; free some space", self.path, reason)

    def cut_after(self, env_steps: float, key: str = ENV_STEPS) -> int:
        """Drop the rows beyond ``env_steps`` (a resume from an earlier checkpoint); returns how many."""
        rows = read_history(self.path)
        kept = [row for row in rows if not _beyond(row.get(key), env_steps)]
        if len(kept) < len(rows):
            lines = "".join(json.dumps({n: _plain(v) for n, v in row.items()}, allow_nan=False) + "\n" for row in kept)
            write_durably(self.path, lines.encode())
            os.close(self._descriptor)  # it still points to the replaced file
            self._descriptor = os.open(self.path, os.O_RDWR | os.O_APPEND)
        return len(rows) - len(kept)

    def close(self) -> None:
        """Release the file. Further appends fail; closed again, nothing happens (a run may fail while it ends)."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def _cut_torn_line(self) -> None:
        content = self.path.read_bytes()
        whole = content.rfind(b"\n") + 1
        if whole < len(content):
            os.ftruncate(self._descriptor, whole)
            log.warning("%s: the last line was torn by a crash; %d bytes cut off", self.path, len(content) - whole)


def read_history(path: Path) -> list[Row]:
    """All rows in order; an empty list where there is no file.

    A torn last line (the writer was killed, or is writing now) is left out. Lines damaged otherwise are left out and
    counted in a warning.
    """
    try:
        lines = path.read_bytes().split(b"\n")
    except FileNotFoundError:
        return []
    rows, damaged = [], 0
    for line in lines[:-1]:  # what follows the last line feed is empty or torn
        try:
            rows.append({name: _number(value) for name, value in json.loads(line).items()})
        except (ValueError, AttributeError, TypeError):
            damaged += 1
    if damaged:
        log.warning("%s: %d damaged lines left out, %d rows read", path, damaged, len(rows))
    return rows


def column(rows: Sequence[Row], key: str) -> NDArray[np.float64]:
    """One figure over all rows, [rows] float64; NaN where a row lacks it or holds a list there."""
    values = [row.get(key, math.nan) for row in rows]
    return np.array([math.nan if isinstance(value, list) else value for value in values], dtype=np.float64)


def series(rows: Sequence[Row], key: str, x_key: str = ENV_STEPS) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(x, y) of the rows that have both figures, each [points] float64, in the order of the rows."""
    x, y = column(rows, x_key), column(rows, key)
    known = np.isfinite(x) & np.isfinite(y)
    return x[known], y[known]


def _plain(value: float | Sequence[float] | None) -> float | list[float | None] | None:
    if isinstance(value, list | tuple | np.ndarray):
        return [_plain_number(entry) for entry in value]
    return _plain_number(value)


def _plain_number(value: object) -> float | None:
    if isinstance(value, bool | np.bool_ | int | np.integer):
        return int(value)
    if isinstance(value, float | np.floating):
        return float(value) if math.isfinite(value) else None
    raise TypeError(f"a history row holds {value!r} ({type(value).__name__}); allowed are numbers and lists of numbers")


def _number(value: object) -> float | list[float]:
    if isinstance(value, list):
        return [math.nan if entry is None else float(entry) for entry in value]
    return math.nan if value is None else float(value)  # type: ignore[arg-type]


def _beyond(value: float | list[float] | None, limit: float) -> bool:
    return not isinstance(value, list) and value is not None and value > limit
