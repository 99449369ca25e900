"""A process of its own for the tests beside it: writes rows whose every byte follows from (lane, row number).

python ring_process.py lap PATH         insert for ever, as fast as it goes
python ring_process.py late_writing PATH  the same with `writing` set after the columns: a broken protocol
python ring_process.py go_on PATH       reopen and go on behind the committed sequence, sending that one again first
python ring_process.py fork PATH        reopen, fork a child that outlives it, wait
python ring_process.py read PATH ROWS OVERTAKEN SECONDS
    draw checked windows until so many rows were looked at and so many starts overtaken; prints the counts as JSON
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from onibi.platform.fragment import StateRows
from onibi.platform.replay.ring.reader import RingReader
from onibi.platform.replay.ring.state_ring import is_kept
from onibi.platform.replay.ring.writer import RingWriter
from onibi.platform.replay.samplers.uniform_sampler import UniformSampler
from onibi.platform.spec import ArraySpec, ReplaySpec, StateSpec

LANES, ROWS, WINDOW, WIDTH = 2, 32, 3, 512
SLOTS = 4 * (ROWS + 1 + WINDOW)
SPEC = ReplaySpec(
    observation=(ArraySpec(name="observation", dtype="int64", shape=(WIDTH,)),),
    actions=2,
    states=(StateSpec(name="memory", dtype="int64", shape=(WIDTH,), period=2),),
)


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


def states_from(columns: dict[str, Any]) -> dict[str, StateRows]:
    """Every other row's: its observation."""
    lane, row = np.nonzero(is_kept(columns["step"][:, :ROWS], 2))
    return {"memory": StateRows(lane, row, columns["observation"][lane, row])}


def create(path: Path) -> RingWriter:
    """The ring of these tests."""
    writer = RingWriter.create(
        path, SPEC, groups=1, lanes_per_group=LANES, slots=SLOTS, window_rows=WINDOW, run_id="test"
    )
    writer.register(0)
    return writer


def insert(writer: RingWriter, sequence: int) -> bool:
    """Whether the fragment was new."""
    columns = columns_from(sequence * ROWS)
    return not writer.insert(
        0,
        incarnation=1,
        sequence=sequence,
        rows_per_lane=np.full(LANES, ROWS, np.int32),
        columns=columns,
        states=states_from(columns),
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


def bad_windows(windows: Any) -> int:
    """Windows with any value that is not that of their (lane, generation): every byte is looked at."""
    key = windows.generation * LANES + windows.lane
    offsets = np.arange(WINDOW)
    keys = key[:, None] + offsets * LANES
    expected_reward = np.where(windows.used, keys % 65_521, 0)
    count = np.arange(WIDTH)
    observation = windows.observation["observation"] != key[:, None] * WIDTH + count
    last = key + windows.steps.astype(np.int64) * LANES
    bootstrap = windows.bootstrap_observation["observation"] != last[:, None] * WIDTH + count
    bad = (windows.reward != expected_reward).any(axis=1) | (windows.continues != 1).any(axis=1)
    bad |= (windows.action != key) | (windows.policy_version != key)
    return int((bad | observation.any(axis=1) | bootstrap.any(axis=1)).sum())


def read(path: Path, rows: int, overtaken: int, seconds: float) -> None:
    """Two rows a window are looked at in full, its first and the one that it bootstraps from."""
    reader = RingReader(path)
    sampler = UniformSampler(
        reader, n_steps=WINDOW, batch_size=64, rng=np.random.default_rng(os.getpid()), batches_ahead=4
    )
    out, bad = sampler.allocate(), 0
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and not (2 * sampler.drawn_rows >= rows and sampler.overtaken >= overtaken):
        bad += bad_windows(sampler.draw(out))
    counts = {"rows": 2 * sampler.drawn_rows, "bad": bad, "overtaken": sampler.overtaken}
    sys.stdout.write(json.dumps(counts) + "\n")


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
    if sys.argv[1] == "read":
        read(Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]), float(sys.argv[5]))
    else:
        main(sys.argv[1], Path(sys.argv[2]))
