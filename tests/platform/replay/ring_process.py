"""A process of its own for the tests beside it: writes rows whose every byte follows from (lane, row number).

python ring_process.py lap PATH         insert for ever, as fast as it goes
python ring_process.py late_writing PATH  the same with `writing` set after the columns: a broken protocol
python ring_process.py go_on PATH       reopen and go on behind the committed sequence, sending that one again first
python ring_process.py fork PATH        reopen, fork a child that outlives it, wait
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from onibi.platform.replay.ring_writer import RingWriter
from onibi.platform.spec import ArraySpec, ReplaySpec

LANES, ROWS, WINDOW, WIDTH = 2, 32, 3, 512
SLOTS = 4 * (ROWS + 1 + WINDOW)
SPEC = ReplaySpec(observation=(ArraySpec(name="observation", dtype="int64", shape=(WIDTH,)),), actions=2)


def columns_from(first: int) -> dict[str, Any]:
    """ROWS rows and a head per lane, from row ``first`` on: the observation counts up from a number of its own."""
    number = first + np.arange(ROWS + 1)
    key = number * LANES + np.arange(LANES)[:, None]  # [lanes, rows]
    columns = {column.name: np.zeros((LANES, ROWS + 1, *column.shape), column.dtype) for column in SPEC.columns}
    columns["observation"][:] = key[..., None] * WIDTH + np.arange(WIDTH)
    columns["episode_id"][:] = 1
    columns["step"][:] = number
    for name in ("action", "policy_version"):
        columns[name][:, :ROWS] = key[:, :ROWS]
    columns["reward"][:, :ROWS] = key[:, :ROWS] % 65_521
    return columns


def create(path: Path) -> RingWriter:
    """The ring of these tests."""
    writer = RingWriter.create(
        path, SPEC, groups=1, lanes_per_group=LANES, slots=SLOTS, window_rows=WINDOW, run_id="test"
    )
    writer.register(0)
    return writer


def insert(writer: RingWriter, sequence: int) -> bool:
    """Whether the fragment was new."""
    return not writer.insert(
        0,
        incarnation=1,
        sequence=sequence,
        rows_per_lane=np.full(LANES, ROWS, np.int32),
        columns=columns_from(sequence * ROWS),
    ).repeated


class LateWriting(RingWriter):
    """Announces an overwrite only after it: the mutant that the order of stores is there to prevent."""

    def _stores(self, commit: Any) -> Iterator[str]:
        yield from self._store_record(commit)
        yield from self._store_columns(commit)
        self._words("writing")[commit.group] = commit.number
        yield "writing"
        self._words("committed")[commit.group] = commit.number
        yield "committed"


def main(mode: str, path: Path) -> None:
    writer = (LateWriting if mode == "late_writing" else RingWriter).open(path, "test")
    sequence = writer.lease(0)[1]
    if mode == "fork":
        if os.fork() == 0:
            time.sleep(60)
            os._exit(0)
        sys.stdout.write("forked\n")
        sys.stdout.flush()
        time.sleep(60)
    if sequence >= 0 and insert(writer, sequence):
        raise SystemExit("a committed fragment was taken again")
    sys.stdout.write("writing\n")
    sys.stdout.flush()
    while True:
        sequence += 1
        insert(writer, sequence)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
