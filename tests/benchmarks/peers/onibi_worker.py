"""Onibi, and the bare memory operations on the very same mapping that it is held against."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
from peers.ring_fragments import fragment, fragment_columns, ring_spec
from peers.rows import FRAGMENT_ROWS, GAMMA, LANES, WIDTHS, Width, wrong_transitions
from peers.worker import BATCH, Case, Contender

from onibi.platform.replay.limiter import Limiter, LimiterSettings
from onibi.platform.replay.ring.reader import RingReader
from onibi.platform.replay.ring.writer import RingWriter
from onibi.platform.replay.samplers.prioritized_sampler import PrioritizedSampler
from onibi.platform.replay.samplers.sampler_threads import SamplerThreads
from onibi.platform.replay.samplers.uniform_sampler import UniformSampler
from onibi.platform.replay.samplers.windows import Windows
from onibi.platform.replay.shard import Shard

N_STEPS = 3
GATHER_THREADS = 2
AHEAD = 2
"""Batches that each of two sampler threads draws ahead; they are drawn before the clock starts."""
SOURCES = 4
"""Distinct fragments that insertion takes turns in, here and with the peers: one alone would stay in the cache."""


def filled_ring(path: Path, width: Width, rows: int) -> RingReader:
    """A ring of at least ``rows`` rows, gone round once."""
    writer = RingWriter.create(
        path,
        ring_spec(width),
        groups=1,
        lanes_per_group=LANES,
        slots=-(-rows // LANES),
        window_rows=N_STEPS,
        run_id="benchmark",
    )
    incarnation = writer.register(0)
    per_lane = np.full(LANES, FRAGMENT_ROWS, np.int32)
    for sequence in range(-(-rows // (LANES * FRAGMENT_ROWS)) + 1):
        columns = fragment_columns(width, sequence * FRAGMENT_ROWS)
        writer.insert(0, incarnation=incarnation, sequence=sequence, rows_per_lane=per_lane, columns=columns)
    reader = RingReader(path)
    writer.close()
    return reader


def check(width: Width, n_steps: int, newest: int, windows: Windows) -> list[str]:
    """The same look at a batch that the peers' batches get."""
    used = np.where(windows.used, GAMMA ** np.arange(n_steps), 0)
    return wrong_transitions(
        width,
        n_steps,
        newest,
        windows.observation["observation"],
        windows.bootstrap_observation["observation"],
        windows.action,
        (windows.reward * used).sum(axis=1),
        (windows.continues == 0).any(axis=1),
    )


def take_case(memory: np.ndarray, width: Width, slots: int, steps: int = 1) -> Case:
    """Bare ``np.take`` of o_k and o_(k+1) side by side, indices made beforehand, into one reused buffer."""
    rng = np.random.default_rng(0)
    starts = rng.integers(0, LANES, (256, BATCH)) * slots + rng.integers(0, slots - steps, (256, BATCH))
    indices = itertools.cycle(np.stack([starts, starts + steps], axis=2).reshape(256, -1))
    out = np.empty((2 * BATCH, *width.shape), width.dtype)

    def call() -> int:
        np.take(memory, next(indices), axis=0, out=out, mode="clip")
        return BATCH

    return Case(call)


def copy_case(target: np.ndarray, row_bytes: int) -> Case:
    """Bare contiguous copies of a fragment's bytes, head rows left out, to ever further places of ``target``."""
    size = LANES * FRAGMENT_ROWS * row_bytes
    sources = itertools.cycle([np.full(size, i + 1, np.uint8) for i in range(SOURCES)])
    places = itertools.cycle(range(0, len(target) - size + 1, size))

    def call() -> int:
        place = next(places)
        np.copyto(target[place : place + size], next(sources))
        return LANES * FRAGMENT_ROWS

    return Case(call)


