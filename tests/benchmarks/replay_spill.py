"""Drawing from a ring on a disk that is larger than the memory given to it.

    python tests/benchmarks/replay_spill.py [--memory-mib 256] [--times 4] [--seconds 10] [--folder FOLDER]

Rows of 4 KB, uniform windows (n 1, B 256: observation and next observation). Three measurements, each in a process of
its own that fills a ring and then draws from it:

  in /dev/shm          the ring in shared memory, no limit: what drawing costs when everything fits
  disk, fits           the ring on the disk, no limit: all of it in the page cache
  disk, 1/TIMES of it  the ring on the disk, the process in a memory control group of --memory-mib, which also pays for
                       its page cache; the ring is TIMES as large. Written rows compete with read ones for that memory.

Without control groups (not root, or a container that hides them) the third process draws behind a cache that was
dropped once, and says so: memory is not limited then, only cold at the start.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from onibi.platform.replay.ring.folder import in_memory
from onibi.platform.replay.ring.reader import RingReader
from onibi.platform.replay.ring.writer import RingWriter
from onibi.platform.replay.samplers.uniform_sampler import UniformSampler
from onibi.platform.spec import ArraySpec, ReplaySpec

LANES, FRAGMENT, BATCH, ROUNDS = 8, 64, 256, 5
SPEC = ReplaySpec(observation=(ArraySpec(name="observation", dtype="uint8", shape=(4096,)),), actions=4)
MIB = 2**20


def fill(path: Path, ring_bytes: int) -> float:
    """Make a ring of about that size and write it full once; rows per second."""
    slots = ring_bytes // LANES // SPEC.row_bytes
    writer = RingWriter.create(
        path, SPEC, groups=1, lanes_per_group=LANES, slots=slots, window_rows=1, run_id="benchmark"
    )
    columns = {column.name: np.zeros((LANES, FRAGMENT + 1, *column.shape), column.dtype) for column in SPEC.columns}
    columns["observation"][:] = np.random.default_rng(0).integers(0, 255, (LANES, 1, 4096), np.uint8)
    incarnation, fragments = writer.register(0), -(-slots // FRAGMENT)
    begin = time.perf_counter()
    for sequence in range(fragments):
        writer.insert(
            0,
            incarnation=incarnation,
            sequence=sequence,
            rows_per_lane=np.full(LANES, FRAGMENT, np.int32),
            columns=columns,
        )
    seconds = time.perf_counter() - begin
    writer.close()
    return fragments * FRAGMENT * LANES / seconds


def drawn_per_second(path: Path, seconds: float) -> list[float]:
    """Windows per second in each of ROUNDS rounds, after one that is not counted."""
    sampler = UniformSampler(RingReader(path), n_steps=1, batch_size=BATCH, rng=np.random.default_rng(0))
    out, rates = sampler.allocate(), []
    for _ in range(ROUNDS + 1):
        begin, drawn = time.perf_counter(), 0
        while time.perf_counter() - begin < seconds / ROUNDS:
            sampler.draw(out)
            drawn += BATCH
        rates.append(drawn / (time.perf_counter() - begin))
    return rates[1:]


def faults() -> int:
    """Pages that this process has waited for the disk to bring."""
    return int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[9])


def worker(arguments: argparse.Namespace) -> None:
    """One measurement; prints it as JSON."""
    path = arguments.folder / f"{os.getpid()}.ring"
    try:
        written = fill(path, arguments.ring_mib * MIB)
        if arguments.drop_caches:
            with path.open("rb") as file:
                os.fsync(file.fileno())
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        before = faults()
        rates = drawn_per_second(path, arguments.seconds)
        print(json.dumps({"written": written, "drawn": rates, "faults": faults() - before}))
    finally:
        path.unlink(missing_ok=True)


@contextlib.contextmanager
def memory_group(limit_bytes: int) -> Iterator[Path | None]:
    """A control group whose processes share that much memory, page cache included; None where that is not allowed."""
    for root, limit in (
        (Path("/sys/fs/cgroup"), "memory.max"),
        (Path("/sys/fs/cgroup/memory"), "memory.limit_in_bytes"),
    ):
        folder = root / f"onibi-benchmark-{os.getpid()}"
        try:
            folder.mkdir()
        except OSError:
            continue
        try:
            if (folder / limit).exists():  # else this hierarchy has no memory controller
                (folder / limit).write_text(str(limit_bytes))
                yield folder
                return
        finally:
            for _ in range(100):  # the kernel lets go of ended processes a little later
                with contextlib.suppress(OSError):
                    folder.rmdir()
                    break
                time.sleep(0.1)
    yield None


def measure(folder: Path, ring_mib: int, seconds: float, group: Path | None = None, drop: bool = False) -> Any:
    """Run a worker, in a control group where one is given."""
    command = [sys.executable, __file__, "--worker", "--folder", str(folder), "--ring-mib", str(ring_mib)]
    command += ["--seconds", str(seconds), *(["--drop-caches"] if drop else [])]

    def enter() -> None:
        if group is not None:
            (group / "cgroup.procs").write_text(str(os.getpid()))

    finished = subprocess.run(command, preexec_fn=enter, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(finished.stdout.splitlines()[-1])


def report(label: str, result: Any) -> None:
    """One line of the table."""
    drawn = np.array(result["drawn"])
    spread = f"[{drawn.min() / 1e3:.1f}, {drawn.max() / 1e3:.1f}]"
    print(
        f"{label:<28} {np.median(drawn) / 1e3:9.1f} {spread:>18} {result['written'] / 1e3:10.1f} {result['faults']:12d}"
    )


def main() -> None:
    """Print the table, or do one of its measurements."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--memory-mib", type=int, default=256, help="given to the limited process")
    parser.add_argument("--times", type=float, default=4.0, help="how much larger the ring is")
    parser.add_argument("--seconds", type=float, default=10.0, help="of drawing per measurement")
    parser.add_argument("--folder", type=Path, help="on a disk (default: a new one where temporary files go)")
    parser.add_argument("--quick", action="store_true", help="2 seconds each")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--ring-mib", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--drop-caches", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        logging.disable(logging.WARNING)  # of what this script is here to measure
        worker(arguments)
        return
    seconds = 2.0 if arguments.quick else arguments.seconds
    ring_mib = int(arguments.memory_mib * arguments.times)
    with tempfile.TemporaryDirectory(prefix="onibi-spill-", dir=arguments.folder) as name:
        disk = Path(name)
        if in_memory(disk):
            raise SystemExit(f"{disk} lies in memory; give --folder on a disk")
        rounds = f"{ROUNDS} rounds of {seconds / ROUNDS:g} s"
        print(f"ring {ring_mib} MiB, {SPEC.row_bytes} bytes a row, B {BATCH}, n 1, {rounds}")
        print(f"{'':<28} {'k drawn/s':>9} {'[least, most]':>18} {'k written/s':>10} {'disk faults':>12}")
        report("in /dev/shm", measure(Path("/dev/shm"), ring_mib, seconds))
        report("disk, fits", measure(disk, ring_mib, seconds))
        with memory_group(arguments.memory_mib * MIB) as group:
            label = f"disk, {arguments.memory_mib} MiB of it" if group else "disk, cold (NOT limited)"
            report(label, measure(disk, ring_mib, seconds, group, drop=True))
        if group is None:
            print("no memory control group could be made here: the last line began with an empty cache, no more")


if __name__ == "__main__":
    main()
