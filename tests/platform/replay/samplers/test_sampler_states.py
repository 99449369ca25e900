"""Determinism under a seed, states that go on exactly, and what samplers refuse."""

from __future__ import annotations

import json

import numpy as np
import pytest

from onibi.platform.errors import ReplayError
from onibi.platform.replay.samplers.draws import PrioritySettings, WindowDraws
from onibi.platform.replay.samplers.fifo_sampler import FifoSampler
from onibi.platform.replay.samplers.gather_threads import GatherThreads
from onibi.platform.replay.samplers.make_sampler import make_sampler
from onibi.platform.replay.samplers.newest_first_sampler import NewestFirstSampler, NewestFirstSettings
from onibi.platform.replay.samplers.prioritized_sampler import PrioritizedSampler
from onibi.platform.replay.samplers.sequence_sampler import SequenceSampler
from onibi.platform.replay.samplers.sequences import Tail
from onibi.platform.replay.samplers.start_table import StartTable
from onibi.platform.replay.samplers.trajectory_sampler import TrajectoryWeightedSampler
from onibi.platform.replay.samplers.uniform_sampler import UniformSampler

WINDOWED = {"n_steps": 3, "batch_size": 16}
MAKERS = {
    "uniform": lambda reader, rng: UniformSampler(reader, rng=rng, **WINDOWED),
    "newest first": lambda reader, rng: NewestFirstSampler(reader, rng=rng, **WINDOWED, half_life_rows=9.0),
    "prioritized": lambda reader, rng: PrioritizedSampler(reader, rng=rng, **WINDOWED, batches_ahead=3),
    "prioritized by column": lambda reader, rng: PrioritizedSampler(
        reader, rng=rng, **WINDOWED, default_priority="first_priority"
    ),
    "trajectory weighted": lambda reader, rng: TrajectoryWeightedSampler(
        reader, rng=rng, **WINDOWED, temperature=0.1, by_length=False
    ),
    "padded sequences": lambda reader, rng: SequenceSampler(
        reader, rng=rng, length=4, burn_in=2, period=3, batch_size=16, exponent=0.7, importance_exponent=0.5
    ),
    "shifted sequences": lambda reader, rng: SequenceSampler(reader, rng=rng, length=4, batch_size=16, tail=Tail.SHIFT),
    "fifo": lambda reader, rng: FifoSampler(reader, rows=4, batch_lanes=2),
}


@pytest.fixture
def layout(layouts, ring_path):
    made = layouts.Layout(ring_path, np.random.default_rng(3), "same_step", end=0.2)
    for _ in range(60):
        made.fragment()
    yield made
    made.close()


def batches(sampler, count, seed):
    """What ``count`` draws hand out, with priorities given back where the sampler has any."""
    rng, made = np.random.default_rng(seed), []
    for _ in range(count):
        if isinstance(sampler, FifoSampler) and not sampler.ready:
            made.append(None)
            continue
        out = sampler.draw()
        weight = out.weight.tobytes() if hasattr(out, "weight") else b""
        made.append((out.lane.tolist(), out.generation.tolist(), out.reward.tobytes(), weight))
        if hasattr(sampler, "update"):
            sampler.update(out.lane, out.generation, 5 * rng.random(len(out.lane)))
    return made


def through_json(state):
    """The state as a checkpoint keeps it: JSON, but for the arrays of ``table``."""
    plain = json.loads(json.dumps({key: value for key, value in state.items() if key != "table"}))
    return plain | {key: state[key] for key in ("table",) if key in state}


@pytest.mark.parametrize("kind", MAKERS)
def test_same_seed_draws_the_same_and_a_restored_sampler_goes_on_exactly(layout, kind):
    def fresh(seed):
        return MAKERS[kind](layout.reader, np.random.default_rng(seed))

    one, two, other = fresh(1), fresh(1), fresh(2)
    head = batches(one, 48, 0)
    assert head == batches(two, 48, 0)
    if kind != "fifo":
        assert head != batches(other, 48, 0)
    state = through_json(one.state())
    assert not state.get("row"), "nothing is planned ahead after 48 batches: a multiple of 16, 8 and 3"
    for _ in range(3):
        layout.fragment()  # both meet rows that neither had seen
    other.restore(state)
    assert batches(other, 20, 1) == batches(one, 20, 1)
    assert other.drawn_rows == one.drawn_rows


@pytest.mark.parametrize("kind", MAKERS)
def test_restored_sampler_goes_on_exactly_in_an_unchanged_ring(layout, kind):
    one = MAKERS[kind](layout.reader, np.random.default_rng(1))
    batches(one, 7, 0)
    state = through_json(one.state())
    other = MAKERS[kind](layout.reader, np.random.default_rng(9))
    other.restore(state)
    assert batches(other, 20, 1) == batches(one, 20, 1)
    assert (other.drawn_rows, other.overtaken) == (one.drawn_rows, one.overtaken)


