"""Ages of rows by lane, and groups that are handed from actor to actor."""

from __future__ import annotations

import numpy as np
import pytest

from onibi.platform.errors import ReplayError
from onibi.platform.replay.ring.ages import RowClock, row_ages
from onibi.platform.replay.ring.groups import GroupPool
from onibi.platform.replay.ring.reader import RingReader
from onibi.platform.replay.ring.writer import RingWriter
from onibi.platform.spec import ROLE_FINAL

GROUPS, STEPS, SLOTS = 3, 5, 64


class Ring:
    """A ring of one lane per group whose rows tell the update that they are of."""

    def __init__(self, rows, path):
        self.rows = rows
        self.writer = RingWriter.create(
            path, rows.SPEC, groups=GROUPS, lanes_per_group=1, slots=SLOTS, window_rows=2, run_id="run"
        )
        self.reader = RingReader(path)
        self.next = [0] * GROUPS
        self.number = [0] * GROUPS
        self.incarnation = [0] * GROUPS

    def register(self, group):
        self.incarnation[group], self.next[group] = self.writer.register(group), 0

    def insert(self, group, update, final=False):
        first = self.number[group]
        made = [
            self.rows.blank_row(first + step, group, first + step) | {"policy_version": (1 << 40) + update}
            for step in range(STEPS)
        ]
        if final:
            made[-1] |= {"role": ROLE_FINAL, "policy_version": 0}
        self.number[group] = first + STEPS
        self.writer.insert(
            group,
            incarnation=self.incarnation[group],
            sequence=self.next[group],
            rows_per_lane=np.array([STEPS], np.int32),
            columns=self.rows.fragment_columns([made], [self.rows.blank_row(first + STEPS, group, first + STEPS)]),
        )
        self.next[group] += 1


@pytest.fixture
def ring(rows, ring_path):
    ring = Ring(rows, ring_path)
    yield ring
    ring.writer.close()


def test_lane_of_a_silent_actor_grows_old_and_the_others_do_not(ring):
    for group in (0, 1):
        ring.register(group)
    clock = RowClock()
    ring.insert(1, update=3)
    for second in range(100):
        ring.insert(0, update=second)
        ages = row_ages(ring.reader, clock, float(second), newest_update=second)
    assert ages.rows.tolist() == [SLOTS - 1, STEPS, 0]
    # Lane 0 holds the last 63 rows, 5 a second: the newest came in now, the oldest in the fragment 12 seconds ago.
    assert ages.seconds[0].tolist() == [0.0, 6.0, 11.0, 12.0]
    assert ages.updates[0, [0, 3]].tolist() == [0.0, 12.0]
    assert ages.seconds[1].tolist() == [99.0] * 4
    assert ages.updates[1].tolist() == [96.0] * 4
    assert np.isnan(ages.seconds[2]).all()
    metrics = ages.metrics()
    assert metrics["replay/lanes_with_rows"] == 2
    assert metrics["replay/row_age_oldest_seconds_worst_lane"] == 99.0
    assert metrics["replay/row_age_oldest_updates_worst_lane"] == 96.0


def test_final_rows_chose_nothing_and_have_no_policy_age(ring):
    ring.register(0)
    ring.insert(0, update=7, final=True)
    ages = row_ages(ring.reader, RowClock(), 0.0, newest_update=10)
    assert ages.updates[0].tolist() == [3.0] * 4


def test_clock_keeps_bounded_marks_and_forgets_none_of_the_old_times_altogether(ring):
    ring.register(0)
    clock = RowClock(marks=16)
    for second in range(1_000):
        if second < 2:
            ring.insert(0, update=0)
        clock.look(ring.reader.snapshot(), float(second))
    assert len(clock._times) <= 16
    ages = row_ages(ring.reader, clock, 1_000.0, newest_update=0)
    assert ages.seconds[0, 3] == 1_000.0  # the first look saw the first fragment
    assert 0 < ages.seconds[0, 0] < 1_000.0


def test_free_groups_are_given_first_and_a_silent_one_only_when_it_is_needed(ring, caplog):
    pool = GroupPool(ring.writer, lane_timeout_seconds=10.0, now=0.0)
    taken = [pool.take(0.0) for _ in range(GROUPS)]
    assert taken == [0, 1, 2]
    for group in taken:
        ring.register(group)
        ring.insert(group, update=0)
    for now, group in ((3.0, 0), (1.0, 1), (9.0, 2)):
        pool.heard(group, now)
    with pytest.raises(ReplayError, match=r"all 3 groups .*larger max_actors"):
        pool.take(10.0)
    assert pool.silent(14.0) == [1, 0]
    assert pool.take(14.0) == 1
    assert "group 1: nothing heard for 13 s" in caplog.text
    assert ring.reader.snapshot().cursor.tolist() == [STEPS, STEPS + 1, STEPS]
    assert row_ages(ring.reader, RowClock(), 0.0, 0).rows.tolist() == [STEPS, 0, STEPS]
    assert pool.take(14.0) == 0


def test_group_given_back_is_free_and_a_reopened_rings_groups_count_as_heard_of(ring, ring_path):
    for group in range(GROUPS):
        ring.register(group)
    pool = GroupPool(ring.writer, lane_timeout_seconds=10.0, now=50.0)
    assert pool.silent(60.0) == []
    pool.give_back(2)
    assert pool.take(51.0) == 2
    assert pool.silent(60.5) == [0, 1]


def test_ages_of_many_lanes_are_those_of_each_lane_by_itself(ring):
    clock, rng = RowClock(marks=8), np.random.default_rng(5)
    for group in range(GROUPS):
        ring.register(group)
    seen = []  # (moment, cursors)
    for second in range(40):
        for group in range(GROUPS):
            if rng.random() < (0.9, 0.5, 0.05)[group]:
                ring.insert(group, update=int(rng.integers(100)), final=rng.random() < 0.3)
        ages = row_ages(ring.reader, clock, float(second), newest_update=100)
        seen.append((float(second), ring.reader.snapshot().cursor))
        if len(seen) > 8:
            seen = [*seen[:-1][::2], seen[-1]]
        snapshot = ring.reader.snapshot()
        for lane in np.flatnonzero(snapshot.cursor):
            numbers = np.arange(snapshot.oldest[lane], snapshot.cursor[lane])
            told = numbers[np.round(np.array([1.0, 0.5, 0.1, 0.0]) * (len(numbers) - 1)).astype(int)]
            came = [next(moment for moment, cursor in seen if cursor[lane] > row) for row in told]
            np.testing.assert_array_equal(ages.seconds[lane], second - np.array(came))
            looked_at = numbers[np.round(np.linspace(0, 1, 64) * (len(numbers) - 1)).astype(int)]
            at = lane * SLOTS + looked_at % SLOTS
            steps = at[ring.reader.columns["role"][at] != ROLE_FINAL]
            updates = 100 - (ring.reader.columns["policy_version"][steps] - (1 << 40))
            np.testing.assert_allclose(ages.updates[lane], np.quantile(updates, [0.0, 0.5, 0.9, 1.0]), rtol=1e-12)
