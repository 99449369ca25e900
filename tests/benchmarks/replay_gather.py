"""Sampling and insertion beside the bare memory operations they stand on, in turns in one process.

    python tests/benchmarks/replay_gather.py [--seconds 5] [--quick] [--folder /dev/shm]

Draw: ``draw(out=...)`` of a sampler (limiter apart) beside ``np.take(column, pairs, out=reused, mode="clip")`` of the
observation columns, with pairs (k, k + 1) of random rows made beforehand: the two observations of a transition from the
same mapping, without a choice of rows, scalar columns or checks. The bare take is thus a bound that cannot be reached;
the ratio tells what windows cost above it. ``prioritized`` gives every batch new priorities after it was drawn.
Insertion: ``RingWriter.insert`` beside one contiguous ``np.copyto`` of as many bytes from the same kind of source to
the next place of a buffer as large as the ring.
Ratios are taken round by round, all sides right after each other in rotating order, so that a busy machine slows all.
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

from onibi.platform.replay.ring.reader import RingReader
from onibi.platform.replay.ring.writer import RingWriter
from onibi.platform.replay.samplers.prioritized_sampler import PrioritizedSampler
from onibi.platform.replay.samplers.uniform_sampler import UniformSampler
from onibi.platform.spec import ArraySpec, ReplaySpec

LANES, WINDOW = 16, 3


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
        Case(
            "100,000 rows of 4 KB, B 256",
            (ArraySpec(name="observation", dtype="uint8", shape=(4096,)),),
            256,
            6_251,
            64,
        ),
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


def create_ring(case: Case, path: Path) -> RingWriter:
    """An empty ring."""
    spec = ReplaySpec(observation=case.observation, actions=4)
    return RingWriter.create(
        path, spec, groups=1, lanes_per_group=LANES, slots=case.slots, window_rows=WINDOW, run_id="benchmark"
    )


def full_ring(case: Case, path: Path) -> tuple[RingWriter, Callable[[], None]]:
    """A ring that was gone round twice, and what inserts one more fragment."""
    writer = create_ring(case, path)
    columns, rows = fragment_of(writer.layout.spec, case.fragment_rows), np.full(LANES, case.fragment_rows, np.int32)
    incarnation, sequence = writer.register(0), 0

    def insert() -> None:
        nonlocal sequence
        writer.insert(0, incarnation=incarnation, sequence=sequence, rows_per_lane=rows, columns=columns)
        sequence += 1

    while sequence * case.fragment_rows < 2 * case.slots:
        insert()
    return writer, insert


def rounds(calls: list[Callable[[], object]], seconds: float, repeat: int) -> np.ndarray:
    """[rounds, calls] seconds per call, beginning with another one each round."""
    times: list[list[float]] = []
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        row = [0.0] * len(calls)
        for turn in range(len(calls)):
            side = (turn + len(times)) % len(calls)
            begin = time.perf_counter()
            for _ in range(repeat):
                calls[side]()
            row[side] = (time.perf_counter() - begin) / repeat
        times.append(row)
    return np.array(times)


def report(label: str, ours: np.ndarray, bare: np.ndarray, per_call: float, unit: str, against: str = "bare") -> None:
    """Medians of both sides, and the ratio with its 10th and 90th percentile over the rounds."""
    ratio = np.percentile(bare / ours, [10, 50, 90])
    print(
        f"  {label:<26} {np.median(ours) * 1e6:9.1f} us  {against} {np.median(bare) * 1e6:9.1f} us   "
        f"{per_call / np.median(ours) / 1e6:7.3f} M {unit}/s   speed against {against} "
        f"{ratio[1]:.2f}  [{ratio[0]:.2f}, {ratio[2]:.2f}]  ({len(ours)} rounds)"
    )


def draws(case: Case, reader: RingReader) -> dict[str, Callable[[], object]]:
    """What is measured: the bare take first, then each sampler."""
    rng = np.random.default_rng(0)
    indices = []
    for _ in range(256):
        first = rng.integers(0, LANES * case.slots - 1, case.batch_size)
        indices.append(np.stack([first, first + 1], axis=1).reshape(-1))
    buffers = [np.empty((2 * case.batch_size, *c.shape), c.dtype) for c in case.observation]
    turn = 0

    def bare_take() -> None:
        nonlocal turn
        turn = (turn + 1) % len(indices)
        for column, buffer in zip(case.observation, buffers, strict=True):
            np.take(reader.columns[column.name], indices[turn], axis=0, out=buffer, mode="clip")

    def uniform(n_steps: int, threads: int) -> Callable[[], object]:
        sampler = UniformSampler(reader, n_steps=n_steps, batch_size=case.batch_size, rng=rng, gather_threads=threads)
        out = sampler.allocate()
        return lambda: sampler.draw(out)

    def prioritized(ahead: int) -> Callable[[], object]:
        sampler = PrioritizedSampler(reader, n_steps=WINDOW, batch_size=case.batch_size, rng=rng, batches_ahead=ahead)
        out, priorities = sampler.allocate(), rng.random((64, case.batch_size))
        count = 0

        def draw_and_update() -> None:
            nonlocal count
            count += 1
            windows = sampler.draw(out)
            sampler.update(windows.lane, windows.generation, priorities[count % 64])

        return draw_and_update

    return {
        "bare": bare_take,
        "uniform n 1": uniform(1, 1),
        "uniform n 3": uniform(WINDOW, 1),
        "uniform n 1, 2 threads": uniform(1, 2),
        "uniform n 3, 2 threads": uniform(WINDOW, 2),
        "prioritized n 3, 8 ahead": prioritized(8),
        "prioritized n 3, 1 ahead": prioritized(1),
    }


def run(case: Case, seconds: float, folder: Path) -> None:
    """Measure one case."""
    path = folder / "benchmark.ring"
    writer, insert = full_ring(case, path)
    reader = RingReader(path)
    row_bytes = reader.spec.row_bytes
    print(f"{case.name}: {row_bytes} bytes a row, ring {path.stat().st_size / 2**20:.0f} MiB")

    sides = draws(case, reader)
    times = dict(zip(sides, rounds(list(sides.values()), seconds, 16).T, strict=True))
    for name in list(sides)[1:]:
        report(name, times[name], times["bare"], case.batch_size, "samples")
    for n_steps in (1, WINDOW):
        one, two = times[f"uniform n {n_steps}"], times[f"uniform n {n_steps}, 2 threads"]
        report(f"2 threads, n {n_steps}", two, one, case.batch_size, "samples", "one thread")

    size = LANES * (case.fragment_rows + 1) * row_bytes
    source, target = np.ones(size, np.uint8), np.ones(max(path.stat().st_size, size), np.uint8)  # ones: pages in place
    place = 0

    def bare_copy() -> None:
        nonlocal place
        place = place + size if place + 2 * size <= len(target) else 0
        np.copyto(target[place : place + size], source)

    inserted, copied = rounds([insert, bare_copy], seconds, 4).T
    report("insert", inserted, copied, LANES * case.fragment_rows, "rows")
    writer.close()
    reader.close()
    path.unlink()


def main() -> None:
    """Run all cases and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=5.0, help="per measurement")
    parser.add_argument("--quick", action="store_true", help="one second per measurement, the first case only")
    parser.add_argument("--folder", type=Path, default=Path("/dev/shm"), help="where the ring lies")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="onibi-benchmark-", dir=arguments.folder) as folder:
        for case in case_list()[: 1 if arguments.quick else None]:
            run(case, 1.0 if arguments.quick else arguments.seconds, Path(folder))


if __name__ == "__main__":
    main()