@pytest.mark.parametrize("kind", ["prioritized", "trajectory weighted", "padded sequences", "fifo"])
def test_state_of_a_ring_with_more_rows_is_refused(layouts, layout, ring_path, kind):
    sampler = MAKERS[kind](layout.reader, np.random.default_rng(1))
    batches(sampler, 5, 0)
    state = through_json(sampler.state())
    other = layouts.Layout(ring_path.with_name("other.ring"), np.random.default_rng(3), "same_step", end=0.2)
    with pytest.raises(ReplayError, match="restore it with the ring it was taken from"):
        MAKERS[kind](other.reader, np.random.default_rng(1)).restore(state)
    other.close()


@pytest.mark.parametrize("priority", [np.nan, np.inf, -np.inf, -1e-9])
def test_priorities_that_are_no_priorities_are_refused_and_change_nothing(layout, priority):
    sampler = PrioritizedSampler(layout.reader, rng=np.random.default_rng(0), **WINDOWED)
    windows = sampler.draw()
    before = sampler.total
    values = np.full(16, 0.5)
    values[7] = priority
    with pytest.raises(ReplayError, match="priority 7 of 16 is"):
        sampler.update(windows.lane, windows.generation, values)
    assert sampler.total == before


def test_last_of_two_priorities_for_one_row_holds_and_the_maximum_is_for_new_rows(layout):
    sampler = PrioritizedSampler(layout.reader, rng=np.random.default_rng(0), **WINDOWED, exponent=1.0)
    windows = sampler.draw()
    lane, row = int(windows.lane[0]), int(windows.generation[0])
    before = sampler.total
    assert sampler.update([lane] * 3, [row] * 3, [9.0, 0.0, 4.0]) == 3
    assert sampler.total == pytest.approx(before + 3.0)
    drawable = layout.drawable()
    while layout.drawable() == drawable:
        layout.fragment()
    sampler._take_in()
    kept, new = drawable & layout.drawable(), layout.drawable() - drawable
    value = 9.0  # the largest ever given, though it held for no row
    held = len(kept) + (3.0 if (lane, row) in kept else 0.0)
    assert sampler.total == pytest.approx(held + value * len(new))


def test_priorities_of_rows_that_the_sampler_does_not_hold_are_ignored_and_counted(layout):
    """Final rows, rows that came in since, and rows long gone: several learners may update one another's draws."""
    sampler = PrioritizedSampler(layout.reader, rng=np.random.default_rng(0), **WINDOWED)
    sampler.draw()
    before, total = [len(rows) for rows in layout.rows], sampler.total
    while [len(rows) for rows in layout.rows] == before:
        layout.fragment()
    foreign = [
        (lane, k)
        for lane, rows in enumerate(layout.rows)
        for k, row in enumerate(rows)
        if not row.is_step or k >= before[lane] or k < layout.oldest[lane]
    ]
    assert {0 <= k < layout.oldest[lane] for lane, k in foreign} == {True, False}
    assert sampler.update(*np.array(foreign).T, np.full(len(foreign), 1e6)) == 0
    assert sampler.late_updates == len(foreign)
    assert sampler.total == total
    assert sampler._table.largest == 1.0


