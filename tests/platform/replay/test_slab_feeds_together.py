"""Several learners that draw each row once, in step, each from lanes of its own; without processes or torch."""

from __future__ import annotations

import numpy as np
import pytest

from onibi.platform.errors import ConfigError, ReplayError
from onibi.platform.fragment import Fragment
from onibi.platform.replay.feed import ReplayFeed
from onibi.platform.replay.limiter import Limiter, LimiterSettings
from onibi.platform.replay.prefetched_feed import PrefetchedFeed
from onibi.platform.replay.ring.reader import RingReader
from onibi.platform.replay.samplers.draws import SlabDraws
from onibi.platform.replay.shard import Shard
from onibi.platform.spec import ROLE_FINAL, ArraySpec, ReplaySpec

SPEC = ReplaySpec(observation=(ArraySpec(name="observation", dtype="float32"),), actions=2, keys_per_caption=1)
ACTORS, ENVS, STEPS, LEARNERS = 2, 4, 8, 2
LANES, SLOTS = ACTORS * ENVS, 400
RING = {
    "lanes": LANES,
    "lanes_per_actor": ENVS,
    "fragment_rows": ENVS * STEPS,
    "slots": SLOTS,
    "learners": LEARNERS,
}
DRAWS = SlabDraws(rows=8, batch_lanes=3)


class Store:
    """A shard of two actors. Episodes of lane l end every ``episode[l % ENVS]`` steps with a final row of its own,
    which no env step pays for: so a lane of short episodes fills faster. An observation is its row's number.
    """

    def __init__(self, folder, episode) -> None:
        self.path, self.episode = folder / "together.ring", np.array(episode)
        self.limiter = Limiter.for_slabs(LimiterSettings(samples_per_insert=1), DRAWS, **RING)
        self.shard = Shard.create(
            self.path,
            SPEC,
            max_actors=ACTORS,
            envs_per_actor=ENVS,
            capacity_rows=LANES * SLOTS,
            window_rows=DRAWS.window_rows,
            run_id="together",
            limiter=self.limiter,
            resolve=lambda captions: np.zeros(len(captions), np.uint32),
        )
        self.leases = [self.shard.register(actor, ENVS) for actor in range(ACTORS)]
        self.rows, self.steps = np.zeros((ACTORS, ENVS), int), [0] * ACTORS
        self.sequence = [0] * ACTORS

    def feed(self, learner, **changes) -> ReplayFeed:
        return ReplayFeed(
            RingReader(self.path),
            DRAWS,
            self.limiter,
            np.random.default_rng(learner),
            lanes=range(learner, LANES, LEARNERS),
            learner=learner,
            learners=LEARNERS,
            **changes,
        )

    def insert(self, actor) -> bool:
        if not self.shard.may_insert(ENVS * STEPS):
            return False
        room = 2 * STEPS
        columns = {c.name: np.zeros((ENVS, room + 1, *c.shape), c.dtype) for c in SPEC.columns}
        columns["caption_hash"] = columns.pop("caption_id").astype(np.uint64)
        count = np.zeros(ENVS, np.int32)
        for lane in range(ENVS):
            for step in range(self.steps[actor], self.steps[actor] + STEPS):
                count[lane] += 1
                if step % self.episode[lane] == self.episode[lane] - 1:
                    columns["role"][lane, count[lane]] = ROLE_FINAL
                    count[lane] += 1
            columns["observation"][lane, :] = self.rows[actor, lane] + np.arange(room + 1)
        lease = self.leases[actor]
        fragment = Fragment(actor, lease.incarnation, self.sequence[actor], count, columns, env_steps=ENVS * STEPS)
        self.shard.insert(fragment)
        self.rows[actor] += count
        self.steps[actor] += STEPS
        self.sequence[actor] += 1
        return True


@pytest.fixture
def make_store(tmp_path):
    stores = []

    def make(*episode):
        stores.append(Store(tmp_path, episode))
        return stores[-1]

    yield make
    for store in stores:
        store.shard.close()


def begin(feeds):
    common = feeds[0].common_begin()
    for feed in feeds:
        feed.begin_at(common)


def play(store, feeds, draws, *, leaves_out=True):
    """``draws`` draws of all learners together, as far as they come; the slabs of each."""
    rng, slabs, idle = np.random.default_rng(0), [[] for _ in feeds], 0
    while len(slabs[0]) < draws and idle < 200:
        may = [feed.may_draw() for feed in feeds]
        if all(may):
            for feed, drawn in zip(feeds, slabs, strict=True):
                slab = feed.draw()
                assert (slab.observation["observation"][:, 0] == slab.generation).all()
                drawn.append((slab.lane.copy(), slab.generation.copy()))
            idle = 0
            continue
        for feed, ready in zip(feeds, may, strict=True):
            if ready and leaves_out and feed.is_stuck():
                feed.leave_out()
        # Not every turn: so one may be the last that can draw for a while, and the actors may wait for long.
        idle = 0 if rng.random() < 0.5 and store.insert(int(rng.integers(ACTORS))) else idle + 1
        assert store.shard.counters().inserted_rows - feeds[0].drawn_rows <= store.limiter.tolerance_rows
    return slabs


def left_out(feeds):
    return [feed.figures()["replay/left_out_rows"] for feed in feeds]


