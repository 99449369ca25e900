"""What the log costs: bytes on disk per million NetHack steps, and insertions with the log on against off.

    python tests/benchmarks/replay_log.py [--steps 200000] [--rounds 5] [--seconds 4] [--folder build]

Bytes: the `nethack-oni` preset's environments, view and captioner, played by a random policy in the rollout code that
trains; the fragments go to two shards whose logs (zstd and uncompressed) are then weighed, manifests and all.

Insertion, per kind of row: rounds of the same length with the log on and off in turns, each with a ring of its own, so
both see the same neighbours. `as fast as it goes` sends fragments without a pause, far above what a disk takes: with
`overflow: block` insertions then run at the log's speed. `paced` sends as many rows a second as some actors do, and
tells how long one insertion took (that is what an actor waits) and how much of a processor all other threads used.
The last seal counts in both.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from peers.spread import spread
from rich.console import Console
from rich.table import Table

from onibi.platform.fragment import CaptionText, Fragment
from onibi.platform.replay.limiter import Limiter
from onibi.platform.replay.log.log_files import open_files
from onibi.platform.replay.log.log_reader import ReplayLog
from onibi.platform.replay.log.log_settings import LogSettings
from onibi.platform.replay.log.log_writer import LogWriter
from onibi.platform.replay.ring.file import remove_ring
from onibi.platform.replay.shard import Shard
from onibi.platform.spec import ArraySpec, ReplaySpec

PRESET = "nethack-oni"
RING_ROWS = 100_000


class Captions:
    """Gives captions their ids, as a run's caption table does."""

    def __init__(self) -> None:
        self.ids: dict[str, int] = {}

    def __call__(self, captions: list[CaptionText]) -> np.ndarray:
        return np.array([self.ids.setdefault(each.text, len(self.ids) + 1) for each in captions], np.uint32)


def open_shard(
    ring: Path, spec: ReplaySpec, envs: int, capacity_rows: int, folder: Path | None, **settings: Any
) -> Shard:
    """A shard of one actor, with a log in ``folder``."""
    shard = Shard.create(
        ring,
        spec,
        max_actors=1,
        envs_per_actor=envs,
        capacity_rows=capacity_rows,
        window_rows=3,
        run_id="benchmark",
        limiter=Limiter(ratio=1.0, minimum_rows=1, tolerance_rows=1e12),
        resolve=Captions(),
    )
    if folder is not None:
        files = open_files(folder, create=True)
        shard.attach_log(LogWriter(LogSettings(**settings), files, ring, run_id="benchmark", captions={}))
    shard.register(0, envs)
    return shard


def nethack_plan() -> Any:
    """The preset's plan: environments, view, captions."""
    from onibi.clusters.run_plan import plan_run
    from onibi.clusters.sessions import read_run_settings

    return plan_run(read_run_settings(PRESET, ()))


def nethack_bytes(steps: int, folder: Path, rings: Path, table: Table) -> list[Fragment]:
    """Play, log, weigh. Returns: some of the fragments, for the insertions."""
    plan = nethack_plan()
    envs = plan.settings.actors.rollout.envs_per_actor
    rollout = plan.make_rollout(0, 1, 0)
    kinds: tuple[Any, ...] = ("zstd", "none")
    shards = {
        kind: open_shard(rings / f"{kind}.ring", plan.spec, envs, RING_ROWS, folder / kind, compression=kind)
        for kind in kinds
    }
    kept, played, began = [], 0, time.perf_counter()
    while played < steps:
        fragment = rollout.collect(lambda version: None)  # without weights: uniformly at random
        for shard in shards.values():
            shard.insert(fragment)
        played += fragment.env_steps
        if len(kept) < 8:
            columns = {name: column.copy() for name, column in fragment.columns.items()}
            kept.append(dataclasses.replace(fragment, columns=columns))
    seconds = time.perf_counter() - began
    rollout.close()
    for kind, shard in shards.items():
        shard.close()
        remove_ring(shard.path)
        log = ReplayLog(folder / kind)
        assert log.verify() == []
        size = sum(path.stat().st_size for path in (folder / kind).iterdir())
        table.add_row(
            f"NetHack ({PRESET}, {plan.spec.row_bytes} bytes a row), {kind}",
            f"{size / played * 1e6 / 1e6:.1f} MB per million steps",
            f"{played} steps played in {seconds:.0f} s, {log.rows} rows, {len(log.segments)} segments",
        )
    close_the_circle(plan.spec, kept)
    raw = plan.spec.row_bytes * log.rows / played
    table.add_row("raw rows, as they lie in the ring", f"{raw:.1f} MB per million steps", "")
    return kept


def close_the_circle(spec: ReplaySpec, fragments: list[Fragment]) -> None:
    """Make the last fragment's heads the first one's first observations, so that all can be sent again and again."""
    first, last = fragments[0], fragments[-1]
    lanes, heads = np.arange(last.envs), last.rows_per_lane
    for name in (*(column.name for column in spec.observation), "episode_id", "step"):
        last.columns[name][lanes, heads] = first.columns[name][:, 0]


