"""Samplers in threads of their own: the same rows as one sampler's, whole batches in turn, errors that pass by."""

from __future__ import annotations

import subprocess
import sys
import threading

import numpy as np
import pytest
from scipy import stats

from onibi.platform.errors import ReplayError
from onibi.platform.replay.samplers.sampler_threads import SamplerThreads
from onibi.platform.replay.samplers.uniform_sampler import UniformSampler

BATCH = 256


def serving():
    return [thread for thread in threading.enumerate() if thread.name == "onibi-sampler"]


def two(reader, batch=BATCH):
    return [UniformSampler(reader, n_steps=3, batch_size=batch, rng=np.random.default_rng(seed)) for seed in (1, 2)]


@pytest.fixture
def layout(layouts, ring_path):
    made = layouts.Layout(ring_path, np.random.default_rng(11), "next_step", end=0.2)
    yield made
    made.close()


@pytest.fixture
def sampler(layout):
    for _ in range(90):
        layout.fragment()
    made = SamplerThreads(two(layout.reader))
    yield made
    made.close()
    assert serving() == []


def test_each_drawable_start_is_drawn_alike_with_the_values_of_its_row(layout, sampler):
    counts = dict.fromkeys(layout.drawable(), 0)
    out = sampler.allocate()
    for _ in range(600):
        drawn = sampler.draw(out)
        assert drawn is out
        number = out.observation["observation"][:, 0]
        np.testing.assert_array_equal(out.action, number % 9)
        np.testing.assert_array_equal(out.bootstrap_observation["observation"][:, 0], number + out.steps)
        for start in zip(out.lane.tolist(), out.generation.tolist(), strict=True):
            counts[start] += 1
    assert sampler.drawn_rows == 600 * BATCH
    assert stats.chisquare(list(counts.values())).pvalue > 1e-3


def test_batches_come_from_the_samplers_in_turn(layout, sampler):
    alone = two(layout.reader)
    for turn in range(6):
        expected, found = alone[turn % 2].draw(), sampler.draw()
        np.testing.assert_array_equal(found.generation, expected.generation)
        np.testing.assert_array_equal(found.observation["observation"], expected.observation["observation"])


def test_a_batch_stays_as_it_is_for_one_more_draw_of_each_sampler(sampler):
    first = sampler.draw()
    kept = first.generation.copy()
    sampler.draw()
    np.testing.assert_array_equal(first.generation, kept)
    third = sampler.draw()
    assert third.generation is not first.generation


def test_a_ring_without_rows_is_an_error_until_rows_come_in(layout):
    sampler = SamplerThreads(two(layout.reader))
    for _ in range(3):
        with pytest.raises(ReplayError, match="no committed rows"):
            sampler.draw()
    for _ in range(20):
        layout.fragment()
    assert sampler.draw().batch_size == BATCH
    sampler.close()


def test_a_restored_one_goes_on_with_its_counters_and_other_draws(layout, sampler):
    for _ in range(5):
        sampler.draw()
    state = sampler.state()
    again = SamplerThreads(two(layout.reader))
    again.restore(state)
    assert again.drawn_rows == 5 * BATCH
    fresh = two(layout.reader)[0].draw().generation
    assert not np.array_equal(again.draw().generation, fresh)  # the generators went on
    again.close()
    with pytest.raises(ReplayError, match="2 samplers, there are 1"):
        SamplerThreads(two(layout.reader)[:1]).restore(state)


def test_threads_end_with_the_object(layout):
    for _ in range(20):
        layout.fragment()
    sampler = SamplerThreads(two(layout.reader))
    sampler.draw()
    threads = serving()
    assert len(threads) == 2
    del sampler
    for thread in threads:
        thread.join(10)
        assert not thread.is_alive()


def test_it_needs_a_sampler_and_a_depth(layout):
    with pytest.raises(ReplayError, match="draw nothing"):
        SamplerThreads([])
    with pytest.raises(ReplayError, match="draw nothing"):
        SamplerThreads(two(layout.reader), depth=0)


_FORKED = """
import os, signal, sys
from pathlib import Path
import numpy as np
from onibi.platform.errors import ReplayError
from onibi.platform.replay.ring.reader import RingReader
from onibi.platform.replay.samplers.gather_threads import GatherThreads
from onibi.platform.replay.samplers.sampler_threads import SamplerThreads
from onibi.platform.replay.samplers.uniform_sampler import UniformSampler

rng = np.random.default_rng(0)
sampler = UniformSampler(RingReader(Path(sys.argv[1])), n_steps=1, batch_size=8, rng=rng)
threads, gather = SamplerThreads([sampler]), GatherThreads(2)
threads.draw()
source, target = np.arange(1 << 18), np.zeros(1 << 18, np.int64)
gather.take([(source, source[::-1].copy(), target)])
target[:] = 0
if os.fork():
    sys.exit(os.waitstatus_to_exitcode(os.wait()[1]))
signal.alarm(30)  # ends what waits for threads that are not there
gather.take([(source, source[::-1].copy(), target)])
print("gathered" if (target == source[::-1]).all() else "wrong", flush=True)
try:
    threads.draw()
except ReplayError as error:
    print(str(error).partition(";")[0], flush=True)
os._exit(0)
"""


def test_a_forked_child_waits_for_no_thread_of_its_parent(layout):
    for _ in range(9):
        layout.fragment()
    command = [sys.executable, "-W", "ignore", "-c", _FORKED, str(layout.reader.path)]
    finished = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert (finished.returncode, finished.stderr) == (0, "")
    assert finished.stdout.splitlines() == [
        "gathered",
        "these samplers draw in threads of the process that this one was forked from",
    ]
