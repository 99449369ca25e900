"""The learner's feed: what the limiter allows and no more, and what the shard sees of it."""

from __future__ import annotations

import numpy as np
import pytest

from onibi.platform.annotation.captions import text_hash
from onibi.platform.fragment import CaptionText, Fragment, KeyText
from onibi.platform.replay.feed import ReplayFeed
from onibi.platform.replay.limiter import Limiter, LimiterSettings
from onibi.platform.replay.ring.reader import RingReader
from onibi.platform.replay.samplers.draws import WindowDraws
from onibi.platform.replay.shard import Shard
from onibi.platform.spec import ArraySpec, ReplaySpec

SPEC = ReplaySpec(observation=(ArraySpec(name="observation", dtype="float32"),), actions=2, keys_per_caption=1)
ENVS, BATCH, STEPS = 2, 8, 8
DRAWS = WindowDraws(n_steps=3, batch_size=BATCH)
SETTINGS = LimiterSettings(samples_per_insert=4.0, minimum_rows=40, tolerance_rows=None)


class Store:
    """A shard with one actor that plays endless episodes, and the learner's feed beside it."""

    def __init__(self, folder) -> None:
        self.limiter = Limiter.from_settings(
            SETTINGS, fragment_rows=ENVS * STEPS, batch_rows=BATCH, capacity_rows=4_000
        )
        self.shard = Shard.create(
            folder / "feed.ring",
            SPEC,
            max_actors=1,
            envs_per_actor=ENVS,
            capacity_rows=4_000,
            window_rows=3,
            run_id="feed",
            limiter=self.limiter,
            resolve=lambda captions: np.arange(1, len(captions) + 1, dtype=np.uint32),
        )
        self.lease = self.shard.register(0, ENVS)
        self.sequence = self.step = 0
        self.feed = self.open_feed()

    def open_feed(self, seed: int = 1) -> ReplayFeed:
        return ReplayFeed(RingReader(self.shard.path), DRAWS, self.limiter, np.random.default_rng(seed))

    @property
    def inserted(self) -> int:
        return self.shard.counters().inserted_rows

    def fragment(self, steps: int) -> Fragment:
        columns = {column.name: np.zeros((ENVS, steps + 1, *column.shape), column.dtype) for column in SPEC.columns}
        columns["caption_hash"] = columns.pop("caption_id").astype(np.uint64)
        columns["step"][:] = self.step + np.arange(steps + 1)
        columns["observation"][:] = self.step + np.arange(steps + 1) + 1_000 * np.arange(ENVS)[:, None]
        columns["reward"][:, :steps] = columns["observation"][:, :steps]
        return Fragment(
            0, self.lease.incarnation, self.sequence, np.full(ENVS, steps, np.int32), columns, env_steps=steps * ENVS
        )

    def insert(self, steps: int = STEPS, *, heed: bool = True) -> bool:
        if heed and not self.shard.may_insert(steps * ENVS):
            return False
        self.shard.insert(self.fragment(steps))
        self.sequence, self.step = self.sequence + 1, self.step + steps
        return True

    def close(self) -> None:
        self.feed.close()
        self.shard.close()


@pytest.fixture
def store(tmp_path):
    opened = Store(tmp_path)
    yield opened
    opened.close()


def test_nothing_is_drawn_below_the_minimum(store):
    store.insert()
    store.insert()
    assert store.inserted == 32
    assert not store.feed.may_draw()
    store.insert()
    assert store.feed.may_draw()


@pytest.mark.parametrize("seed", range(5))
def test_neither_side_ever_runs_past_its_allowance_and_they_never_both_wait(seed, store):
    rng = np.random.default_rng(seed)
    draws = 0
    for _ in range(1_500):
        if store.inserted > 3_000:
            break
        moved = store.insert(int(rng.integers(1, STEPS + 1))) if rng.random() < 0.5 else False
        for _ in range(int(rng.integers(0, 6))):
            if not store.feed.may_draw():
                break
            store.feed.draw()
            draws += 1
            moved = True
        surplus = store.limiter.surplus(store.inserted, store.feed.drawn_rows)
        if store.inserted >= SETTINGS.minimum_rows + ENVS * STEPS:
            assert abs(surplus) <= store.limiter.tolerance_rows
        if not moved:
            assert store.feed.may_draw() or store.shard.may_insert(STEPS * ENVS), "both would wait for ever"
    assert draws * BATCH == store.feed.drawn_rows == store.shard.counters().drawn_rows
    assert draws > 100


