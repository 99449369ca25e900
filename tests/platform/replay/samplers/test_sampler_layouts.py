"""Every sampler against walks along plain lists, over random episode layouts with gaps, deaths and laps."""

from __future__ import annotations

import numpy as np
import pytest

from onibi.platform.errors import ReplayError
from onibi.platform.replay.samplers.fifo_sampler import FifoSampler
from onibi.platform.replay.samplers.newest_first_sampler import NewestFirstSampler
from onibi.platform.replay.samplers.prioritized_sampler import PrioritizedSampler
from onibi.platform.replay.samplers.sequence_sampler import SequenceSampler
from onibi.platform.replay.samplers.sequences import Tail
from onibi.platform.replay.samplers.trajectory_sampler import TrajectoryWeightedSampler
from onibi.platform.replay.samplers.uniform_sampler import UniformSampler

BATCH = 6


def table_starts(sampler):
    """(lane, row) of the starts that a sampler with a table would draw from now."""
    sampler._take_in()
    leaf = np.flatnonzero(sampler._table._row >= 0)
    row = sampler._table._row[leaf]
    slots = sampler._reader.slots
    assert (leaf % slots == row % slots).all()
    return set(zip(sampler._lanes[leaf // slots].tolist(), row.tolist(), strict=True))


def check_windows(layout, windows, n):
    for index in range(len(windows.lane)):
        lane, start = int(windows.lane[index]), int(windows.generation[index])
        steps = layout.steps_from(lane, start, n)
        rows = [layout.row(lane, start + i) for i in range(steps)]
        assert windows.steps[index] == steps > 0
        assert windows.used[index].tolist() == [i < steps for i in range(n)]
        assert windows.reward[index].tolist() == [row.reward for row in rows] + [0.0] * (n - steps)
        assert windows.continues[index].tolist() == [float(not row.terminated) for row in rows] + [1.0] * (n - steps)
        assert windows.caption_id[index].tolist() == [row.number % 5 for row in rows] + [0] * (n - steps)
        assert windows.caption_count[index, :steps, 1].tolist() == [row.number % 11 for row in rows]
        assert not windows.caption_count[index, steps:].any()
        assert windows.action[index] == rows[0].number % 9
        assert windows.policy_version[index] == rows[0].number * 7
        assert windows.observation["observation"][index, 0] == rows[0].number
        assert windows.bootstrap_observation["observation"][index, 0] == layout.row(lane, start + steps).number
        assert windows.extra["memory"][index].tolist() == [rows[0].number] * 3


def check_sequences(layout, sequences, length, burn_in, begins):
    rows_in_all = length + burn_in
    for b in range(len(sequences.lane)):
        lane, start = int(sequences.lane[b]), int(sequences.generation[b])
        first = start - int(sequences.burn_in[b])
        assert first == max(start - burn_in, begins[lane].get(start, start - burn_in))
        steps = start - first + layout.steps_from(lane, start, length)
        assert layout.steps_from(lane, first, rows_in_all) >= steps == sequences.steps[b]
        rows = [layout.row(lane, first + t) for t in range(steps)]
        pad = rows_in_all - steps
        assert sequences.first_row[b] == first
        assert sequences.validity_mask[:, b].tolist() == [True] * steps + [False] * pad
        learned = [first + t >= start for t in range(steps)] + [False] * pad
        assert sequences.learning_mask[:, b].tolist() == learned
        assert sequences.reward[:, b].tolist() == [row.reward for row in rows] + [0.0] * pad
        assert sequences.continues[:, b].tolist() == [float(not row.terminated) for row in rows] + [1.0] * pad
        assert sequences.caption_id[:, b].tolist() == [row.number % 5 for row in rows] + [0] * pad
        assert sequences.action[:steps, b].tolist() == [row.number % 9 for row in rows]
        assert sequences.policy_version[:steps, b].tolist() == [row.number * 7 for row in rows]
        seen = [row.number for row in rows] + [layout.row(lane, first + steps).number] * (1 + pad)
        assert sequences.observation["observation"][:, b, 0].tolist() == seen
        assert sequences.extra["first_priority"][:steps, b].tolist() == [row.first_priority for row in rows]
        assert sequences.first_extra["memory"][b].tolist() == [rows[0].number] * 3


class Watch:
    """What samplers that take rows in at some moments can have seen: in each lane the rows since the last jump."""

    def __init__(self, layout):
        self.layout = layout
        self.taken, self.since = [0] * len(layout.lanes), [0] * len(layout.lanes)

    def look(self):
        for lane in self.layout.lanes:
            if self.layout.oldest[lane] > self.taken[lane]:
                self.since[lane] = self.layout.oldest[lane]
            self.taken[lane] = len(self.layout.rows[lane])

    def sequence_starts(self, length, burn_in, period, tail):
        """(lane, start), and the known begin of each start's piece."""
        starts, begins = set(), [{} for _ in self.layout.lanes]
        for lane in self.layout.lanes:
            since = self.since[lane]
            for begin, end, ended in self.layout.pieces(lane):
                known = since < begin or begin == since == 0
                anchor = begin if known else since
                for k in range(anchor, end):
                    first = max(begin, k - burn_in) if known else k - burn_in
                    aligned = (k - anchor) % period == 0
                    last_of_piece = ended and k == max(anchor, end - length)
                    right = aligned if tail is Tail.PAD else (aligned and k + length <= end) or last_of_piece
                    if right and first >= self.layout.oldest[lane]:
                        starts.add((lane, k))
                        if known:
                            begins[lane][k] = begin
        return starts, begins

    def stepped_starts(self, burn_in, period):
        """(lane, start) → first row, where starts are told by the step in the episode."""
        starts = {}
        for lane in self.layout.lanes:
            since = self.since[lane]
            for begin, end, _ in self.layout.pieces(lane):
                known = since < begin or begin == since == 0
                for k in range(begin if known else since, end):
                    first = max(begin, k - burn_in) if known else k - burn_in
                    if self.layout.row(lane, k).step % period == 0 and first >= self.layout.oldest[lane]:
                        starts[lane, k] = first
        return starts

    def trajectories(self):
        found = {}
        for lane in self.layout.lanes:
            since, rows = self.since[lane], self.layout.rows[lane]
            for begin, end, ended in self.layout.pieces(lane):
                known = since < begin or begin == since == 0
                finished = ended and end > begin and (rows[end - 1].terminated or rows[end - 1].truncated)
                whole = known and rows[begin].step == 0  # behind a lost fragment an episode's later part begins a piece
                if finished and whole and begin >= self.layout.oldest[lane]:
                    found[lane, begin, end] = sum(row.reward for row in rows[begin:end])
        return found


def check_fifo(layout, sampler, told, lost):
    """Draw while there is something: every row once, in order, or counted as lost."""
    slab = sampler.allocate()
    while sampler.ready:
        sampler.draw(slab)
        for b in range(len(slab.lane)):
            lane, begin = int(slab.lane[b]), int(slab.generation[b])
            width = slab.used.shape[1]
            reach = width + (begin + width < len(layout.rows[lane]) or layout.heads[lane] is not None)
            rows = [layout.row(lane, begin + t) for t in range(reach)]
            lost[0] += begin - told[lane]
            assert begin >= told[lane]
            first = begin == 0 or begin > told[lane] or not layout.row(lane, begin - 1).is_step
            told[lane] = begin + width
            assert slab.observation["observation"][b, : len(rows), 0].tolist() == [row.number for row in rows]
            rows = rows[:width]
            assert slab.used[b].tolist() == [row.is_step for row in rows]
            assert slab.reward[b].tolist() == [row.reward for row in rows]
            assert slab.terminated[b].tolist() == [row.terminated for row in rows]
            assert slab.begins[b].tolist() == [first] + [not row.is_step for row in rows[:-1]]
            assert slab.extra["first_priority"][b].tolist() == [row.first_priority for row in rows]
    assert sampler.lost_rows >= lost[0]  # what was lost since the last slab of a lane counts already
    assert sampler.drawn_rows + sampler.final_rows + sampler.lost_rows <= sum(map(len, layout.rows))


def check_layout(layouts, path, mode, seed):
    rng = np.random.default_rng(seed)
    layout = layouts.Layout(path, rng, mode, end=float(rng.choice([0.02, 0.15, 0.5])))
    watch, reader = Watch(layout), layout.reader

    def generator():
        return np.random.default_rng(seed)

    n = int(rng.integers(1, layouts.WINDOW + 1))
    length = int(rng.integers(1, layouts.WINDOW + 1))
    burn_in, period = int(rng.integers(0, layouts.WINDOW - length + 1)), int(rng.integers(1, 5))
    common = {"n_steps": n, "batch_size": BATCH}
    uniform = UniformSampler(reader, rng=generator(), **common, batches_ahead=2)
    newest = NewestFirstSampler(reader, rng=generator(), **common, half_life_rows=float(rng.integers(1, 50)))
    prioritized = PrioritizedSampler(reader, rng=generator(), **common, batches_ahead=2)
    trajectory = TrajectoryWeightedSampler(
        reader, rng=generator(), **common, temperature=0.5, by_length=False, batches_ahead=1
    )
    tail = (Tail.PAD, Tail.SHIFT)[seed // 3 % 2]
    sequence = SequenceSampler(
        reader,
        rng=generator(),
        batch_size=BATCH,
        length=length,
        burn_in=burn_in,
        period=period,
        tail=tail,
        first_row_columns=["memory"],
    )
    fifo = FifoSampler(reader, rows=int(rng.integers(2, 7)), batch_lanes=int(rng.integers(1, 5)))
    told, lost = [0] * len(layout.lanes), [0]
    for _ in range(int(rng.integers(1, 4))):
        for _ in range(int(rng.integers(1, 30))):
            layout.fragment()
        watch.look()
        drawable = layout.drawable()
        starts, begins = watch.sequence_starts(length, burn_in, period, tail)
        found = watch.trajectories()
        assert table_starts(prioritized) == drawable
        assert table_starts(sequence) == starts
        listed = trajectory.trajectories()
        mine = {
            (int(place), int(begin), int(end)): value
            for place, begin, end, value in zip(
                listed.place, listed.begin, listed.end, listed.episode_return, strict=True
            )
        }
        assert mine == pytest.approx(found)
        assert uniform.readable_rows == sum(len(r) - o for r, o in zip(layout.rows, layout.oldest, strict=True))
        if drawable:
            for sampler in (
                uniform,
                uniform,
                newest,
                prioritized,
                prioritized,
            ):  # twice: two batches are planned at once
                windows = sampler.draw()
                assert set(zip(windows.lane.tolist(), windows.generation.tolist(), strict=True)) <= drawable
                check_windows(layout, windows, n)
            applied = prioritized.update(windows.lane, windows.generation, rng.random(BATCH))
            assert applied == BATCH
        if starts:
            check_sequences(layout, sequence.draw(), length, burn_in, begins)
        if found:
            windows = trajectory.draw()
            check_windows(layout, windows, n)
            for lane, row in zip(windows.lane.tolist(), windows.generation.tolist(), strict=True):
                assert any(lane == at and begin <= row < end for at, begin, end in found)
        else:
            with pytest.raises(ReplayError, match="no trajectory in lanes"):
                trajectory.draw()
        check_fifo(layout, fifo, told, lost)
    layout.close()
    path.unlink()
    return layout


def test_every_sampler_does_what_a_walk_along_the_rows_does(layouts, ring_path, mode):
    laps = cuts = 0
    for seed in range(80):
        layout = check_layout(layouts, ring_path, mode, seed)
        laps += any(layout.oldest)
        cuts += any(
            row.number and not row.is_step and not (rows[k - 1].terminated or rows[k - 1].truncated)
            for rows in layout.rows
            for k, row in enumerate(rows)
        )
    assert laps > 10  # else the layouts show too little
    assert cuts > 10


@pytest.mark.slow
@pytest.mark.timeout(1_800)
def test_every_sampler_does_what_a_walk_along_the_rows_does_over_ten_thousand_layouts(layouts, ring_path, mode):
    for seed in range(3_500):
        check_layout(layouts, ring_path, mode, 1_000 + seed)


def check_states(layouts, path, mode, seed):
    """Starts and states of one layout. Returns: how many states were read that were kept, and that were not."""
    rng = np.random.default_rng(seed)
    state_period = int(rng.integers(1, 7))
    layout = layouts.Layout(
        path, rng, mode, end=float(rng.choice([0.02, 0.15, 0.5])), accidents=0.5, state_period=state_period
    )
    watch = Watch(layout)
    period = state_period * int(rng.integers(1, 3))
    burn_in = state_period * int(rng.integers(0, (layouts.WINDOW - 1) // state_period + 1))
    sampler = SequenceSampler(
        layout.reader,
        rng=np.random.default_rng(seed),
        batch_size=4 * BATCH,
        length=layouts.WINDOW - burn_in,
        burn_in=burn_in,
        period=period,
        first_row_columns=["state", "memory"],
    )
    found = [0, 0]
    for _ in range(int(rng.integers(1, 6))):
        for _ in range(int(rng.integers(1, 30))):
            layout.fragment()
        watch.look()
        starts = watch.stepped_starts(burn_in, period)
        assert table_starts(sampler) == set(starts)
        if not starts:
            continue
        sequences = sampler.draw()
        for b, (lane, start) in enumerate(zip(sequences.lane.tolist(), sequences.generation.tolist(), strict=True)):
            first = starts[lane, start]
            assert sequences.first_row[b] == first
            expected = layout.state(lane, first)
            assert sequences.first_extra["state"][b].tolist() == [expected, -expected]
            assert sequences.first_extra["memory"][b].tolist() == [layout.row(lane, first).number] * 3
            found[expected == 0] += 1
    layout.close()
    path.unlink()
    return found


def test_sequences_start_from_the_states_that_were_kept_of_their_first_rows(layouts, ring_path, mode):
    found = np.sum([check_states(layouts, ring_path, mode, seed) for seed in range(80)], axis=0)
    assert found.min() > 100  # else the layouts show too little
