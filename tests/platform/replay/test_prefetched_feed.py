"""Batches drawn ahead by a thread: the right rows, in arrays that stay while they are read, within the limiter."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest

from onibi.platform.errors import ReplayError
from onibi.platform.replay.feed import ReplayFeed
from onibi.platform.replay.limiter import DrawnWord, Limiter
from onibi.platform.replay.prefetched_feed import PrefetchedFeed
from onibi.platform.replay.ring.file import drawn_path
from onibi.platform.replay.ring.reader import RingReader
from onibi.platform.replay.ring.writer import RingWriter
from onibi.platform.replay.samplers.draws import PrioritySettings, WindowDraws
from onibi.platform.spec import ArraySpec, ReplaySpec

SPEC = ReplaySpec(observation=(ArraySpec(name="observation", dtype="float32", shape=(64,)),), actions=2)
LANES, ROWS, BATCH = 2, 200, 16
FREE = Limiter(ratio=1.0, minimum_rows=1, tolerance_rows=1e12)


class Store:
    """A ring of numbered rows: every observation holds its row's number, and 1,000 more for each lane."""

    def __init__(self, folder) -> None:
        self.path = folder / "prefetch.ring"
        writer = RingWriter.create(
            self.path, SPEC, groups=1, lanes_per_group=LANES, slots=1_024, window_rows=1, run_id="prefetch"
        )
        DrawnWord.create(drawn_path(self.path))
        columns = {column.name: np.zeros((LANES, ROWS + 1, *column.shape), column.dtype) for column in SPEC.columns}
        columns["observation"][:] = (np.arange(ROWS + 1) + 1_000 * np.arange(LANES)[:, None])[..., None]
        writer.insert(
            0,
            incarnation=writer.register(0),
            sequence=0,
            rows_per_lane=np.full(LANES, ROWS, np.int32),
            columns=columns,
        )
        writer.close()
        self.opened = []

    def feed(self, ahead, limiter=FREE, drawn=None, priorities=None) -> PrefetchedFeed:
        plain = ReplayFeed(
            RingReader(self.path),
            WindowDraws(n_steps=1, batch_size=BATCH, priorities=priorities),
            limiter,
            np.random.default_rng(0),
            buffers=PrefetchedFeed.buffers_for(ahead),
        )
        self.opened.append(PrefetchedFeed(plain, ahead, drawn))
        return self.opened[-1]


@pytest.fixture
def store(tmp_path):
    made = Store(tmp_path)
    yield made
    for feed in made.opened:
        feed.close()
    assert not [thread for thread in threading.enumerate() if thread.name == "onibi-prefetch"]


def taken(feed):
    """The next batch, waited for."""
    deadline = time.monotonic() + 20
    while not feed.may_draw():
        assert time.monotonic() < deadline, "nothing was drawn"
        time.sleep(1e-4)
    return feed.draw()


def until(what):
    deadline = time.monotonic() + 20
    while not what():
        assert time.monotonic() < deadline
        time.sleep(1e-3)


@pytest.mark.parametrize("ahead", [1, 3])
def test_a_batch_stays_as_it_was_drawn_until_two_more_were_taken(store, ahead):
    feed, before = store.feed(ahead), None
    for _ in range(300):
        windows = taken(feed)
        copy = windows.observation["observation"].copy()
        np.testing.assert_array_equal(copy, (windows.generation + 1_000 * windows.lane)[:, None].repeat(64, axis=1))
        until(lambda: feed.figures()["replay/batches_ahead"] == ahead)  # the thread has filled all that it may fill
        np.testing.assert_array_equal(windows.observation["observation"], copy)
        if before is not None:
            np.testing.assert_array_equal(*before)
        before = (windows.observation["observation"], copy)


def test_no_more_is_drawn_than_may_wait(store):
    feed = store.feed(2)
    taken(feed)
    until(lambda: feed.figures()["replay/batches_ahead"] == 2)
    time.sleep(0.02)
    assert feed.drawn_rows == 3 * BATCH


def test_the_limiter_holds_the_thread_back(store):
    allowed = 5 * BATCH
    feed = store.feed(3, Limiter(ratio=1e-9, minimum_rows=1, tolerance_rows=float(allowed) + 1))
    for _ in range(5):
        taken(feed)
    time.sleep(0.02)
    assert not feed.may_draw()
    assert feed.drawn_rows == allowed
    with pytest.raises(ReplayError, match="no batch has been drawn ahead"):
        feed.draw()


def rows_of(windows):
    return set(zip(windows.lane.tolist(), windows.generation.tolist(), strict=True))


@pytest.mark.parametrize("through_a_checkpoint", [False, True])
def test_priorities_reach_the_sampler_before_later_draws_and_before_a_checkpoint(store, through_a_checkpoint):
    feed = store.feed(1, priorities=PrioritySettings(exponent=1.0))
    first = taken(feed)
    loud = rows_of(first)
    feed.update_priorities(first, np.full(BATCH, 1e9))  # all other rows have 1
    if through_a_checkpoint:
        state, feed = feed.state(), store.feed(1, priorities=PrioritySettings(exponent=1.0))
        feed.restore(state)
    for _ in range(20):  # the sampler chooses some batches of starts at a time
        windows = taken(feed)
    assert rows_of(windows) <= loud


def test_a_priority_that_is_not_finite_is_told_by_a_later_look(store):
    feed = store.feed(1, priorities=PrioritySettings())
    windows = taken(feed)
    feed.update_priorities(windows, np.full(BATCH, np.nan))
    with pytest.raises(ReplayError, match="finite"):
        until(lambda: feed.may_draw() and not feed.draw())


def test_what_goes_wrong_in_the_thread_is_raised_where_batches_are_taken(store):
    def fail(_):
        raise OSError("the device is gone")

    feed = store.feed(1, drawn=fail)
    with pytest.raises(OSError, match="the device is gone"):
        taken(feed)


def test_every_batch_is_shown_to_whoever_copies_it_before_it_is_taken(store):
    shown = []
    feed = store.feed(2, drawn=lambda batch: shown.append(batch.generation.tolist()))
    for at in range(20):
        assert taken(feed).generation.tolist() == shown[at]


def test_a_restored_feed_drops_what_waits_and_goes_on_from_the_state(store):
    first = store.feed(1)
    state = first.state()
    drawn = [taken(first).generation.tolist() for _ in range(3)]
    second = store.feed(1)
    taken(second)
    second.restore(state)
    assert drawn[0] in [taken(second).generation.tolist() for _ in range(2)]


def test_too_few_buffers_are_refused(store):
    plain = ReplayFeed(
        RingReader(store.path), WindowDraws(n_steps=1, batch_size=BATCH), FREE, np.random.default_rng(0), buffers=3
    )
    with pytest.raises(ReplayError, match="2 batches ahead need 4 buffers, the feed has 3"):
        PrefetchedFeed(plain, 2)
    PrefetchedFeed(plain, 1).close()