def test_learners_whose_lanes_fill_alike_draw_every_row_of_them_once_and_leave_none_out(make_store):
    store = make_store(11, 11, 11, 11)
    feeds = [store.feed(learner) for learner in range(LEARNERS)]
    begin(feeds)
    slabs = play(store, feeds, 400)
    for learner, drawn in enumerate(slabs):
        assert len(drawn) == 400
        rows = {
            (lane, first + row)
            for lanes, firsts in drawn
            for lane, first in zip(lanes, firsts, strict=True)
            for row in range(8)
        }
        assert len(rows) == 400 * 3 * 8  # none twice
        assert {lane % LEARNERS for lane, _ in rows} == {learner}
        for lane in range(learner, LANES, LEARNERS):  # none missing
            numbers = sorted(row for at, row in rows if at == lane)
            assert numbers == list(range(len(numbers)))
    assert left_out(feeds) == [0, 0]
    for feed in feeds:
        feed.close()


def test_where_lanes_fill_unequally_the_learner_with_too_many_rows_leaves_slabs_out_and_all_go_on(make_store):
    store = make_store(2, 1000, 2, 1000)  # lanes 0, 2 … of the first learner: three rows for two env steps
    feeds = [store.feed(learner) for learner in range(LEARNERS)]
    begin(feeds)
    assert len(play(store, feeds, 300)[0]) == 300
    first, second = left_out(feeds)
    assert second == 0
    # An env step is 1.5 rows for the first, so of three slabs it has one more than the other.
    assert 0.4 < first / (300 * 3 * 8 * 2 / 3) < 0.6
    assert [feed.figures()["replay/lost_rows"] for feed in feeds] == [0, 0]
    for feed in feeds:
        feed.close()


def test_without_leaving_out_they_would_wait_for_ever(make_store):
    store = make_store(2, 1000, 2, 1000)
    feeds = [store.feed(learner) for learner in range(LEARNERS)]
    begin(feeds)
    assert len(play(store, feeds, 300, leaves_out=False)[0]) < 100
    assert [feed.may_draw() for feed in feeds] == [True, False]
    assert not any(store.insert(actor) for actor in range(ACTORS))
    for feed in feeds:
        feed.close()


def test_a_learner_that_waits_for_others_leaves_nothing_out_while_the_actors_may_insert(make_store):
    store = make_store(11, 11, 11, 11)
    feed = store.feed(0)
    feed.begin_at(feed.common_begin())
    while not feed.may_draw():
        store.insert(0)
    assert store.shard.may_insert(ENVS * STEPS)
    assert not any(feed.is_stuck() for _ in range(100))
    while store.insert(1):
        pass
    assert feed.is_stuck()
    feed.leave_out()
    assert [feed.is_stuck() for _ in range(20)] == [False] * 19 + [not store.shard.may_insert(ENVS * STEPS)]
    feed.close()


def test_learners_that_come_after_others_begin_at_common_rows_and_owe_nothing(make_store):
    store = make_store(11, 11, 11, 11)
    feeds = [store.feed(learner) for learner in range(LEARNERS)]
    begin(feeds)
    play(store, feeds, 20)
    for feed in feeds:
        feed.close()
    while store.insert(0) or store.insert(1):
        pass
    later = [store.feed(learner) for learner in range(LEARNERS)]
    common = later[0].common_begin()
    assert common[:-1].tolist() == store.rows.reshape(-1).tolist()
    assert store.insert(0) is False
    for feed in later:
        feed.begin_at(common)
    assert store.shard.counters().inserted_rows == later[0].drawn_rows == later[1].drawn_rows
    slabs = play(store, later, 20)
    assert [len(drawn) for drawn in slabs] == [20, 20]
    for drawn in slabs:
        lanes, firsts = drawn[0]
        assert (firsts >= common[lanes]).all()
    assert left_out(later) == [0, 0]
    for feed in later:
        feed.close()


def test_batches_drawn_ahead_are_left_out_as_well(make_store):
    store = make_store(11, 11, 11, 11)
    feed = store.feed(0, buffers=PrefetchedFeed.buffers_for(1))
    feed.begin_at(feed.common_begin())
    ahead = PrefetchedFeed(feed, 1)
    while not ahead.may_draw():
        store.insert(0)
    while store.insert(1):
        pass
    assert any(ahead.is_stuck() for _ in range(20))
    ahead.leave_out()
    assert ahead.figures()["replay/left_out_rows"] > 0
    ahead.close()


def test_a_learner_alone_begins_with_nobody(make_store):
    store = make_store(11, 11, 11, 11)
    feed = ReplayFeed(RingReader(store.path), DRAWS, store.limiter, np.random.default_rng(0))
    with pytest.raises(ReplayError, match="only several learners that draw slabs begin together"):
        feed.begin_at(feed.common_begin())
    assert "replay/left_out_rows" not in feed.figures()
    feed.close()


@pytest.mark.parametrize(
    ("changes", "draws", "message"),
    [
        # 8 lanes of up to 7 rows, 2 learners that each need 2 whole pieces and one row more, one fragment of 32.
        (
            {"tolerance_rows": 120.0},
            DRAWS,
            r"below 8 lanes x \(8 - 1\) \+ 2 learners x \(\(3 - 1\) x 8 \+ 1\) - 1 \+ 32 .* = 121",
        ),
        (
            {},
            SlabDraws(rows=8, batch_lanes=5),
            "learner.batch_lanes is 5: each of 2 learners draws so many lanes at once, the run has 8",
        ),
    ],
)
def test_limiters_that_do_not_fit_several_on_policy_learners_are_refused_with_the_sum(changes, draws, message):
    with pytest.raises(ConfigError, match=message):
        Limiter.for_slabs(LimiterSettings(samples_per_insert=1.0, **changes), draws, **RING)