def test_row_of_priority_zero_is_never_drawn_and_all_of_them_are_an_error(layout):
    sampler = PrioritizedSampler(layout.reader, rng=np.random.default_rng(0), n_steps=1, batch_size=512)
    sampler.draw()
    drawable = np.array(sorted(layout.drawable()))
    sampler.update(*drawable[1::2].T, np.zeros(len(drawable[1::2])))
    for _ in range(8):
        sampler.draw()  # planned before
    zero = set(map(tuple, drawable[1::2].tolist()))
    for _ in range(20):
        windows = sampler.draw()
        assert not zero & set(zip(windows.lane.tolist(), windows.generation.tolist(), strict=True))
    sampler.update(*drawable.T, np.zeros(len(drawable)))
    for _ in range(-(sampler.drawn_rows // 512) % 8):
        sampler.draw()  # planned before
    with pytest.raises(ReplayError, match="priorities are all 0"):
        sampler.draw()


def test_priorities_of_foreign_lanes_and_shapes_are_refused(layout):
    sampler = PrioritizedSampler(layout.reader, rng=np.random.default_rng(0), **WINDOWED, lanes=[1, 3])
    windows = sampler.draw()
    assert set(windows.lane.tolist()) == {1, 3}
    with pytest.raises(ReplayError, match=r"priorities of lanes \[2\] came in, this sampler draws from \[1, 3\]"):
        sampler.update([2], [0], [1.0])
    with pytest.raises(ReplayError, match=r"must be \[m\] each"):
        sampler.update(windows.lane, windows.generation, np.ones((16, 1)))
    assert sampler.update([], [], []) == 0


@pytest.mark.parametrize(
    ("kind", "arguments", "message"),
    [
        (UniformSampler, {**WINDOWED, "n_steps": 8}, "windows of 8 steps cannot be drawn"),
        (UniformSampler, {**WINDOWED, "gather_threads": 0}, "gather_threads is 0"),
        (UniformSampler, {**WINDOWED, "lanes": [1, 1]}, "each may be named once"),
        (PrioritizedSampler, {**WINDOWED, "exponent": -0.1}, "priority exponent -0.1"),
        (PrioritizedSampler, {**WINDOWED, "importance_exponent": 1.1}, "importance_exponent 1.1"),
        (PrioritizedSampler, {**WINDOWED, "default_priority": "memory"}, r"scalar float columns \['first_priority'\]"),
        (SequenceSampler, {"length": 5, "burn_in": 3, "batch_size": 4}, r"sequences of 3 \+ 5 rows"),
        (SequenceSampler, {"length": 5, "period": 0, "batch_size": 4}, "period 0"),
        (SequenceSampler, {"length": 2, "batch_size": 4, "first_row_columns": ["observation"]}, "no extra columns"),
        (NewestFirstSampler, {**WINDOWED, "half_life_rows": 0.0}, "half_life_rows is 0.0"),
        (TrajectoryWeightedSampler, {**WINDOWED, "temperature": 0.0, "by_length": False}, "temperature is 0.0"),
    ],
)
def test_what_cannot_be_drawn_is_refused_at_once(layout, kind, arguments, message):
    with pytest.raises(ReplayError, match=message):
        kind(layout.reader, rng=np.random.default_rng(0), **arguments)


def test_slabs_that_do_not_fit_are_refused(layout):
    with pytest.raises(ReplayError, match=r"allowed are 1 to 4 lanes and 1 to \d+ rows"):
        FifoSampler(layout.reader, rows=layout.slots // 2 + 1, batch_lanes=1)
    sampler = FifoSampler(layout.reader, rows=4, batch_lanes=4)
    while sampler.ready:
        sampler.draw()
    with pytest.raises(ReplayError, match="draw when `ready` says so"):
        sampler.draw()


@pytest.mark.parametrize("kind", [name for name in MAKERS if name != "fifo"])
def test_nothing_can_be_drawn_from_an_empty_ring(layouts, ring_path, kind):
    layout = layouts.Layout(ring_path, np.random.default_rng(3), "next_step", end=0.2)
    sampler = MAKERS[kind](layout.reader, np.random.default_rng(1))
    assert sampler.readable_rows == 0
    with pytest.raises(ReplayError, match=r"no committed rows in lanes|no trajectory in lanes"):
        sampler.draw()
    layout.close()


def test_gather_threads_copy_what_one_thread_copies_and_hand_errors_on():
    rng = np.random.default_rng(0)
    source = rng.integers(0, 255, (5_000, 700)).astype(np.uint8)
    threads = GatherThreads(3)
    for count in (1, 2, 7, 1_001):
        index = rng.integers(0, 5_000, count)
        out = np.zeros((count, 700), np.uint8)
        threads.take([(source, index, out)])
        assert np.array_equal(out, source[index])
    with pytest.raises(ValueError, match="output array does not match"):
        threads.take([(source, np.arange(2_000), np.zeros((2_000, 699), np.uint8))])
    index = np.arange(2_000)
    out = np.zeros((2_000, 700), np.uint8)
    threads.take([(source, index, out)])  # they live on after an error
    assert np.array_equal(out, source[index])
    threads.close()
    threads.close()
    threads.take([(source, index[::-1].copy(), out)])
    assert np.array_equal(out, source[index[::-1]])


def test_priorities_and_another_way_to_choose_are_refused_together(layout):
    both = WindowDraws(n_steps=1, batch_size=4, priorities=PrioritySettings(), sampling=NewestFirstSettings())
    with pytest.raises(ReplayError, match="leave one of them out"):
        make_sampler(layout.reader, both, np.random.default_rng(0))


def test_where_no_start_is_held_nothing_is_said_of_priorities():
    with pytest.raises(ReplayError, match="none is held; draw after more steps came in"):
        StartTable(1, 8, exponent=0.6, look_back=0).draw(1, np.random.default_rng(0))


@pytest.mark.parametrize("name", [name for name in MAKERS if name != "fifo"])
@pytest.mark.parametrize("rng", [0, None, np.random.RandomState(0)])
def test_what_is_no_generator_is_refused_when_the_sampler_is_made(layout, name, rng):
    with pytest.raises(TypeError, match=r"np\.random\.default_rng\(SEED\)"):
        MAKERS[name](layout.reader, rng)
