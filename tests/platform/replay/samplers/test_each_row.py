"""Columns of every row of a window, rows in the order they came, and batches row by row: against plain walks."""

from __future__ import annotations

import numpy as np
import pytest

from onibi.platform.replay.draws_batch import from_record_batch, to_record_batch
from onibi.platform.replay.row_view import RowView
from onibi.platform.replay.samplers.fifo_sampler import FifoSampler
from onibi.platform.replay.samplers.prioritized_sampler import PrioritizedSampler
from onibi.platform.replay.samplers.sequence_sampler import SequenceSampler
from onibi.platform.replay.samplers.uniform_sampler import UniformSampler
from onibi.platform.replay.samplers.window_gather import EachRow
from onibi.platform.replay.transition_intake import TransitionIntake

EVERY = EachRow(extra=("first_priority",), observation=("observation",))


def check_view(layout, view):
    """Lane, row, columns and both observations of every used row."""
    seen = 0
    for at in zip(*np.nonzero(view.used), strict=True):
        lane, row = int(view.lane[at]), int(view.row[at])
        assert view.column("first_priority")[at] == layout.row(lane, row).first_priority
        assert view.before("observation")[at][0] == layout.row(lane, row).number
        assert view.after("observation")[at][0] == layout.row(lane, row + 1).number
        seen += 1
    assert seen == np.count_nonzero(view.used) > 0


@pytest.mark.parametrize("seed", range(4))
def test_every_row_of_a_batch_is_told_as_it_lies_in_the_ring(layouts, ring_path, mode, seed):
    rng = np.random.default_rng(seed)
    layout = layouts.Layout(ring_path, rng, mode, end=0.15)
    n = 1 + seed
    for _ in range(25):
        layout.fragment()
    common = {"n_steps": n, "batch_size": 16, "each_row": EVERY}
    for sampler in (
        UniformSampler(layout.reader, rng=rng, **common),
        PrioritizedSampler(layout.reader, rng=rng, **common),
    ):
        windows = sampler.draw()
        assert "first_priority" not in windows.extra
        assert "memory" in windows.extra
        assert windows.trail["observation"].shape == (16, n + 1, 2)
        check_view(layout, RowView(windows))
        assert (windows.trail["observation"][:, 0] == windows.observation["observation"]).all()
        last = windows.trail["observation"][np.arange(16), windows.steps]
        assert (last == windows.bootstrap_observation["observation"]).all()
        assert (windows.trail["observation"][:, -1] == last).all(), "behind the end the last one is repeated"
        sent = from_record_batch(to_record_batch(windows), 0)
        check_view(layout, RowView(sent))
    sequences = SequenceSampler(layout.reader, rng=rng, batch_size=6, length=4, burn_in=2, period=2)
    check_view(layout, RowView(sequences.draw()))
    check_view(layout, RowView(FifoSampler(layout.reader, rows=3, batch_lanes=2).draw()))
    layout.close()


def test_an_overtaken_window_is_drawn_again_with_all_of_its_rows(layouts, ring_path, mode):
    rng = np.random.default_rng(3)
    layout = layouts.Layout(ring_path, rng, mode, end=0.1, accidents=0.0)
    for _ in range(30):
        layout.fragment()
    sampler = UniformSampler(layout.reader, n_steps=3, batch_size=8, rng=rng, each_row=EVERY, batches_ahead=4)
    sampler.draw()
    for _ in range(60):  # more than a lap: what was planned ahead is gone
        layout.fragment()
    check_view(layout, RowView(sampler.draw()))
    assert sampler.overtaken > 0
    layout.close()


def test_each_new_row_is_told_once_with_what_followed(layouts, ring_path, mode):
    rng = np.random.default_rng(5)
    layout = layouts.Layout(ring_path, rng, mode, end=0.2)
    intake = TransitionIntake(layout.reader, lanes=None, leaves=["observation"], columns=["action"], follow=True)
    followers = {}
    told = []
    for _ in range(12):
        layout.fragment()
        for lane in layout.lanes:
            for k, row in enumerate(layout.rows[lane]):
                followers[row.number] = (
                    layout.row(lane, k + 1).number
                    if k + 1 < len(layout.rows[lane]) or (layout.heads[lane] is not None)
                    else None
                )
        while (rows := intake.take(least=3, most=5)) is not None:
            assert 3 <= len(rows) <= 5
            for k in range(len(rows)):
                number = int(rows.observation["observation"][k, 0])
                told.append(number)
                if rows.role[k] == 0:
                    assert rows.columns["action"][k] == number % 9
                    assert rows.next_observation["observation"][k, 0] == followers[number]
    while (rows := intake.take(least=1, most=100)) is not None:
        told += rows.observation["observation"][:, 0].tolist()
    everything = [row.number for lane in layout.lanes for row in layout.rows[lane]]
    assert sorted(told) == sorted(everything)
    assert intake.lost_rows == 0
    layout.close()


def test_rows_that_were_overwritten_before_they_were_told_are_counted(layouts, ring_path):
    layout = layouts.Layout(ring_path, np.random.default_rng(1), "next_step", end=0.1)
    for _ in range(80):
        layout.fragment()
    intake = TransitionIntake(layout.reader, lanes=None, leaves=["observation"])
    told = 0
    while (rows := intake.take(least=1, most=50)) is not None:
        told += len(rows)
    assert intake.lost_rows == sum(layout.oldest) > 0
    assert told + intake.lost_rows == sum(map(len, layout.rows))
    layout.close()


def test_an_intake_goes_on_where_its_state_stood_and_anew_in_another_ring(layouts, ring_path):
    layout = layouts.Layout(ring_path, np.random.default_rng(2), "same_step", end=0.1)
    layout.fragment()
    layout.fragment()
    intake = TransitionIntake(layout.reader, lanes=None, leaves=["observation"])
    first = intake.take(least=1, most=4)
    state = intake.state()
    rest = intake.take(least=1, most=1000).observation["observation"].tolist()
    again = TransitionIntake(layout.reader, lanes=None, leaves=["observation"])
    again.restore(state)
    assert again.take(least=1, most=1000).observation["observation"].tolist() == rest
    again.restore(state | {"ring": state["ring"] + 1})
    whole = again.take(least=1, most=1000).observation["observation"].tolist()
    assert len(whole) == len(rest) + len(first)
    layout.close()