def image_fragments(envs: int = 16, rows: int = 128) -> tuple[ReplaySpec, list[Fragment]]:
    """Fragments of 4 KB observations that a compressor cannot shorten."""
    spec = ReplaySpec(observation=(ArraySpec(name="observation", dtype="uint8", shape=(4096,)),), actions=4)
    rng = np.random.default_rng(0)
    columns = {column.name: np.zeros((envs, rows + 1, *column.shape), column.dtype) for column in spec.columns}
    columns["observation"][:] = rng.integers(0, 256, columns["observation"].shape)
    columns["observation"][:, rows] = columns["observation"][:, 0]  # the head: it can be sent again and again
    columns["caption_hash"] = columns.pop("caption_id").astype(np.uint64)
    fragment = Fragment(0, 1, 0, np.full(envs, rows, np.int32), columns, env_steps=envs * rows)
    return spec, [fragment]


def insert_for(
    seconds: float,
    spec: ReplaySpec,
    fragments: list[Fragment],
    places: tuple[Path, Path],
    logged: bool,
    pace: float | None,
) -> tuple[float, list[float], float]:
    """Insert fragments in turn. Returns: rows/s, seconds of each insertion, processor seconds a second beside them."""
    folder, rings = places
    ring = rings / f"{time.monotonic_ns()}.ring"
    capacity = max(RING_ROWS, 8 * sum(fragment.rows for fragment in fragments))
    shard = open_shard(ring, spec, fragments[0].envs, capacity, folder / ring.stem if logged else None)
    sequence, rows, took = 0, 0, []
    began, thread_began, process_began = time.perf_counter(), time.thread_time(), time.process_time()
    while time.perf_counter() - began < seconds:
        fragment = fragments[sequence % len(fragments)]
        given = dataclasses.replace(fragment, sequence=sequence, episodes=[], incarnation=1)
        before = time.perf_counter()
        shard.insert(given)
        took.append(time.perf_counter() - before)
        sequence, rows = sequence + 1, rows + fragment.rows
        if pace is not None:
            time.sleep(max(0.0, began + rows / pace - time.perf_counter()))
    paced_seconds = time.perf_counter() - began
    shard.close()  # what is left in the ring is sealed now: it belongs to the price of these rows
    elapsed = time.perf_counter() - began
    others = (time.process_time() - process_began) - (time.thread_time() - thread_began)
    remove_ring(ring)
    return rows / elapsed, took, others / paced_seconds


def insertion_rows(
    label: str,
    spec: ReplaySpec,
    fragments: list[Fragment],
    paced: float,
    arguments: Any,
    places: tuple[Path, Path],
    table: Table,
) -> None:
    """Both measurements for one kind of row."""
    for pace, name in ((None, "as fast as it goes"), (paced, f"paced to {paced / 1e3:.0f} k rows/s")):
        results: dict[bool, list[tuple[float, list[float], float]]] = {True: [], False: []}
        for number in range(arguments.rounds):
            for logged in (True, False) if number % 2 else (False, True):
                results[logged].append(insert_for(arguments.seconds, spec, fragments, places, logged, pace))
        if pace is None:
            on, off = ([rate for rate, _, _ in results[logged]] for logged in (True, False))
            ratios = [one / other for one, other in zip(on, off, strict=True)]
            figure = f"{statistics.median(on) / 1e3:.0f} k rows/s, without log {statistics.median(off) / 1e3:.0f} k"
        else:
            on, off = ([statistics.mean(took) for _, took, _ in results[logged]] for logged in (True, False))
            ratios = [other / one for one, other in zip(on, off, strict=True)]
            worst = max(max(took) for _, took, _ in results[True]), max(max(took) for _, took, _ in results[False])
            share = statistics.median(share for _, _, share in results[True])
            figure = (
                f"{statistics.median(on) * 1e6:.0f} us an insertion (longest {worst[0] * 1e3:.1f} ms), without log "
                f"{statistics.median(off) * 1e6:.0f} us ({worst[1] * 1e3:.1f} ms); log {share:.3f} processors"
            )
        table.add_row(f"{label}, {name}", figure, f"speed against no log {spread(ratios, 2)}")


def main() -> None:
    """Measure and print one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=200_000, help="of NetHack")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=4.0, help="of each measurement of a round")
    parser.add_argument("--folder", type=Path, default=Path("build"), help="on a disk; rings lie in /dev/shm")
    parser.add_argument("--quick", action="store_true", help="20,000 steps, 2 rounds of 1 s")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.steps, arguments.rounds, arguments.seconds = 20_000, 2, 1.0
    arguments.folder.mkdir(exist_ok=True)
    table = Table("what", "figure", "spread or sizes")
    with (
        tempfile.TemporaryDirectory(prefix="onibi-log-", dir=arguments.folder) as folder,
        tempfile.TemporaryDirectory(prefix="onibi-benchmark-", dir="/dev/shm") as rings,
    ):
        places = Path(folder), Path(rings)
        fragments = nethack_bytes(arguments.steps, *places, table)
        spec = nethack_plan().spec
        insertion_rows("NetHack rows", spec, fragments, 20_000, arguments, places, table)
        spec, fragments = image_fragments()
        insertion_rows("4 KB rows of noise", spec, fragments, 5_000, arguments, places, table)
    Console(file=sys.stdout, width=180).print(table)


if __name__ == "__main__":
    main()
