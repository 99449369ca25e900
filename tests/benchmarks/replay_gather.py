"""Sampling and insertion beside the bare memory operations they stand on, in turns in one process.

    python tests/benchmarks/replay_gather.py [--seconds 5] [--folder /dev/shm]

Draw: ``UniformSampler.draw(out=...)`` (limiter apart) beside ``np.take(column, 2B indices, out=reused, mode="clip")``
of the observation columns with as many random indices made beforehand: no choice of rows, no scalar columns, no checks.
The bare take is thus a bound that cannot be reached; the ratio tells what windows cost above it.
Insertion: ``RingWriter.insert`` beside one contiguous ``np.copyto`` of as many bytes from the same kind of source to
the next place of a buffer as large as the ring.
Ratios are taken round by round, both sides right after each other, so that a busy machine slows both.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from onibi.platform.replay.ring_reader import RingReader
from onibi.platform.replay.ring_writer import RingWriter
from onibi.platform.replay.sampler import UniformSampler
from onibi.platform.spec import ArraySpec, ReplaySpec

LANES, N_STEPS = 16, 3


@dataclass(frozen=True)
class Case:
    """One kind of row."""

    name: str
    observation: tuple[ArraySpec, ...]
    batch_size: int
    slots: int
    fragment_rows: int


def case_list() -> list[Case]:
    """Rows of 4 KB, of a small NetHack view, and of CartPole."""
    view = (
        ArraySpec(name="observation.crop", dtype="uint8", shape=(9, 9)),
        ArraySpec(name="observation.locator", dtype="int8", shape=(16, 3)),
        ArraySpec(name="observation.blstats", dtype="float32", shape=(27,)),
        ArraySpec(name="observation.caption_counts", dtype="float32", shape=(68,)),
    )
    return [
        Case("4 KB rows, B 256", (ArraySpec(name="observation", dtype="uint8", shape=(4096,)),), 256, 8_000, 64),
        Case("28 KB frames, B 128", (ArraySpec(name="observation", dtype="uint8", shape=(4, 84, 84)),), 128, 1_500, 64),
        Case("NetHack view (509 B), B 128", view, 128, 8_000, 256),
        Case("CartPole (16 B), B 128", (ArraySpec(name="observation", dtype="float32", shape=(4,)),), 128, 8_000, 256),
    ]


def fragment_of(spec: ReplaySpec, rows: int) -> dict[str, Any]:
    """Columns of an endless episode whose head equals its first observation: it can be inserted again and again."""
    rng = np.random.default_rng(0)
    columns = {}
    for column in spec.columns:
        shape = (LANES, rows + 1, *column.shape)
        columns[column.name] = np.zeros(shape, column.dtype)
        if column in spec.observation:
            columns[column.name][:] = rng.integers(0, 100, shape)
            columns[column.name][:, rows] = columns[column.name][:, 0]
    return columns


def rounds(one: Callable[[], None], other: Callable[[], None], seconds: float, repeat: int) -> np.ndarray:
    """[rounds, 2] seconds per call of both, alternating which goes first."""
    times: list[tuple[float, float]] = []
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        pair = [0.0, 0.0]
        for side in (0, 1) if len(times) % 2 else (1, 0):
            begin = time.perf_counter()
            for _ in range(repeat):
                (one, other)[side]()
            pair[side] = (time.perf_counter() - begin) / repeat
        times.append((pair[0], pair[1]))
    return np.array(times)


def report(label: str, times: np.ndarray, per_call: float, unit: str) -> None:
    """Medians of both sides, and the ratio with its 10th and 90th percentile over the rounds."""
    ours, bare = np.median(times, axis=0)
    ratio = np.percentile(times[:, 1] / times[:, 0], [10, 50, 90])
    print(
        f"  {label:<7} {ours * 1e6:9.1f} us  bare {bare * 1e6:9.1f} us   {per_call / ours / 1e6:7.3f} M {unit}/s"
        f"   speed against bare {ratio[1]:.2f}  [{ratio[0]:.2f}, {ratio[2]:.2f}]  ({len(times)} rounds)"
    )


def run(case: Case, seconds: float, folder: Path) -> None:
    """Measure one case."""
    spec = ReplaySpec(observation=case.observation, actions=4)
    path = folder / "benchmark.ring"
    writer = RingWriter.create(
        path, spec, groups=1, lanes_per_group=LANES, slots=case.slots, window_rows=N_STEPS, run_id="benchmark"
    )
    columns = fragment_of(spec, case.fragment_rows)
    incarnation, sequence = writer.register(0), 0
    rows = np.full(LANES, case.fragment_rows, np.int32)

    def insert() -> None:
        nonlocal sequence
        writer.insert(0, incarnation=incarnation, sequence=sequence, rows_per_lane=rows, columns=columns)
        sequence += 1

    while sequence * case.fragment_rows < 2 * case.slots:
        insert()
    reader = RingReader(path)
    print(f"{case.name}: {spec.row_bytes} bytes a row, ring {path.stat().st_size / 2**20:.0f} MiB, n {N_STEPS}")

    rng = np.random.default_rng(0)
    sampler = UniformSampler(reader, n_steps=N_STEPS, batch_size=case.batch_size, rng=rng)
    out = sampler.allocate()
    indices = [rng.integers(0, LANES * case.slots, 2 * case.batch_size) for _ in range(256)]
    buffers = [np.empty((2 * case.batch_size, *c.shape), c.dtype) for c in case.observation]
    turn = 0

    def bare_take() -> None:
        nonlocal turn
        turn = (turn + 1) % len(indices)
        for column, buffer in zip(case.observation, buffers, strict=True):
            np.take(reader.columns[column.name], indices[turn], axis=0, out=buffer, mode="clip")

    report("draw", rounds(lambda: sampler.draw(out) and None, bare_take, seconds, 32), case.batch_size, "samples")
    size = LANES * (case.fragment_rows + 1) * spec.row_bytes
    source, target = np.ones(size, np.uint8), np.zeros(max(path.stat().st_size, size), np.uint8)
    place = 0

    def bare_copy() -> None:
        nonlocal place
        place = place + size if place + 2 * size <= len(target) else 0
        np.copyto(target[place : place + size], source)

    report("insert", rounds(insert, bare_copy, seconds, 4), LANES * case.fragment_rows, "rows")
    writer.close()
    reader.close()
    path.unlink()


def main() -> None:
    """Run all cases and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=5.0, help="per measurement")
    parser.add_argument("--folder", type=Path, default=Path("/dev/shm"), help="where the ring lies")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="onibi-benchmark-", dir=arguments.folder) as folder:
        for case in case_list():
            run(case, arguments.seconds, Path(folder))


if __name__ == "__main__":
    main()