def test_the_allowance_ends_with_the_batch_that_would_pass_it(store):
    for _ in range(4):
        store.insert()
    drawn = 0
    while store.feed.may_draw():
        store.feed.draw()
        drawn += BATCH
    # 4 · (64 − 40) rows are due, and the tolerance may be drawn ahead: the next batch would pass it.
    allowed = 4 * (64 - 40) + store.limiter.tolerance_rows
    assert drawn <= allowed < drawn + BATCH


def test_what_was_handed_out_stays_until_the_buffers_have_come_round(store):
    for _ in range(6):
        store.insert()
    first = store.feed.draw()
    kept = first.reward.copy()
    second = store.feed.draw()
    assert np.array_equal(first.reward, kept)
    assert first.reward is not second.reward
    assert store.feed.draw().reward is first.reward


def test_windows_are_those_of_the_rows(store):
    for _ in range(6):
        store.insert()
    windows = store.feed.draw()
    assert windows.reward[:, 0].tolist() == windows.observation["observation"].tolist()
    steps = windows.steps
    assert (windows.bootstrap_observation["observation"] == windows.observation["observation"] + steps).all()


def test_a_restored_feed_draws_what_the_first_would_have_drawn(store):
    for _ in range(6):
        store.insert()
    store.feed.draw()
    state = store.feed.state()
    expected = [store.feed.draw().generation.copy() for _ in range(3)]
    drawn = store.feed.drawn_rows
    other = store.open_feed(seed=99)
    other.restore(state)
    assert [other.draw().generation.tolist() for _ in range(3)] == [each.tolist() for each in expected]
    assert other.drawn_rows == drawn + 3 * BATCH, "the drawn word is the store's, not the checkpoint's"
    other.close()


@pytest.mark.parametrize("drawn_before", [0, 10_000])
def test_rebasing_neither_bursts_nor_starves(drawn_before, store):
    """After a restore the learner may draw the tolerance, and from then on the ratio for each row that comes."""
    for _ in range(10):
        store.insert(heed=False)
    store.feed._drawn.value = drawn_before
    store.feed.rebase()
    assert store.limiter.surplus(store.inserted, store.feed.drawn_rows) == 0
    batches = 0
    while store.feed.may_draw():
        store.feed.draw()
        batches += 1
    assert batches == store.limiter.tolerance_rows // BATCH
    assert store.insert()
    more = 0
    while store.feed.may_draw():
        store.feed.draw()
        more += 1
    assert more == 4 * ENVS * STEPS // BATCH


def test_rebasing_an_empty_ring_owes_nothing_for_the_rows_that_fill_it_again(store):
    store.feed._drawn.value = 5_000
    store.feed.rebase()
    batches = 0
    while not store.feed.may_draw():
        assert store.insert(), "refilling waits for nobody"
    while store.feed.may_draw():
        store.feed.draw()
        batches += 1
    assert batches * BATCH <= store.limiter.tolerance_rows + 4 * ENVS * STEPS


def test_a_row_inserted_before_its_label_pays_after_the_table_arrives(store):
    """0.1 · 0.5 · ½ for a key heard twice: the ring keeps caption and count, the table comes later."""
    from onibi.platform.rewards.mixer import RewardMixer
    from onibi.platform.rewards.settings import INTRINSIC, RewardSettings
    from onibi.platform.rewards.table import LABELLED, UNLABELLED, RewardTable
    from onibi.platform.rewards.table_component import RetrievalSettings

    caption = CaptionText("You find a key.", (KeyText("You find a key."),))
    fragment = store.fragment(STEPS)
    fragment.new_captions = [caption]
    fragment.columns["caption_hash"][:, 5] = text_hash(caption.text)
    fragment.columns["caption_count"][:, 5] = 2
    store.shard.insert(fragment)
    store.sequence, store.step = 1, STEPS
    for _ in range(5):
        store.insert()

    keys = np.array([[-1], [0]], np.int32)
    unlabelled = RewardTable(1, keys, np.zeros(1, np.float32), np.array([UNLABELLED], np.uint8))
    labelled = RewardTable(2, keys, np.array([0.5], np.float32), np.array([LABELLED], np.uint8))
    mixer = RewardMixer(RewardSettings(intrinsic=RetrievalSettings(coefficient=0.1, count_power=1.0)))
    seen = 0
    for _ in range(30):
        windows = store.feed.draw()
        at_row_5 = (windows.generation[:, None] + np.arange(3)) == 5
        before, after = mixer.mix(windows, unlabelled), mixer.mix(windows, labelled)
        assert not before.components[INTRINSIC].any()
        assert after.components[INTRINSIC] == pytest.approx(np.where(at_row_5, 0.1 * 0.25, 0.0))
        assert after.total - before.total == pytest.approx(np.where(at_row_5, 0.1 * 0.25, 0.0), abs=1e-4)
        seen += int(at_row_5.sum())
    assert seen > 5
