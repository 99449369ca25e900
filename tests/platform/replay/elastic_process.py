"""A shard whose actors come and go, its actors, and samplers of all kinds, each in a process of its own.

python elastic_process.py FOLDER RING ROUNDS TIMEOUT_SECONDS

There is one actor more than the ring has groups. In each round one that has lanes is killed (-9), and a new one
comes; the round ends when the one that waited has got the lanes. Reports of all as JSON on stdout. Every row says which
actor, incarnation and lane made it as its how-manieth: whatever a draw joins must be one actor's. Processes are forked:
Python's start would be most of the time.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from multiprocessing.connection import Client, Connection, Listener, wait
from pathlib import Path
from typing import Any

import numpy as np

from onibi.platform.errors import LeaseError
from onibi.platform.fragment import Fragment
from onibi.platform.fragment_batch import from_batch, to_batch
from onibi.platform.replay.actor_leases import ActorLeases
from onibi.platform.replay.limiter import Limiter
from onibi.platform.replay.log.log_files import open_files
from onibi.platform.replay.log.log_settings import LogSettings
from onibi.platform.replay.log.log_writer import LogWriter
from onibi.platform.replay.ring.reader import RingReader
from onibi.platform.replay.samplers.fifo_sampler import FifoSampler
from onibi.platform.replay.samplers.prioritized_sampler import PrioritizedSampler
from onibi.platform.replay.samplers.sequence_sampler import SequenceSampler
from onibi.platform.replay.samplers.uniform_sampler import UniformSampler
from onibi.platform.replay.shard import Lease, Shard
from onibi.platform.spec import ArraySpec, ReplaySpec

GROUPS, ENVS, ROWS, SLOTS, WIDTH = 2, 2, 16, 1_000, 16
N, LENGTH, BURN_IN, SLAB, BATCH = 3, 6, 2, 20, 32
SPEC = ReplaySpec(observation=(ArraySpec(name="observation", dtype="int64", shape=(WIDTH,)),), actions=2)
COUNT = np.arange(WIDTH)
L, KINDS, PATIENCE_SECONDS = GROUPS * ENVS, ("uniform", "prioritized", "sequences", "fifo"), 90.0


def stop_signal() -> threading.Event:
    """Set from SIGTERM on."""
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    return stop


def fragment(lease: Lease, sequence: int, stamp: int) -> Fragment:
    """ROWS rows of each lane, in an episode without end; keys count up from one that no other incarnation has."""
    key = ((stamp * ENVS + np.arange(ENVS)[:, None]) << 24) + sequence * ROWS + np.arange(ROWS + 1)
    columns = {column.name: np.zeros((ENVS, ROWS + 1, *column.shape), column.dtype) for column in SPEC.columns}
    del columns["caption_id"]
    columns["caption_hash"] = np.zeros((ENVS, ROWS + 1), np.uint64)
    columns["observation"][:] = key[..., None] * WIDTH + COUNT
    columns["episode_id"][:] = stamp
    columns["step"][:] = sequence * ROWS + np.arange(ROWS + 1)
    columns["policy_version"][:, :ROWS] = key[:, :ROWS]
    columns["reward"][:, :ROWS] = key[:, :ROWS] % 65_521
    return Fragment(lease.actor, lease.incarnation, sequence, np.full(ENVS, ROWS, np.int32), columns)


def act(socket: str, number: int) -> None:
    """Register, waiting for lanes, and insert for ever."""
    with Client(socket, family="AF_UNIX") as shard:
        while True:
            shard.send(("register", number))
            lease = shard.recv()
            if lease is None:
                time.sleep(0.02)
                continue
            sequence, stamp = 0, number * 4_096 + lease.incarnation
            accepted = True
            while accepted:
                shard.send(("insert", to_batch(fragment(lease, sequence, stamp))))
                accepted = shard.recv()  # False: its lanes are another one's now
                sequence += 1
                time.sleep(0.001)


class Service:
    """The shard's side of all connections; one at a time, as in the shard's actor."""

    def __init__(self, ring: Path, timeout: float, folder: Path, told: int) -> None:
        self.told = told
        self.shard = Shard.create(
            ring,
            SPEC,
            max_actors=GROUPS,
            envs_per_actor=ENVS,
            capacity_rows=GROUPS * ENVS * SLOTS,
            window_rows=LENGTH + BURN_IN,
            run_id="test",
            limiter=Limiter(ratio=1.0, minimum_rows=1, tolerance_rows=10**12),
            resolve=lambda captions: np.zeros(0, np.uint32),
        )
        settings = LogSettings(seal_seconds=0.2)
        self.shard.attach_log(LogWriter(settings, open_files(folder, create=True), ring, run_id="test", captions={}))
        self.leases = ActorLeases(self.shard, timeout, time.monotonic())
        self.reader = RingReader(ring)
        self.counts: Counter[str] = Counter()

    def answer(self, what: str, given: Any) -> Any:
        now = time.monotonic()
        if what == "register":
            lease = self.leases.register(given, ENVS, now)
            self.counts["waited" if lease is None else "leases"] += 1
            if lease is not None:
                os.write(self.told, f"{given} {lease.actor}\n".encode())
            return lease
        try:
            self.shard.insert(from_batch(given))
        except LeaseError:
            self.counts["superseded"] += 1
            return False
        self.leases.heard(from_batch(given).actor, now)
        self.counts["fragments"] += 1
        return True

    def gone(self) -> None:
        """An actor's process has ended: its rows stay for now."""
        snapshot = self.reader.snapshot()
        self.counts["gone"] += 1
        self.counts["lanes_readable_then"] += int((snapshot.cursor > snapshot.oldest).sum())

    def serve(self, socket: str, stop: threading.Event) -> None:
        actors: list[Connection] = []
        listener = Listener(socket, family="AF_UNIX")

        def accept() -> None:
            while True:
                actors.append(listener.accept())

        threading.Thread(target=accept, daemon=True).start()
        os.write(self.told, b"serving\n")
        while not stop.is_set():
            for each in wait(list(actors), timeout=0.05):
                try:
                    each.send(self.answer(*each.recv()))
                except (EOFError, ConnectionResetError, BrokenPipeError):
                    self.gone()
                    actors.remove(each)