def sampler_cases(reader: RingReader, width: Width) -> tuple[dict[str, Case], dict[str, list[str]]]:
    """Every sampler that is there, each with one reused batch."""
    cases, wrong = {}, {}
    newest = int(reader.snapshot().cursor[0])

    def add(name: str, n_steps: int, sampler, *, update: bool = False, ahead: int = 0) -> None:
        out = sampler.allocate()
        rng = np.random.default_rng(1)
        priorities = itertools.cycle([rng.random(BATCH) for _ in range(64)])

        def call() -> int:
            sampler.draw(out)
            if update:
                sampler.update(out.lane, out.generation, next(priorities))
            return BATCH

        cases[f"{width.name} {name}"] = Case(call, warm_calls=2 + ahead, settle_seconds=0.05 if ahead else 0.0)
        wrong[f"{width.name} {name}"] = check(width, n_steps, newest, sampler.draw(out))

    def settings(n_steps: int) -> dict:
        return {"n_steps": n_steps, "batch_size": BATCH, "rng": np.random.default_rng(n_steps)}

    for n in (1, N_STEPS):
        add(f"uniform {n}", n, UniformSampler(reader, **settings(n)))
    for n in (1, N_STEPS):
        add(f"uniform {n} split", n, UniformSampler(reader, **settings(n), gather_threads=GATHER_THREADS))
        several = [UniformSampler(reader, **settings(n) | {"rng": rng}) for rng in np.random.default_rng(n).spawn(2)]
        add(f"uniform {n} threads", n, SamplerThreads(several, depth=AHEAD), ahead=2 * (AHEAD + 1))
    add(f"prioritized {N_STEPS}", N_STEPS, PrioritizedSampler(reader, **settings(N_STEPS)), update=True)
    at_once = PrioritizedSampler(reader, **settings(N_STEPS), batches_ahead=1)
    add(f"prioritized {N_STEPS} at once", N_STEPS, at_once, update=True)
    return cases, wrong


def insert_cases(writer: RingWriter, shard: Shard, width: Width) -> dict[str, Case]:
    """The ring writer and the whole shard; episodes without end, as one fragment is inserted again and again."""
    incarnation, lease = writer.register(0), shard.register(0, LANES)
    numbers = itertools.count()
    sources = itertools.cycle([fragment(width, seed) for seed in range(SOURCES)])
    per_lane = np.full(LANES, FRAGMENT_ROWS, np.int32)

    def insert() -> int:
        columns = {name: c for name, c in next(sources).columns.items() if name != "caption_hash"}
        columns["caption_id"] = np.zeros((LANES, FRAGMENT_ROWS + 1), np.uint32)
        writer.insert(0, incarnation=incarnation, sequence=next(numbers), rows_per_lane=per_lane, columns=columns)
        return LANES * FRAGMENT_ROWS

    sequence = itertools.count(lease.next_sequence)

    def insert_shard() -> int:
        made = next(sources)
        made.incarnation, made.sequence = lease.incarnation, next(sequence)
        shard.insert(made)
        return LANES * FRAGMENT_ROWS

    return {f"{width.name} insert": Case(insert), f"{width.name} insert shard": Case(insert_shard)}


def prepare(rows: int, folder: Path) -> Contender:
    """Make rings in ``folder`` (shared memory), fill them, check one batch of each sampler."""
    cases, wrong = {}, {}
    for width in WIDTHS.values():
        reader = filled_ring(folder / f"{width.name}.ring", width, rows)
        column = reader.columns["observation"]
        cases[f"{width.name} take"] = take_case(column, width, reader.slots)
        cases[f"{width.name} take anonymous"] = take_case(column.copy(), width, reader.slots)
        more, found = sampler_cases(reader, width)
        cases |= more
        wrong |= found

        spec = ring_spec(width)
        ring = {"groups": 1, "lanes_per_group": LANES, "slots": reader.slots, "window_rows": N_STEPS}
        second = RingWriter.create(folder / f"{width.name}-writer.ring", spec, **ring, run_id="benchmark")
        limiter = Limiter.from_settings(
            LimiterSettings(), fragment_rows=LANES * FRAGMENT_ROWS, batch_rows=BATCH, capacity_rows=rows
        )
        shard = Shard.create(
            folder / f"{width.name}-shard.ring",
            spec,
            max_actors=1,
            envs_per_actor=LANES,
            capacity_rows=rows,
            window_rows=N_STEPS,
            run_id="benchmark",
            limiter=limiter,
            resolve=lambda captions: np.zeros(len(captions), np.uint32),
        )
        cases |= insert_cases(second, shard, width)
        path = folder / f"{width.name}.copy"
        path.write_bytes(bytes(rows * spec.row_bytes))  # written, so that its pages are there
        shared = np.memmap(path, np.uint8, "r+")
        cases[f"{width.name} copy"] = copy_case(shared, spec.row_bytes)
        cases[f"{width.name} copy anonymous"] = copy_case(np.full(rows * spec.row_bytes, 1, np.uint8), spec.row_bytes)
    return Contender(cases=cases, wrong=wrong)
