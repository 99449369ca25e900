"""Kills writers of a log at random instants, and looks at the log after each kill; a report as JSON on stdout.

python kill_rounds.py FOLDER KILLS SEED keep|lose LONGEST_SECONDS

``keep``: the ring survives, as it does a kill -9; ``lose``: it goes with the machine, so what was not sealed is lost.
Every row says whose it is: round, lane, row number in the ring and their sum. Processes are forked: Python's start
would be most of the time.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from onibi.platform.errors import SegmentError
from onibi.platform.fragment import Fragment
from onibi.platform.replay.limiter import Limiter
from onibi.platform.replay.log.log_files import open_files
from onibi.platform.replay.log.log_reader import ReplayLog
from onibi.platform.replay.log.log_settings import LogSettings
from onibi.platform.replay.log.log_writer import LogWriter
from onibi.platform.replay.ring.file import remove_ring
from onibi.platform.replay.ring.reader import RingReader
from onibi.platform.replay.shard import Shard
from onibi.platform.spec import ArraySpec, ReplaySpec

LANES, ROWS, SLOTS, SEAL_SECONDS = 3, 8, 65_536, 0.1
SPEC = ReplaySpec(observation=(ArraySpec(name="observation", dtype="int64", shape=(4,)),), actions=2)


def open_shard(folder: Path, ring: Path) -> Shard:
    limiter = Limiter(ratio=1.0, minimum_rows=1, tolerance_rows=1_000_000)
    place: dict[str, Any] = {"run_id": "test", "limiter": limiter, "resolve": lambda captions: None}
    if ring.exists():
        shard = Shard.reopen(ring, **place)
    else:
        sizes = {"max_actors": 1, "envs_per_actor": LANES, "capacity_rows": LANES * SLOTS, "window_rows": 3}
        shard = Shard.create(ring, SPEC, **sizes, **place)
    settings = LogSettings(seal_seconds=SEAL_SECONDS, segment_bytes=64 << 10)
    shard.attach_log(LogWriter(settings, open_files(folder, create=True), ring, run_id="test", captions={}))
    return shard


def fragment(round_number: int, sequence: int, incarnation: int, first: np.ndarray) -> Fragment:
    """ROWS rows a lane from row ``first`` [LANES] on, and heads."""
    number = first[:, None] + np.arange(ROWS + 1)
    columns = {column.name: np.zeros((LANES, ROWS + 1, *column.shape), column.dtype) for column in SPEC.columns}
    del columns["caption_id"]
    columns["caption_hash"] = np.zeros((LANES, ROWS + 1), np.uint64)
    parts = np.broadcast_arrays(round_number, np.arange(LANES)[:, None], number)
    columns["observation"][:] = np.stack([*parts, sum(parts)], axis=-1)
    columns["policy_version"][:, :ROWS] = time.monotonic_ns()
    return Fragment(
        actor=0,
        incarnation=incarnation,
        sequence=sequence,
        rows_per_lane=np.full(LANES, ROWS, np.int32),
        columns=columns,
    )


def cursors(ring: Path) -> np.ndarray:
    reader = RingReader(ring)
    cursor = reader.snapshot().cursor
    reader.close()
    return cursor


def write_for_ever(folder: Path, ring: Path, round_number: int, ready: int) -> None:
    shard = open_shard(folder, ring)
    incarnation = shard.register(0, LANES).incarnation
    first, sequence = cursors(ring), 0
    os.write(ready, b"!")
    while True:
        shard.insert(fragment(round_number, sequence, incarnation, first))
        first, sequence = first + ROWS, sequence + 1
        time.sleep(0.001)


def close_in_order(folder: Path, ring: Path) -> None:
    open_shard(folder, ring).close()


def place_of(parts: np.ndarray) -> np.ndarray:
    """[N] round, lane and row number [N, 4] as one number."""
    place: np.ndarray = (parts[:, 0] << 40) | (parts[:, 1] << 32) | parts[:, 2]
    return place


def look(folder: Path, ring: Path, report: Path, killed: int, killed_ns: int, *, whole: bool = False) -> None:
    """What the log holds now, and what of the ring's rows it does not; the age of those of the round just killed.

    Segments that an earlier look has read are not read again, as they are many, unless ``whole``: then all are.
    """
    memory = report.with_suffix(".npz")
    before = {} if whole or not memory.exists() else dict(np.load(memory))
    seen = set(before.get("number", np.zeros(0, np.int64)).tolist())
    found: dict[str, Any] = {"damaged": 0, "doubled": 0, "wrong": 0, "segments": 0, "vanished": len(seen)}
    empty = np.zeros(0, np.int64)
    places, in_lanes, numbers = [before.get("place", empty)], [before.get("in_lane", empty)], list(seen)
    names = list(folder.glob("manifest-*")) if folder.exists() else []
    if names:
        log = ReplayLog(folder)
        found["damaged"] = len(log.verify() if whole else log.unreadable)
        found["segments"], found["torn"] = len(log.segments), len(log.torn)
        found["vanished"] = len(seen - {segment.number for segment in log.segments})
        for segment in log.segments:
            if segment.number in seen:
                continue
            numbers.append(segment.number)
            try:
                table = log.read(segment)
            except SegmentError:
                found["damaged"] += not whole
                continue
            parts = table.column("observation").combine_chunks().flatten().to_numpy().reshape(-1, 4)
            lane = table.column("lane").to_numpy()
            found["wrong"] += int(((parts[:, :3].sum(axis=1) != parts[:, 3]) | (lane != parts[:, 1])).sum())
            places.append(place_of(parts))
            in_lanes.append(lane.astype(np.int64) << 40 | table.column("generation").to_numpy())
    np.savez(memory, place=np.concatenate(places), in_lane=np.concatenate(in_lanes), number=np.array(numbers, np.int64))
    found["rows"] = sum(map(len, places))
    logged = np.unique(np.concatenate(places))
    found["doubled"] = found["rows"] - len(logged)
    # Each new ring leaves one number of a lane free, also one of which no row of that lane was sealed; all others
    # follow each other.
    order = np.argsort(generation := np.concatenate(in_lanes))
    same_lane = np.diff(generation[order] >> 40) == 0
    free = np.diff(generation[order])[same_lane] - 1
    found["holes"] = int((free > np.diff(np.concatenate(places)[order] >> 40)[same_lane]).sum())
    found["free"] = int((free > 0).sum())
    reader = RingReader(ring)
    snapshot = reader.snapshot()
    oldest_lost, missing = 0, 0
    for lane in range(LANES):
        number = np.arange(snapshot.oldest[lane], snapshot.cursor[lane])
        at = lane * reader.slots + number % reader.slots
        rows, made = reader.columns["observation"][at], reader.columns["policy_version"][at]
        absent = ~np.isin(place_of(rows), logged)
        missing += int(absent.sum())
        latest = absent & (made > 0) & (rows[:, 0] == killed)
        if latest.any():
            oldest_lost = max(oldest_lost, killed_ns - int(made[latest].min()))
    found["unsealed"], found["unsealed_age_seconds"] = missing, oldest_lost / 1e9
    found["gaps"] = int(snapshot.oldest.sum())  # the ring must not have gone round: then rows would not be compared
    report.write_text(json.dumps(found), encoding="utf-8")


def manifests(folder: Path) -> int:
    return len(list(folder.glob("manifest-*.json"))) if folder.exists() else 0


def fork(work: Callable[[], None]) -> int:
    child = os.fork()
    if child == 0:
        status = 1
        try:
            work()
            status = 0
        finally:
            os._exit(status)
    return child


def run(work: Callable[[], None]) -> None:
    _, status = os.waitpid(fork(work), 0)
    if status:
        raise SystemExit(f"a child ended with {status}")


def main(folder: Path, kills: int, seed: int, keep: bool, longest: float) -> None:
    chance, reports = random.Random(seed), []
    with tempfile.TemporaryDirectory(prefix="onibi-test-", dir="/dev/shm") as rings:
        ring, report = Path(rings) / "kill.ring", Path(rings) / "report.json"
        for number in range(kills):
            ready_in, ready_out = os.pipe()
            child = fork(lambda number=number, ready=ready_out: write_for_ever(folder, ring, number, ready))
            os.close(ready_out)
            if not os.read(ready_in, 1):
                raise SystemExit("the writer died by itself")
            os.close(ready_in)
            sealed, patience = manifests(folder), time.monotonic() + 60
            while number % 2 and manifests(folder) == sealed and time.monotonic() < patience:
                time.sleep(0.01)  # every other session seals something, however busy the machine
            time.sleep(chance.uniform(0.0, longest))
            killed_ns = time.monotonic_ns()
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            run(lambda at=killed_ns, number=number: look(folder, ring, report, number, at))
            reports.append(json.loads(report.read_text(encoding="utf-8")))
            if not keep and number < kills - 1:
                remove_ring(ring)
        if keep:
            run(lambda: close_in_order(folder, ring))
        run(lambda: look(folder, ring, report, -1, 0, whole=True))
        reports.append(json.loads(report.read_text(encoding="utf-8")))
    sys.stdout.write(json.dumps(reports))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4] == "keep", float(sys.argv[5]))
