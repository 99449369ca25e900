"""Feeds of every kind of draws: priorities, sequences and slabs, and what of them goes through a checkpoint."""

from __future__ import annotations

import json
import logging
from dataclasses import replace

import numpy as np
import pytest

from onibi.platform.checkpoint import CheckpointParts, load_checkpoint, save_checkpoint
from onibi.platform.errors import ReplayError
from onibi.platform.fragment import Fragment, StateRows
from onibi.platform.replay.feed import ReplayFeed
from onibi.platform.replay.feed_state import FeedState
from onibi.platform.replay.limiter import Limiter, LimiterSettings
from onibi.platform.replay.ring.file import remove_ring
from onibi.platform.replay.ring.reader import RingReader
from onibi.platform.replay.ring.state_ring import is_kept
from onibi.platform.replay.samplers.draws import PrioritySettings, SequenceDraws, SlabDraws, WindowDraws
from onibi.platform.replay.samplers.newest_first_sampler import NewestFirstSettings
from onibi.platform.replay.samplers.trajectory_sampler import TrajectorySettings
from onibi.platform.replay.shard import Shard
from onibi.platform.spec import ROLE_FINAL, ArraySpec, ReplaySpec, StateSpec

SPEC = ReplaySpec(
    observation=(ArraySpec(name="observation", dtype="float32"),),
    actions=2,
    keys_per_caption=1,
    states=(StateSpec(name="recurrent_state", dtype="float32", shape=(3,), period=3),),
)
ACTORS, ENVS, STEPS, EPISODE = 2, 2, 8, 11
LANES, SLOTS = ACTORS * ENVS, 300
RING = {"lanes": LANES, "lanes_per_actor": ENVS, "fragment_rows": ENVS * STEPS, "slots": SLOTS}
PRIORITIES = PrioritySettings(exponent=0.6, importance_anneal_updates=10)
KINDS = {
    "uniform": WindowDraws(n_steps=3, batch_size=8),
    "prioritized": WindowDraws(n_steps=3, batch_size=8, priorities=PRIORITIES),
    "newest first": WindowDraws(n_steps=3, batch_size=8, sampling=NewestFirstSettings(half_life_rows=100)),
    "trajectory weighted": WindowDraws(n_steps=3, batch_size=8, sampling=TrajectorySettings(temperature=1.0)),
    "sequences": SequenceDraws(
        length=6, burn_in=3, period=3, batch_size=4, priorities=PRIORITIES, first_row_columns=("recurrent_state",)
    ),
    "slabs": SlabDraws(rows=8, batch_lanes=3),
}