def serve(ring: Path, socket: str, timeout: float, folder: Path, told: int) -> dict[str, Any]:
    stop = stop_signal()
    service = Service(ring, timeout, folder, told)
    service.serve(socket, stop)
    cursor = service.shard._writer.record("cursor").reshape(-1).tolist()
    service.shard.close()
    return {**service.counts, "cursor": cursor}


def keys_of(observation: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """[...] key of each observation [..., WIDTH], and whether it is not whole."""
    key = observation[..., 0] // WIDTH
    return key, (observation != key[..., None] * WIDTH + COUNT).any(axis=-1)


def bad_windows(windows: Any) -> int:
    first, bad = keys_of(windows.observation["observation"])
    last, torn = keys_of(windows.bootstrap_observation["observation"])
    keys = first[:, None] + np.arange(N)
    bad |= torn | (last != first + windows.steps) | (windows.policy_version != first)
    bad |= (windows.reward != np.where(windows.used, keys % 65_521, 0)).any(axis=1)
    return int(bad.sum())


def bad_sequences(sequences: Any) -> int:
    """Rows of one piece, up to the observation behind the last one."""
    keys, torn = keys_of(sequences.observation["observation"])
    time_ = np.arange(len(keys))[:, None]
    inside = time_ <= sequences.steps
    bad = inside & (torn | (keys != keys[0] + time_))
    used = sequences.used
    bad[:-1] |= used & ((sequences.reward != keys[:-1] % 65_521) | (sequences.policy_version != keys[:-1]))
    return int(bad.any(axis=0).sum())


def bad_slabs(slab: Any) -> int:
    keys, torn = keys_of(slab.observation["observation"])
    rows = keys[:, :-1]
    goes_on = slab.used[:, :-1] & slab.used[:, 1:] & ~slab.begins[:, 1:]
    bad = torn[:, :-1] | (slab.used & ((slab.reward != rows % 65_521) | (slab.policy_version != rows)))
    bad[:, 1:] |= goes_on & (np.diff(rows, axis=1) != 1)
    return int(bad.any(axis=1).sum())


def sample(ring: Path, kind: str) -> dict[str, Any]:
    """Draw and check until SIGTERM, and until something was drawn from each lane."""
    stop, rng = stop_signal(), np.random.default_rng(os.getpid())
    reader = RingReader(ring)
    sampler: Any
    if kind == "uniform":
        sampler = UniformSampler(reader, n_steps=N, batch_size=BATCH, rng=rng)
    elif kind == "prioritized":
        sampler = PrioritizedSampler(reader, n_steps=N, batch_size=BATCH, rng=rng)
    elif kind == "sequences":
        sampler = SequenceSampler(
            reader, length=LENGTH, burn_in=BURN_IN, period=2, batch_size=BATCH, rng=rng, exponent=0.6
        )
    else:
        sampler = FifoSampler(reader, rows=SLAB, batch_lanes=GROUPS * ENVS)
    counts: Counter[str] = Counter(bad=0, late=0, empty=0)
    out = sampler.allocate()
    lanes: set[int] = set()
    deadline = time.monotonic() + PATIENCE_SECONDS
    while time.monotonic() < deadline and not (stop.is_set() and sampler.drawn_rows > 2_000 and len(lanes) == L):
        if not (sampler.ready if kind == "fifo" else reader.snapshot().readable_rows > 200):
            counts["empty"] += 1
            time.sleep(0.001)
            continue
        drawn = sampler.draw(out)
        lanes |= set(drawn.lane.tolist())
        counts["bad"] += {"sequences": bad_sequences, "fifo": bad_slabs}.get(kind, bad_windows)(drawn)
        if kind in ("prioritized", "sequences"):
            time.sleep(0.001)  # so that some rows are gone before their priorities come
            counts["late"] += BATCH - sampler.update(drawn.lane, drawn.generation, rng.random(BATCH) + 0.01)
    if kind == "fifo":
        counts.update({name: getattr(sampler, f"{name}_rows") for name in ("final", "lost")})
        counts["position"] = int(sampler._position.sum())
    return {**counts, "drawn": sampler.drawn_rows, "lanes": len(lanes)}


class Family:
    """Forked processes; what they return is kept in a file each."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.children: dict[int, Path] = {}

    def fork(self, name: str, work: Callable[[], Any]) -> int:
        report = self.folder / f"{name}.json"
        child = os.fork()
        if child == 0:
            status = 1
            try:
                report.write_text(json.dumps(work()), encoding="utf-8")
                status = 0
            finally:
                os._exit(status)
        self.children[child] = report
        return child

    def end(self, child: int, number: int) -> Any:
        os.kill(child, number)
        _, status = os.waitpid(child, 0)
        report = self.children.pop(child)
        if number == signal.SIGTERM and status:
            raise SystemExit(f"{report.stem} ended with {status}")
        return json.loads(report.read_text(encoding="utf-8")) if number == signal.SIGTERM else None

    def kill_all(self) -> None:
        for child in list(self.children):
            self.end(child, signal.SIGKILL)


def main(folder: Path, ring: Path, rounds: int, timeout: float) -> None:
    family, chance = Family(folder), random.Random(3)
    socket, log = str(folder / "socket"), folder / "log"
    hear, tell = os.pipe()
    try:
        shard = family.fork("shard", lambda: serve(ring, socket, timeout, log, tell))
        os.close(tell)
        lines = os.fdopen(hear)
        if lines.readline() != "serving\n":
            raise SystemExit("the shard did not start")
        samplers = {kind: family.fork(kind, lambda kind=kind: sample(ring, kind)) for kind in KINDS}
        actors = {each: family.fork(f"actor {each}", lambda each=each: act(socket, each)) for each in range(3)}
        holders: dict[int, int] = {}
        while len(holders) < GROUPS:
            number, group = map(int, lines.readline().split())
            holders[group] = number
        for coming in range(3, 3 + rounds):
            group = chance.randrange(GROUPS)
            victim = holders.pop(group)
            family.end(actors.pop(victim), signal.SIGKILL)
            actors[coming] = family.fork(f"actor {coming}", lambda coming=coming: act(socket, coming))
            while group not in holders:
                number, given = map(int, lines.readline().split())
                holders[given] = number
            time.sleep(chance.uniform(0.0, 0.3))
        reports = {kind: family.end(child, signal.SIGTERM) for kind, child in samplers.items()}
        reports["shard"] = family.end(shard, signal.SIGTERM)
    finally:
        family.kill_all()
    sys.stdout.write(json.dumps(reports))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4]))
