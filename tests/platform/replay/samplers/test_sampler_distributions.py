"""Drawn frequencies against exact probabilities, for every sampler: each valid start, and nothing else."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from onibi.platform.replay.ring.reader import RingReader
from onibi.platform.replay.ring.writer import RingWriter
from onibi.platform.replay.samplers.newest_first_sampler import NewestFirstSampler
from onibi.platform.replay.samplers.prioritized_sampler import PrioritizedSampler
from onibi.platform.replay.samplers.sequence_sampler import SequenceSampler
from onibi.platform.replay.samplers.sequences import Tail
from onibi.platform.replay.samplers.trajectory_sampler import TrajectoryWeightedSampler, trajectory_probabilities
from onibi.platform.replay.samplers.uniform_sampler import UniformSampler
from onibi.platform.spec import ROLE_FINAL

DRAWS, BATCH = 400_000, 4_096


@pytest.fixture
def layout(layouts, ring_path, mode):
    """A ring that has been lapped, with short episodes, gaps and deaths."""
    made = layouts.Layout(ring_path, np.random.default_rng(11), mode, end=0.2)
    for _ in range(90):
        made.fragment()
    assert any(made.oldest)
    yield made
    made.close()


def counted(sampler, starts, draws=DRAWS):
    """How often each of ``starts`` is drawn; KeyError for any other start."""
    counts = dict.fromkeys(starts, 0)
    out = sampler.allocate()
    for _ in range(-(-draws // BATCH)):
        sampler.draw(out)
        found, times = np.unique(np.stack([out.lane, out.generation]), axis=1, return_counts=True)
        for lane, row, number in zip(*found.tolist(), times.tolist(), strict=True):
            counts[lane, row] += number
    return counts


def assert_drawn_as(counts, weights):
    """Chi-square of counts against probabilities ∝ weights; where fewer than 10 are expected, pooled."""
    number = np.array([counts[start] for start in weights], float)
    expected = np.array(list(weights.values())) * number.sum() / sum(weights.values())
    rare = expected < 10
    if rare.any():
        number = np.append(number[~rare], number[rare].sum())
        expected = np.append(expected[~rare], expected[rare].sum())
    assert len(number) > 10
    assert stats.chisquare(number, expected * number.sum() / expected.sum()).pvalue > 1e-3


def test_uniform(layout):
    sampler = UniformSampler(layout.reader, n_steps=3, batch_size=BATCH, rng=np.random.default_rng(1))
    counts = counted(sampler, layout.drawable())
    assert min(counts.values()) > 0
    assert_drawn_as(counts, dict.fromkeys(counts, 1.0))


def test_uniform_with_two_gather_threads_draws_the_same(layout):
    one, two = (
        UniformSampler(
            layout.reader,
            n_steps=3,
            batch_size=BATCH * 8,
            rng=np.random.default_rng(1),
            batches_ahead=2,
            gather_threads=threads,
        )
        for threads in (1, 2)
    )
    for _ in range(5):
        a, b = one.draw(), two.draw()
        for name in ("lane", "generation", "reward", "steps"):
            assert np.array_equal(getattr(a, name), getattr(b, name))
        assert np.array_equal(a.pairs["observation"], b.pairs["observation"])
        assert np.array_equal(a.extra["memory"], b.extra["memory"])


@pytest.mark.parametrize("exponent", [0.0, 0.6, 1.0])
def test_prioritized_after_many_random_updates(layout, exponent):
    rng = np.random.default_rng(5)
    sampler = PrioritizedSampler(
        layout.reader, n_steps=3, batch_size=BATCH, rng=np.random.default_rng(1), exponent=exponent
    )
    drawable = sorted(layout.drawable())
    priority = dict.fromkeys(drawable, 1.0)
    sampler.draw()
    for _ in range(500):  # 10⁵ updates, with rows named twice and rows long overwritten among them
        picks = [drawable[index] for index in rng.integers(0, len(drawable), 200)]
        values = rng.exponential(size=200)
        applied = sampler.update([lane for lane, _ in picks], [row for _, row in picks], values)
        assert applied == 200
        priority.update(zip(picks, values.tolist(), strict=True))
    old = [(lane, row - layout.slots) for lane, row in drawable if row >= layout.slots]
    assert sampler.update([lane for lane, _ in old], [row for _, row in old], np.full(len(old), 1e6)) == 0
    assert sampler.late_updates == len(old) > 0
    weights = {start: value**exponent for start, value in priority.items()}
    assert sampler.total == pytest.approx(sum(weights.values()), rel=1e-9)
    for _ in range(8):
        sampler.draw()  # planned before the updates
    counts = counted(sampler, drawable)
    assert_drawn_as(counts, weights)


def test_importance_weights_undo_the_priorities(layout):
    """With β = 1 the weighted frequencies are uniform: P(i) · w_i is the same for all."""
    sampler = PrioritizedSampler(
        layout.reader,
        n_steps=1,
        batch_size=2_048,
        rng=np.random.default_rng(1),
        importance_exponent=1.0,
        default_priority="first_priority",
    )
    windows = sampler.draw()
    assert windows.weight.max() == 1
    rows = zip(windows.lane.tolist(), windows.generation.tolist(), strict=True)
    p = np.array([layout.row(lane, row).first_priority for lane, row in rows]) ** 0.6
    np.testing.assert_allclose(windows.weight * p, (windows.weight * p)[0], rtol=1e-5)
    sampler.importance_exponent = 0.0
    assert (sampler.draw().weight == 1).all()


@pytest.mark.parametrize("tail", list(Tail))
@pytest.mark.parametrize(("length", "burn_in", "period"), [(4, 3, 2), (3, 0, 1), (1, 2, 1)])
def test_sequences(layouts, ring_path, mode, tail, length, burn_in, period):
    layout = layouts.Layout(ring_path, np.random.default_rng(2), mode, end=0.25, accidents=0.0)
    for _ in range(20):
        layout.fragment()
    assert not any(layout.oldest)
    sampler = SequenceSampler(
        layout.reader,
        length=length,
        burn_in=burn_in,
        period=period,
        tail=tail,
        batch_size=BATCH,
        rng=np.random.default_rng(3),
    )
    starts, learned = set(), set()
    for lane in layout.lanes:
        for begin, end, ended in layout.pieces(lane):
            mine = {k for k in range(begin, end, period) if tail is Tail.PAD or k + length <= end}
            if tail is Tail.SHIFT and ended and end > begin:
                mine.add(max(begin, end - length))
            starts |= {(lane, k) for k in mine}
            if ended and period <= length:
                learned |= {(lane, k) for k in range(begin, end)}
    counts = counted(sampler, starts, DRAWS // 4)
    assert_drawn_as(counts, dict.fromkeys(starts, 1.0))
    covered = {(lane, k + i) for lane, k in starts for i in range(length)}
    assert learned <= covered, "every row of an ended episode is learned from in some sequence"
    layout.close()


def test_sequences_by_priority(layout):
    sampler = SequenceSampler(
        layout.reader, length=3, burn_in=2, batch_size=BATCH, rng=np.random.default_rng(3), exponent=0.9
    )
    sampler.draw()
    leaf = np.flatnonzero(sampler._table._row >= 0)
    starts = list(zip((leaf // layout.slots).tolist(), sampler._table._row[leaf].tolist(), strict=True))
    values = np.random.default_rng(4).exponential(size=len(starts))
    assert sampler.update(*np.array(starts).T, values) == len(starts)
    counts = counted(sampler, starts, DRAWS // 4)
    assert_drawn_as(counts, dict(zip(starts, (values**0.9).tolist(), strict=True)))


@pytest.mark.parametrize("half_life", [0.7, 9.0, 1e9])
def test_newest_first(layout, half_life):
    sampler = NewestFirstSampler(
        layout.reader, n_steps=2, batch_size=BATCH, rng=np.random.default_rng(1), half_life_rows=half_life
    )
    weights = {(lane, row): 2.0 ** (-(len(layout.rows[lane]) - 1 - row) / half_life) for lane, row in layout.drawable()}
    assert_drawn_as(counted(sampler, weights), weights)


def test_newest_first_where_the_newest_rows_are_final(layouts, ring_path):
    """The newest 150 rows are final, and a half-life of 1 row would propose nothing else for ever."""
    layout = layouts.Layout(ring_path, np.random.default_rng(1), "next_step", end=0.0, accidents=0.0)
    layout.close()
    ring_path.unlink()
    writer = RingWriter.create(
        ring_path, layouts.SPEC, groups=1, lanes_per_group=1, slots=400, window_rows=2, run_id="finals"
    )
    columns = {c.name: np.zeros((1, 3, *c.shape), c.dtype) for c in layouts.SPEC.columns}
    incarnation = writer.register(0)
    writer.insert(0, incarnation=incarnation, sequence=0, rows_per_lane=np.array([2], np.int32), columns=columns)
    for _ in range(150):
        incarnation = writer.register(0)
        head = {name: column[:, :1] for name, column in columns.items()}
        writer.insert(0, incarnation=incarnation, sequence=0, rows_per_lane=np.zeros(1, np.int32), columns=head)
    sampler = NewestFirstSampler(
        RingReader(ring_path), n_steps=2, batch_size=3_000, rng=np.random.default_rng(1), half_life_rows=1.0
    )
    newer = np.count_nonzero(sampler.draw().generation == 1)
    assert stats.binomtest(newer, 3_000, 2 / 3).pvalue > 1e-3
    writer.close()


@pytest.mark.parametrize("by_length", [False, True])
@pytest.mark.parametrize("temperature", [0.1, 3.0])
def test_trajectory_weighted(layout, temperature, by_length):
    sampler = TrajectoryWeightedSampler(
        layout.reader,
        n_steps=2,
        batch_size=BATCH,
        rng=np.random.default_rng(1),
        temperature=temperature,
        by_length=by_length,
    )
    found = sampler.trajectories()
    returns = found.episode_return
    assert len(found) > 5
    weights = {}
    for lane, begin, end, value in zip(found.place, found.begin, found.end, returns, strict=True):
        share = np.exp((value - returns.min()) / (returns.max() - returns.min()) / temperature)
        for row in range(begin, end):
            weights[int(lane), row] = share if by_length else share / (end - begin)
    assert_drawn_as(counted(sampler, weights, DRAWS // 4), weights)


def test_equal_returns_make_trajectories_equal():
    assert trajectory_probabilities(np.full(4, -3.0), 0.1).tolist() == [0.25] * 4
    assert trajectory_probabilities(np.array([7.0]), 0.1).tolist() == [1.0]
    low, high = trajectory_probabilities(np.array([-100.0, 300.0]), 0.5)
    assert high / low == pytest.approx(np.exp(2.0))  # e^(1 / 0.5), whatever the scale of returns


@pytest.mark.parametrize("broken", [np.nan, np.inf, -np.inf])
def test_a_return_that_is_not_finite_takes_its_own_trajectory_out_and_no_other(layouts, ring_path, broken):
    spec = layouts.SPEC
    writer = RingWriter.create(ring_path, spec, groups=1, lanes_per_group=1, slots=400, window_rows=2, run_id="returns")
    incarnation = writer.register(0)
    for number, reward in enumerate((0.0, broken, 1.0)):  # an episode of two steps each
        columns = {column.name: np.zeros((1, 4, *column.shape), column.dtype) for column in spec.columns}
        columns["reward"][0, 0], columns["terminated"][0, 1], columns["role"][0, 2] = reward, 1, ROLE_FINAL
        columns["step"][0] = [0, 1, 2, 0]
        writer.insert(
            0,
            incarnation=incarnation,
            sequence=number,
            rows_per_lane=np.array([3], np.int32),
            columns=columns,
        )
    sampler = TrajectoryWeightedSampler(
        RingReader(ring_path),
        n_steps=1,
        batch_size=256,
        rng=np.random.default_rng(0),
        temperature=0.01,
        by_length=False,
    )
    assert sampler.trajectories().episode_return.tolist() == [0.0, 1.0]
    assert set(sampler.draw().generation.tolist()) == {6, 7}  # e^100 to 1 for the better one
    writer.close()