class Store:
    """A shard whose actors play endless episodes of EPISODE steps and a final row; an observation is its row number."""

    def __init__(self, folder, draws) -> None:
        self.path = folder / "kinds.ring"
        self.draws = draws
        if isinstance(draws, SlabDraws):
            settings = LimiterSettings(samples_per_insert=1)
            self.limiter = Limiter.for_slabs(settings, draws, **RING)
        else:
            settings = LimiterSettings(samples_per_insert=4, minimum_rows=40)
            self.limiter = Limiter.from_settings(
                settings, fragment_rows=ENVS * STEPS, batch_rows=draws.batch_rows, capacity_rows=LANES * SLOTS
            )
        self.begin()

    def begin(self) -> None:
        """A ring of its own, the one of the last call is gone."""
        self.shard = Shard.create(
            self.path,
            SPEC,
            max_actors=ACTORS,
            envs_per_actor=ENVS,
            capacity_rows=LANES * SLOTS,
            window_rows=self.draws.window_rows,
            run_id="kinds",
            limiter=self.limiter,
            resolve=lambda captions: np.zeros(len(captions), np.uint32),
        )
        self.leases = [self.shard.register(actor, ENVS) for actor in range(ACTORS)]
        self.row, self.sequence = [0] * ACTORS, [0] * ACTORS

    def lose_ring(self) -> None:
        self.shard.close()
        remove_ring(self.path)

    def feed(self, seed: int = 1, **changes) -> ReplayFeed:
        return ReplayFeed(RingReader(self.path), self.draws, self.limiter, np.random.default_rng(seed), **changes)

    def fragment(self, actor: int) -> Fragment:
        row = self.row[actor] + np.arange(STEPS + 1)
        final = row % (EPISODE + 1) == EPISODE
        committed = np.arange(STEPS + 1) < STEPS
        columns = {c.name: np.zeros((ENVS, STEPS + 1, *c.shape), c.dtype) for c in SPEC.columns}
        columns["caption_hash"] = columns.pop("caption_id").astype(np.uint64)
        columns["step"][:] = row % (EPISODE + 1)
        columns["observation"][:] = row
        columns["role"][:] = np.where(final & committed, ROLE_FINAL, 0)
        columns["reward"][:] = np.where(~final & committed, row, 0)
        columns["terminated"][:] = (row % (EPISODE + 1) == EPISODE - 1) & committed
        steps = int((~final & committed).sum()) * ENVS
        lease = self.leases[actor]
        lane, kept = np.nonzero(is_kept(columns["step"][:, :STEPS], 3))
        states = StateRows(lane, kept, np.repeat(row[kept, None], 3, axis=1).astype(np.float32))
        rows = np.full(ENVS, STEPS, np.int32)
        sequence, told = self.sequence[actor], {"recurrent_state": states}
        return Fragment(actor, lease.incarnation, sequence, rows, columns, told, env_steps=steps)

    def insert(self, actor: int) -> bool:
        fragment = self.fragment(actor)
        if not self.shard.may_insert(fragment.env_steps):
            return False
        self.shard.insert(fragment)
        self.row[actor], self.sequence[actor] = self.row[actor] + STEPS, self.sequence[actor] + 1
        return True

    def fill(self, fragments: int = 12) -> None:
        """Rows of both actors, whatever the limiter says."""
        for _ in range(fragments):
            for actor in range(ACTORS):
                self.shard.insert(self.fragment(actor))
                self.row[actor], self.sequence[actor] = self.row[actor] + STEPS, self.sequence[actor] + 1


@pytest.fixture
def make_store(tmp_path):
    stores = []

    def make(kind):
        stores.append(Store(tmp_path, KINDS[kind] if isinstance(kind, str) else kind))
        return stores[-1]

    yield make
    for store in stores:
        store.shard.close()


def drawn(feed: ReplayFeed, batches: int) -> list:
    """Names of what is drawn, while a learner hands made-up priorities back."""
    names = []
    for _ in range(batches):
        batch = feed.draw()
        names.append((batch.lane.tolist(), batch.generation.tolist(), batch.reward.sum().item()))
        feed.update_priorities(batch, 1.0 + batch.generation % 7)
    return names


def through_a_checkpoint(folder, state: FeedState) -> FeedState:
    parts = CheckpointParts(tensors={"feed": state.arrays} if state.arrays else {}, state={"feed": dict(state.plain)})
    save_checkpoint(folder, 1, parts, keep_last=1)
    found = load_checkpoint(folder)
    return FeedState(plain=found.state["feed"], arrays=found.tensors.get("feed", {}))


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "slabs"])
def test_a_feed_goes_on_exactly_from_a_checkpoint(kind, make_store, tmp_path):
    store = make_store(kind)
    store.fill()
    feed = store.feed()
    drawn(feed, 5)
    state = through_a_checkpoint(tmp_path / "checkpoints", feed.state())
    json.dumps(state.plain)
    assert bool(state.arrays) == (kind in ("prioritized", "sequences"))
    expected = drawn(feed, 12)
    other = store.feed(seed=99)
    other.restore(state)
    assert drawn(other, 12) == expected
    assert other.figures() == feed.figures()
    for each in (feed, other):
        each.close()


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_a_feed_goes_on_in_a_new_ring_when_that_of_the_checkpoint_is_gone(kind, make_store, tmp_path, caplog):
    """Even where the new ring holds more rows than the old one: their numbers are the same, the rows are not."""
    store = make_store(kind)
    store.fill(8)
    feed = store.feed()
    drawn(feed, 5)
    state = through_a_checkpoint(tmp_path / "checkpoints", feed.state())
    feed.close()
    store.lose_ring()
    store.begin()
    store.fill(20)
    other = store.feed(seed=99)
    with caplog.at_level(logging.WARNING):
        other.restore(state)
    assert ("the ring of the checkpoint is gone" in caplog.text) == (kind in ("prioritized", "sequences"))
    other.rebase()
    readable = {(lane, row) for lane in range(LANES) for row in range(20 * STEPS) if row % (EPISODE + 1) != EPISODE}
    seen = set()
    for _ in range(250 if kind != "slabs" else 20):
        batch = other.draw()
        if kind == "slabs":
            reach = batch.generation[:, None] + np.arange(STEPS)
            names = {(lane, row) for lane, rows in zip(batch.lane, reach, strict=True) for row in rows}
            names = {name for name in names if name[1] % (EPISODE + 1) != EPISODE}
        else:
            names = set(zip(batch.lane.tolist(), batch.generation.tolist(), strict=True))
        assert names <= readable
        seen |= names
    if kind in ("uniform", "prioritized"):
        assert len(seen) > 0.8 * len(readable)
    elif kind == "sequences":  # a start every 3 rows of an episode of 11
        assert len(seen) > 0.8 * len(readable) * 4 / 11
    other.close()


