"""What episodes were paid before each row, against a walk along them under each table."""

from __future__ import annotations

import numpy as np
import pytest

from onibi.platform.replay.episode_pay import EpisodePay
from onibi.platform.rewards.table import LABELLED, UNLABELLED, RewardTable


def table(version, value):
    return RewardTable(
        version=version,
        caption_keys=np.array([[-1, -1], [0, -1], [1, 2], [2, 0], [3, -1]], np.int32),
        value=np.array(value, np.float32),
        labelled=np.array([LABELLED, LABELLED, LABELLED, UNLABELLED], np.uint8),
    )


def pay(row, told, power=1.0):
    """A row's reward by hand: the layout's captions are number % 5, its counts number % 3 and number % 11."""
    keys, counts = told.caption_keys[row.number % 5], (row.number % 3, row.number % 11)
    paid = [float(told.value[key]) / n**power for key, n in zip(keys, counts, strict=True) if key >= 0 and n]
    return max(paid, default=0.0) if row.is_step else 0.0


def walk(layout, told):
    """(lane, row) → what its episode piece was paid before it."""
    before = {}
    for lane in layout.lanes:
        total = 0.0
        for k, row in enumerate(layout.rows[lane]):
            before[lane, k] = total
            total = total + pay(row, told) if row.is_step else 0.0
    return before


def readable(layout):
    return [(lane, k) for lane in layout.lanes for k in range(layout.oldest[lane], len(layout.rows[lane]))]


def asked(episodes, told, places):
    lane, row = np.array(places).T
    return episodes.before(told, lane, row)


@pytest.mark.parametrize("seed", range(3))
def test_sums_before_rows_are_those_of_a_walk_and_a_new_table_pays_all_of_them_anew(layouts, ring_path, mode, seed):
    rng = np.random.default_rng(seed)
    layout = layouts.Layout(ring_path, rng, mode, end=0.1)
    episodes = EpisodePay(layout.reader, None, 1.0)
    first, second = table(1, [1.0, 0.5, 0.25, 0.0]), table(2, [0.0, 0.0, 1.0, 0.75])
    for told in (first, first, second):
        for _ in range(6):  # not a lap: all rows are there
            layout.fragment()
        places = readable(layout)
        expected = walk(layout, told)
        assert asked(episodes, told, places) == pytest.approx([expected[place] for place in places], abs=1e-5)
    assert asked(episodes, second, [(0, 10**6)]).tolist() == [0.0], "a row that nobody has seen"
    layout.close()


def test_a_capped_episode_is_paid_the_cap_and_no_more_whatever_is_drawn(layouts, ring_path, mode):
    layout = layouts.Layout(ring_path, np.random.default_rng(8), mode, end=0.05)
    for _ in range(8):
        layout.fragment()
    told, cap = table(1, [1.0, 1.0, 1.0, 1.0]), 1.25
    places = readable(layout)
    before = dict(zip(places, asked(EpisodePay(layout.reader, None, 1.0), told, places).tolist(), strict=True))
    reached = 0
    for lane in layout.lanes:
        for begin, end, _ in layout.pieces(lane):
            paid = [pay(row, told) for row in layout.rows[lane][begin:end]]
            capped = sum(min(each, max(0.0, cap - before[lane, begin + at])) for at, each in enumerate(paid))
            assert capped == pytest.approx(min(cap, sum(paid)), abs=1e-5)
            reached += sum(paid) > cap
    assert reached > 3
    layout.close()


def test_of_an_episode_whose_begin_is_gone_the_rest_goes_on_from_what_it_was_paid(layouts, ring_path):
    layout = layouts.Layout(ring_path, np.random.default_rng(4), "next_step", end=0.0, accidents=0.0)
    episodes = EpisodePay(layout.reader, None, 1.0)
    told, later = table(1, [1.0, 0.5, 0.25, 0.0]), table(2, [2.0, 1.0, 0.5, 0.0])
    while min(layout.oldest) < 10:  # one endless episode a lane, longer than the ring
        layout.fragment()
        asked(episodes, told, [(0, 0)])
    expected = walk(layout, told)
    places = readable(layout)
    assert asked(episodes, told, places) == pytest.approx([expected[place] for place in places], rel=1e-5)
    doubled = asked(episodes, later, places)
    for lane, k in places:
        oldest = len(layout.rows[lane]) - layout.slots  # it holds as many rows as a lane has slots
        kept = expected[lane, oldest]  # by the table of their time
        assert doubled[places.index((lane, k))] == pytest.approx(kept + 2 * (expected[lane, k] - kept), rel=1e-4)
    layout.close()
