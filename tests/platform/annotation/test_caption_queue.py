from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from onibi.platform.annotation.caption_queue import CaptionQueue
from onibi.platform.errors import CaptionError


def queue(capacity=10, lease=5.0, attempts=3):
    return CaptionQueue(capacity_keys=capacity, lease_seconds=lease, max_attempts=attempts)


def test_the_newest_key_is_taken_first():
    waiting = queue()
    waiting.offer([1, 2, 3], now=0)
    assert waiting.take(2, now=0) == [3, 2]
    assert waiting.take(9, now=0) == [1]
    assert waiting.take(9, now=0) == []


def test_a_key_that_is_met_again_comes_to_the_front_and_waits_once():
    waiting = queue()
    waiting.offer([1, 2, 3], now=0)
    waiting.offer([1], now=1)
    assert waiting.take(9, now=1) == [1, 3, 2]


def test_a_key_in_flight_is_not_given_twice():
    waiting = queue()
    waiting.offer([1], now=0)
    waiting.take(1, now=0)
    waiting.offer([1], now=1)
    assert waiting.take(1, now=1) == []


def test_the_oldest_key_is_dropped_counted_and_may_come_back():
    waiting = queue(capacity=2)
    waiting.offer([1, 2, 3], now=0)
    assert (len(waiting), waiting.dropped) == (2, 1)
    assert waiting.take(9, now=0) == [3, 2]
    waiting.offer([1], now=1)
    assert waiting.take(9, now=1) == [1]


def test_a_lease_that_ends_brings_the_key_back():
    waiting = queue(lease=5)
    waiting.offer([1], now=0)
    waiting.take(1, now=0)
    assert waiting.expire(now=4.9) == []
    assert waiting.expire(now=5.0) == [1]
    assert (waiting.take(1, now=5), waiting.expired) == ([1], 1)


def test_an_ended_lease_is_no_attempt():
    waiting = queue(lease=1, attempts=1)
    for now in range(0, 20, 2):
        waiting.offer([1], now)
        assert waiting.take(1, now) == [1]
        waiting.expire(now + 1)
    assert waiting.parked == 0


def test_a_key_is_parked_after_its_last_invalid_reply():
    waiting = queue(attempts=3)
    waiting.offer([1], now=0)
    for attempt in range(3):
        assert (waiting.take(1, now=0), waiting.parked) == ([1], 0), attempt
        waiting.retry([1], now=0)
    waiting.offer([1], now=1)
    assert (waiting.take(1, now=1), waiting.parked, len(waiting)) == ([], 1, 0)
    assert waiting.oldest_age_seconds(now=9) == 0


def test_a_parked_key_is_asked_again_in_a_restored_queue():
    waiting = queue(attempts=1)
    waiting.offer([1, 2], now=0)
    waiting.take(1, now=0)
    waiting.retry([2], now=0)
    fresh = queue(attempts=1)
    fresh.restore(waiting.state())
    assert (fresh.parked, fresh.take(9, now=1)) == (0, [1])
    fresh.offer([2], now=2)
    assert fresh.take(9, now=2) == [2]


def test_a_late_label_frees_a_parked_key():
    waiting = queue(attempts=1)
    waiting.offer([1], now=0)
    waiting.take(1, now=0)
    waiting.retry([1], now=0)
    waiting.finish([1], now=0)
    assert waiting.parked == 0


def test_age_is_that_of_the_key_that_waits_longest_even_when_it_was_dropped():
    waiting = queue(capacity=1)
    waiting.offer([1], now=10)
    waiting.offer([2], now=20)  # drops 1, which is as unlabelled as before
    assert waiting.oldest_age_seconds(now=30) == 20
    waiting.finish([1], now=30)
    assert waiting.oldest_age_seconds(now=30) == 10
    waiting.finish([2], now=32)
    assert waiting.oldest_age_seconds(now=32) == 0
    assert list(waiting.delays_seconds) == [20, 12], "from first offer to label"


def test_only_first_labels_of_keys_that_waited_have_a_delay():
    waiting = queue()
    waiting.finish([3], now=5)  # of another run, before it was met here
    waiting.offer([1], now=5)
    waiting.take(1, now=6)
    waiting.finish([1], now=9)
    waiting.offer_further([1])
    waiting.take(1, now=20)
    waiting.finish([1], now=30)
    assert list(waiting.delays_seconds) == [4]


def test_a_restored_queue_asks_the_same_keys_and_those_in_flight_again():
    waiting = queue(attempts=2)
    waiting.offer([1, 2, 3, 4], now=0)
    waiting.take(1, now=1)  # 4 in flight
    waiting.take(1, now=1)
    waiting.retry([3], now=2)  # one invalid reply
    fresh = queue(attempts=2)
    fresh.restore(waiting.state())
    assert fresh.take(9, now=3) == [4, 3, 2, 1]
    fresh.retry([3], now=4)
    assert fresh.parked == 1


@pytest.mark.parametrize("wrong", [{"capacity": 0}, {"lease": 0.0}, {"attempts": 0}])
def test_a_queue_that_could_hold_nothing_is_refused(wrong):
    with pytest.raises(CaptionError):
        queue(**wrong)


class QueueAgainstSets(RuleBasedStateMachine):
    """Any order of calls: a key is in one place at a time, and none is lost but by overflow."""

    def __init__(self):
        super().__init__()
        self.queue = queue(capacity=4, lease=3, attempts=2)
        self.now = 0.0
        self.offered: set[int] = set()
        self.flying: set[int] = set()
        self.finished: set[int] = set()

    @rule(keys=st.lists(st.integers(0, 9), max_size=5))
    def offer(self, keys):
        before = self.queue.dropped
        self.queue.offer(keys, self.now)
        self.offered |= set(keys)
        self.finished -= set(keys)
        assert len(self.queue) <= 4
        assert self.queue.dropped - before <= len(keys)

    @rule(count=st.integers(0, 5))
    def take(self, count):
        taken = self.queue.take(count, self.now)
        assert not set(taken) & self.flying, "given twice"
        assert set(taken) <= self.offered - self.finished
        self.flying |= set(taken)

    @rule(keys=st.sets(st.integers(0, 9)))
    def finish(self, keys):
        self.queue.finish(keys, self.now)
        self.flying -= keys
        self.finished |= keys

    @rule(keys=st.sets(st.integers(0, 9)))
    def retry(self, keys):
        self.queue.retry(keys, self.now)
        self.flying -= keys

    @rule(seconds=st.integers(0, 4))
    def wait(self, seconds):
        self.now += seconds
        self.flying -= set(self.queue.expire(self.now))

    @invariant()
    def counts_agree(self):
        assert self.queue.in_flight == len(self.flying)
        assert self.queue.oldest_age_seconds(self.now) >= 0


QueueAgainstSets.TestCase.settings = settings(max_examples=50, stateful_step_count=30, deadline=None)
TestQueueAgainstSets = QueueAgainstSets.TestCase


def test_given_back_keys_wait_behind_what_was_met_since_newest_first():
    waiting = queue()
    waiting.offer(range(4), now=0.0)
    taken = waiting.take(4, now=1.0)
    assert taken == [3, 2, 1, 0]
    leases = {key: waiting.lease(key) for key in taken}
    waiting.offer([9], now=2.0)
    waiting.give_back({key: leases[key] for key in taken[1:]}, now=3.0)
    assert waiting.take(9, now=4.0) == [9, 2, 1, 0]