def test_a_ring_without_any_row_yet_does_not_stop_a_restore(make_store, tmp_path):
    for kind in KINDS:
        store = make_store(kind)
        store.fill(8)
        feed = store.feed()
        drawn(feed, 3)
        state = feed.state()
        feed.close()
        store.lose_ring()
        store.begin()
        other = store.feed()
        other.restore(state)
        other.rebase()
        assert not other.may_draw()
        while not other.may_draw():
            assert sum(store.insert(actor) for actor in range(ACTORS))
        other.draw()
        other.close()
        store.lose_ring()


def test_other_draws_than_those_of_the_checkpoint_are_said_and_start_anew(make_store, caplog):
    store = make_store("sequences")
    store.fill()
    feed = store.feed()
    drawn(feed, 3)
    state = feed.state()
    for draws in (KINDS["prioritized"], replace(KINDS["sequences"], period=6)):
        store.draws = draws
        other = store.feed()
        caplog.clear()
        other.restore(state)
        assert "the checkpoint drew sequences of 3 + 6 rows every 3 (pad) by priority^0.6" in caplog.text
        drawn(other, 5)
        other.close()
    feed.close()


def test_priorities_handed_back_are_those_drawn_by_and_beta_follows_the_batches(make_store):
    store = make_store("prioritized")
    store.fill()
    feed = store.feed()
    chosen = None
    for batch_number in range(200):
        batch = feed.draw()
        # 0.4 at first, a tenth of the way to 1 with each batch, 1 from the tenth on.
        assert feed.figures()["replay/importance_exponent"] == pytest.approx(0.4 + 0.06 * min(batch_number, 10))
        if chosen is None:
            chosen = (int(batch.lane[0]), int(batch.generation[0]))
        names = list(zip(batch.lane.tolist(), batch.generation.tolist(), strict=True))
        priorities = np.array([1.0 if name == chosen else 1e-6 for name in names], np.float32)
        assert feed.update_priorities(batch, priorities) == 8
    share = np.mean([name == chosen for name in names])
    assert share > 0.3, "the one row of priority 1 among rows of all but 0"
    feed.close()


def test_without_priorities_none_are_applied(make_store):
    store = make_store("uniform")
    store.fill()
    feed = store.feed()
    assert feed.update_priorities(feed.draw(), np.ones(8)) == 0
    feed.close()


