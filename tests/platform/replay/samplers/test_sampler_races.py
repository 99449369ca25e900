"""Samplers against a writer in another process that laps them all the time."""

from __future__ import annotations

import importlib.util
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from onibi.platform.replay.ring.reader import RingReader
from onibi.platform.replay.samplers.fifo_sampler import FifoSampler
from onibi.platform.replay.samplers.prioritized_sampler import PrioritizedSampler
from onibi.platform.replay.samplers.sequence_sampler import SequenceSampler
from onibi.platform.replay.samplers.sequences import Tail
from onibi.platform.replay.samplers.uniform_sampler import UniformSampler

SCRIPT = Path(__file__).parents[1] / "ring" / "ring_process.py"
_spec = importlib.util.spec_from_file_location("ring_process", SCRIPT)
ring_process = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(ring_process)

LANES, WINDOW, WIDTH = ring_process.LANES, ring_process.WINDOW, ring_process.WIDTH
COUNT = np.arange(WIDTH)


def wrong(observation, key):
    """[...] observations that are not those of the rows with these keys: every byte is looked at."""
    return (observation != key[..., None] * WIDTH + COUNT).any(axis=-1)


def bad_windows(windows):
    key = windows.generation * LANES + windows.lane
    keys = key[:, None] + np.arange(WINDOW) * LANES
    bad = (windows.reward != np.where(windows.used, keys % 65_521, 0)).any(axis=1)
    bad |= (windows.action != key) | (windows.policy_version != key)
    bad |= wrong(windows.observation["observation"], key)
    last = key + windows.steps.astype(np.int64) * LANES
    return int((bad | wrong(windows.bootstrap_observation["observation"], last)).sum())


def bad_sequences(sequences):
    time_ = np.arange(len(sequences.used) + 1)[:, None]
    keys = (sequences.first_row + np.minimum(time_, sequences.steps)) * LANES + sequences.lane
    used = sequences.used
    bad = np.zeros(keys.shape, bool)
    if "observation" in sequences.observation:
        bad |= wrong(sequences.observation["observation"], keys)
    bad[:-1] |= sequences.reward != np.where(used, keys[:-1] % 65_521, 0)
    bad[:-1] |= used & ((sequences.action != keys[:-1]) | (sequences.policy_version != keys[:-1]))
    bad = bad.any(axis=0)
    if "memory" in sequences.first_extra:
        bad |= wrong(sequences.first_extra["memory"], keys[0]) & (sequences.first_row > 0)
    return int(bad.sum())


def bad_slabs(slab):
    keys = (slab.generation[:, None] + np.arange(slab.used.shape[1] + 1)) * LANES + slab.lane[:, None]
    bad = wrong(slab.observation["observation"], keys)
    bad[:, :-1] |= (slab.reward != keys[:, :-1] % 65_521) | (slab.action != keys[:, :-1]) | ~slab.used
    return int(bad.any(axis=1).sum())


class Learner:
    """Draws, and now and then gives new priorities, some of them late."""

    def __init__(self, kind, reader):
        rng = np.random.default_rng(0)
        common = {"reader": reader, "batch_size": 64, "rng": rng}
        self.rng, self.kind, self.old = np.random.default_rng(1), kind, None
        if kind == "threads":
            self.sampler = UniformSampler(**common, n_steps=WINDOW, batches_ahead=4, gather_threads=2)
        elif kind == "prioritized":
            self.sampler = PrioritizedSampler(**common, n_steps=WINDOW, batches_ahead=4)
        elif kind == "fifo":
            self.sampler = FifoSampler(reader, rows=60, batch_lanes=LANES)
        elif kind == "sequences with states":
            self.sampler = SequenceSampler(**common, length=2, period=2, first_row_columns=["memory"], columns=())
        else:
            tail = Tail.PAD if kind == "padded sequences" else Tail.SHIFT
            self.sampler = SequenceSampler(
                **common, length=WINDOW - 1, burn_in=1, tail=tail, exponent=0.6, gather_threads=2
            )
        self.out = self.sampler.allocate()

    def draw(self):
        """One batch; the number of bad ones in it."""
        if self.kind == "fifo":
            return bad_slabs(self.sampler.draw(self.out)) if self.sampler.ready else 0
        out = self.sampler.draw(self.out)
        if self.kind != "threads":
            if self.old:
                self.sampler.update(*self.old, self.rng.random(64))
            self.old = (out.lane.copy(), out.generation.copy())
        return bad_sequences(out) if "sequences" in self.kind else bad_windows(out)


def race(kind, ring, reader_class, seconds, enough):
    """(bad, overtaken, learner) after drawing while a writer laps, until ``enough(bad, overtaken)`` or ``seconds``."""
    process = subprocess.Popen([sys.executable, str(SCRIPT), "lap", str(ring)], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout.readline() == "writing\n"
        reader = reader_class(ring)
        deadline = time.monotonic() + seconds
        while not reader.snapshot().cursor.any():
            assert time.monotonic() < deadline
        learner, bad = Learner(kind, reader), 0
        while time.monotonic() < deadline and not enough(bad, learner.sampler.overtaken):
            bad += learner.draw()
        assert process.poll() is None
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
    return bad, learner.sampler.overtaken, learner


class NoEndCheck(RingReader):
    """Believes that nothing is ever overwritten."""

    def oldest_now(self):
        return np.zeros(self.lanes, np.int64)


@pytest.fixture
def ring(ring_path):
    ring_process.create(ring_path).close()
    return ring_path


KINDS = ["threads", "prioritized", "padded sequences", "shifted sequences", "sequences with states"]


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_bad_is_handed_out_while_the_writer_laps_the_sampler(ring, kind):
    bad, overtaken, learner = race(kind, ring, RingReader, 40, lambda bad, overtaken: bad > 0 or overtaken > 1_500)
    assert bad == 0
    assert overtaken > 1_000
    if kind != "threads":
        assert learner.sampler.late_updates > 0


def test_no_bad_slab_is_handed_out_and_every_row_is_drawn_or_lost(ring):
    bad, overtaken, learner = race("fifo", ring, RingReader, 30, lambda bad, overtaken: bad > 0 or overtaken > 20)
    sampler = learner.sampler
    assert bad == 0
    assert overtaken > 0
    assert sampler.drawn_rows > 0 < sampler.lost_rows
    assert sampler.drawn_rows + sampler.final_rows + sampler.lost_rows == sampler._position.sum()


@pytest.mark.parametrize("kind", [*KINDS, "fifo"])
def test_bad_ones_get_through_without_the_end_check(ring, kind):
    bad, _, _ = race(kind, ring, NoEndCheck, 60, lambda bad, overtaken: bad > 0)
    assert bad > 0