def test_late_priorities_are_a_metric(make_store):
    store = make_store("prioritized")
    store.fill()
    feed = store.feed(buffers=3)
    batch = feed.draw()
    store.fill(2 * SLOTS // STEPS)
    assert feed.update_priorities(batch, np.ones(8)) == 0
    assert feed.figures()["replay/late_priorities"] == 8
    assert feed.figures()["replay/overtaken_draws"] == 0
    feed.close()


def test_trajectories_are_drawn_from_when_one_has_finished_and_all_rows_before(make_store):
    """Else actors that wait for the learner, and a learner that waits for an episode's end, would wait for ever."""
    store = make_store("trajectory weighted")
    store.fill(1)
    feed = store.feed()
    early = [feed.draw().generation for _ in range(16)]  # planned at once
    assert set(np.concatenate(early).tolist()) == set(range(STEPS))
    store.fill(12)
    rows = set(np.concatenate([feed.draw().generation for _ in range(16)]).tolist())
    assert len(rows) > 2 * EPISODE
    ended = {row // (EPISODE + 1) for row in rows}
    newest = 13 * STEPS // (EPISODE + 1)
    assert max(ended) < newest, "the one that is being played has no return yet"
    feed.close()


def test_newer_rows_are_drawn_before_older_ones(make_store):
    store = make_store(replace(KINDS["newest first"], sampling=NewestFirstSettings(half_life_rows=10)))
    store.fill(12)
    feed = store.feed()
    newest = [int(feed.draw().generation.max()) for _ in range(20)]
    store.fill(12)
    assert min(feed.draw().generation.max() for _ in range(20)) > max(newest)
    feed.close()


def test_sequences_count_the_rows_that_are_learned_from_and_bring_the_state_of_their_first_row(make_store):
    store = make_store("sequences")
    store.fill()
    feed = store.feed()
    before = feed.drawn_rows
    batch = feed.draw()
    assert batch.reward.shape == (9, 4)
    assert feed.drawn_rows - before == batch.learning_mask.sum() <= KINDS["sequences"].batch_rows
    assert batch.first_extra["recurrent_state"].shape == (4, 3)
    state = np.where(batch.first_row % (EPISODE + 1) > 0, batch.first_row, 0)
    assert (batch.first_extra["recurrent_state"] == state[:, None]).all()
    assert state.any()
    feed.close()


@pytest.mark.parametrize("seed", range(6))
def test_actors_and_an_on_policy_learner_never_both_wait_and_no_row_is_lost_or_met_twice(seed, make_store):
    """Whatever the pace of the two actors: one of them may be silent for long."""
    rng = np.random.default_rng(seed)
    store = make_store("slabs")
    feed = store.feed()
    seen: set[tuple[int, int]] = set()
    favourite = 0.5
    for turn in range(1_200):
        if turn % 100 == 0:
            favourite = float(rng.choice([0.0, 0.1, 0.5, 1.0]))
        moved = store.insert(int(rng.random() < favourite))
        if rng.random() < 0.6 or not moved:
            while feed.may_draw():
                slab = feed.draw()
                moved = True
                for lane, begin in zip(slab.lane.tolist(), slab.generation.tolist(), strict=True):
                    rows = {(lane, begin + t) for t in range(8)}
                    assert not rows & seen
                    seen |= rows
                assert (slab.observation["observation"][:, 0] == slab.generation).all()
                assert (slab.begins[:, 0] == ((slab.generation % (EPISODE + 1)) == 0)).all()
        assert moved, "both would wait for ever"
        waiting = store.shard.counters().inserted_rows - feed.drawn_rows
        assert waiting <= store.limiter.tolerance_rows
    assert feed.figures()["replay/lost_rows"] == 0
    assert len(seen) > 2 * LANES * SLOTS
    rows = sum(row for row in store.row) * ENVS
    assert rows - len(seen) <= LANES * 7 + 2 * 8 + ENVS * STEPS + 2 * 8
    feed.close()


def test_a_learner_that_comes_after_another_begins_with_the_newest_rows(make_store):
    store = make_store("slabs")
    feed = store.feed()
    while store.insert(0) and store.insert(1):
        pass
    first = feed.draw()
    feed.close()
    other = store.feed()
    assert not other.may_draw()
    assert store.insert(0), "nobody waits for rows that are left out"
    while not other.may_draw():
        assert sum(store.insert(actor) for actor in range(ACTORS))
    slab = other.draw()
    assert slab.generation.min() >= first.generation.max() + 8
    assert slab.begins[:, 0].all()
    assert other.figures()["replay/lost_rows"] == 0
    other.close()


def test_rows_that_the_writer_overwrote_are_counted_and_hold_nobody_up(make_store, caplog):
    store = make_store("slabs")
    feed = store.feed()
    store.fill(2 * SLOTS // STEPS)
    assert feed.may_draw()
    feed.draw()
    assert feed.figures()["replay/lost_rows"] > 0
    assert "rows were overwritten before they were learned from" in caplog.text
    waiting = store.shard.counters().inserted_rows - feed.drawn_rows
    assert 0 <= waiting <= LANES * SLOTS // 2
    while feed.may_draw():
        feed.draw()
    assert store.insert(0)
    feed.close()


def test_priorities_that_are_none_are_an_error(make_store):
    store = make_store("prioritized")
    store.fill()
    feed = store.feed()
    with pytest.raises(ReplayError, match="Look for a loss that is not finite"):
        feed.update_priorities(feed.draw(), np.full(8, np.nan))
    feed.close()
