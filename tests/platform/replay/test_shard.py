"""Leases, exactly-once insertion, captions and counters of the shard."""

from __future__ import annotations

import dataclasses
import errno
import os

import numpy as np
import pytest

from onibi.platform.annotation.captions import text_hash
from onibi.platform.errors import CaptionError, LeaseError, ReplayError
from onibi.platform.fragment import CaptionText, EpisodeStatistics, Fragment, KeyText
from onibi.platform.replay.limiter import DrawnWord, Limiter
from onibi.platform.replay.ring.file import drawn_path
from onibi.platform.replay.ring.reader import RingReader
from onibi.platform.replay.samplers.uniform_sampler import UniformSampler
from onibi.platform.replay.shard import Shard

ENVS, STEPS = 2, 4


class Captions:
    """The run's caption table, as far as a shard sees it."""

    def __init__(self):
        self.ids, self.calls = {}, []

    def __call__(self, captions):
        self.calls.append([caption.text for caption in captions])
        return np.array([self.ids.setdefault(caption.text, len(self.ids) + 1) for caption in captions], np.uint32)


class Actor:
    """Makes fragments of endless episodes; its rows' rewards count up from 1."""

    def __init__(self, rows, lease):
        self.rows, self.lease, self.sequence, self.step = rows, lease, 0, 0

    def fragment(self, texts=(), new=(), steps=STEPS):
        lanes, heads = [], []
        for lane in range(self.lease.lanes):
            number = (self.lease.actor * 10 + lane) * 1_000 + self.step
            made = [self.rows.blank_row(number + k, lane, self.step + k) for k in range(steps)]
            lanes.append([row | {"reward": self.step + k + 1} for k, row in enumerate(made)])
            heads.append(self.rows.blank_row(number + steps, lane, self.step + steps))
        columns = self.rows.fragment_columns(lanes, heads)
        del columns["caption_id"]
        columns["caption_hash"] = np.full(
            (self.lease.lanes, steps + 1), 99, np.uint64
        )  # garbage at the head is ignored
        columns["caption_hash"][:, :steps] = 0
        for place, text in enumerate(texts):
            columns["caption_hash"][place % self.lease.lanes, place % steps] = text_hash(text)
        made = Fragment(
            actor=self.lease.actor,
            incarnation=self.lease.incarnation,
            sequence=self.sequence,
            rows_per_lane=np.full(self.lease.lanes, steps, np.int32),
            columns=columns,
            new_captions=[CaptionText(text, (KeyText(text),)) for text in new],
            episodes=[
                EpisodeStatistics(lane=0, episode_id=self.sequence, episode_return=1.0, length=3, terminated=True)
            ],
        )
        self.sequence += 1
        self.step += steps
        return made


LIMITER = Limiter(ratio=2.0, minimum_rows=16, tolerance_rows=40)


@pytest.fixture
def captions():
    return Captions()


@pytest.fixture
def shard(rows, ring_path, captions):
    shard = Shard.create(
        ring_path,
        rows.SPEC,
        max_actors=2,
        envs_per_actor=ENVS,
        capacity_rows=400,
        window_rows=3,
        run_id="run",
        limiter=LIMITER,
        resolve=captions,
    )
    yield shard
    shard.close()


def test_captions_reach_the_rows_and_unknown_ones_are_resolved_in_one_call(rows, shard, captions):
    actor = Actor(rows, shard.register(1, ENVS))
    result = shard.insert(actor.fragment(["a", "b", "a"], new=["a", "b"]))  # lane 0 row 0, lane 1 row 1, lane 0 row 2
    sighted, times = result.sightings()
    assert dict(zip(sighted.tolist(), times.tolist(), strict=True)) == {captions.ids["a"]: 2, captions.ids["b"]: 1}
    shard.insert(actor.fragment(["b", "c"], new=["c"]))
    shard.insert(actor.fragment(["c", "a"]))
    assert captions.calls == [sorted("ab", key=text_hash), ["c"]]
    reader = RingReader(shard.path)
    ids = reader.columns["caption_id"].reshape(reader.lanes, reader.slots)[2:4, : 3 * STEPS]
    expected = np.zeros((2, 3 * STEPS), int)
    for lane, row, text in [(0, 0, "a"), (1, 1, "b"), (0, 2, "a"), (0, 4, "b"), (1, 5, "c"), (0, 8, "c"), (1, 9, "a")]:
        expected[lane, row] = captions.ids[text]
    assert ids.tolist() == expected.tolist()
    assert shard.counters().captions == 3


def test_hash_without_a_text_is_refused_and_nothing_written(rows, shard):
    actor = Actor(rows, shard.register(0, ENVS))
    with pytest.raises(CaptionError, match="1 caption hashes without a text"):
        shard.insert(actor.fragment(["never sent"]))
    counters = shard.counters()
    assert (counters.inserted_rows, counters.refused, counters.fragments) == (0, 1, 0)


def test_repeated_fragment_is_acknowledged_and_neither_rows_nor_episodes_doubled(rows, shard):
    actor = Actor(rows, shard.register(0, ENVS))
    first = actor.fragment()
    results = [shard.insert(first), shard.insert(first)]
    assert [result.repeated for result in results] == [False, True]
    counters = shard.counters()
    assert (counters.inserted_rows, counters.repeated, counters.fragments) == (ENVS * STEPS, 1, 1)
    assert [episode.episode_id for episode in shard.take_episodes()] == [0]
    assert shard.take_episodes() == []


def test_fragments_of_other_incarnations_are_refused_older_and_newer_alike(rows, shard):
    unregistered = Actor(rows, shard.register(0, ENVS)).fragment()
    old = Actor(rows, shard.register(0, ENVS))
    new = Actor(rows, shard.register(0, ENVS))
    for incarnation in (old.lease.incarnation, unregistered.incarnation, new.lease.incarnation + 1):
        fragment = new.fragment()
        fragment.incarnation = incarnation
        with pytest.raises(LeaseError, match=f"incarnation {new.lease.incarnation}, the fragment has {incarnation}"):
            shard.insert(fragment)
    other = Actor(rows, shard.register(0, ENVS)).fragment()
    other.actor = 1
    with pytest.raises(LeaseError, match=r"group 1 is registered with incarnation 0.* Call register first"):
        shard.insert(other)
    assert shard.counters().inserted_rows == 0
    assert shard.counters().refused == 4


def test_missing_fragment_cuts_the_episode_and_is_counted(rows, shard, caplog):
    actor = Actor(rows, shard.register(0, ENVS))
    shard.insert(actor.fragment())
    actor.fragment()  # lost
    shard.insert(actor.fragment())
    assert shard.counters().gaps == 1
    assert "fragments before it are missing" in caplog.text
    windows = UniformSampler(RingReader(shard.path), n_steps=3, batch_size=256, rng=np.random.default_rng(0)).draw()
    last = windows.generation == STEPS - 1  # the last step before the hole
    assert last.any()
    assert set(windows.steps[last].tolist()) == {1}
    assert STEPS not in windows.generation  # the old head, final now
    assert shard.counters().readable_rows == ENVS * (2 * STEPS + 1)
    assert shard.counters().inserted_rows == ENVS * 2 * STEPS


def test_lane_that_goes_on_from_another_observation_than_it_left_is_cut_alone(rows, shard):
    actor = Actor(rows, shard.register(0, ENVS))
    shard.insert(actor.fragment())
    fragment = actor.fragment()
    fragment.columns["observation.image"][1, 0] += 1
    shard.insert(fragment)
    assert shard.counters().foreign_heads == 1
    assert RingReader(shard.path).snapshot().cursor.tolist() == [2 * STEPS, 2 * STEPS + 1, 0, 0]


def test_rows_of_all_lanes_go_on_after_a_reopen_and_the_actor_keeps_its_lanes(rows, ring_path, shard, captions):
    actor = Actor(rows, shard.register(1, ENVS))
    shard.insert(actor.fragment(["a"], new=["a"]))
    committed = shard.committed()
    shard.close()
    again = Shard.reopen(ring_path, run_id="run", limiter=LIMITER, resolve=captions)
    assert again.committed() == committed == [0, 2]
    lease = again.register(1, ENVS)
    assert (lease.incarnation, lease.first_lane, lease.lanes, lease.next_sequence) == (2, ENVS, ENVS, 0)
    again.insert(Actor(rows, lease).fragment(["a"], new=["a"]))
    counters = again.counters()
    assert (counters.inserted_rows, counters.readable_rows) == (2 * ENVS * STEPS, ENVS * (2 * STEPS + 1))
    again.close()
    with pytest.raises(ReplayError, match="belongs to run 'run', not to 'other'"):
        Shard.reopen(ring_path, run_id="other", limiter=LIMITER, resolve=captions)


def test_limiter_holds_insertion_until_the_learner_has_drawn(rows, ring_path, shard):
    actor = Actor(rows, shard.register(0, ENVS))
    rows_each = ENVS * STEPS
    inserted = 0
    while shard.may_insert(rows_each):
        shard.insert(actor.fragment())
        inserted += rows_each
    assert 2 * (inserted - 16) <= 40 < 2 * (inserted + rows_each - 16)  # ratio 2, minimum 16, tolerance 40
    word = DrawnWord(drawn_path(ring_path), writable=True)
    word.value += rows_each * 2
    assert shard.may_insert(rows_each)
    assert shard.counters().drawn_rows == rows_each * 2


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda c: c.pop("reward"), r"columns missing \['reward'\]"),
        (lambda c: c.update(bonus=c["reward"]), r"unknown \['bonus'\]"),
        (lambda c: c.update(reward=c["reward"].astype(np.float64)), "column 'reward' is float64"),
        (lambda c: c.update(action=c["action"][:, :-1]), r"column 'action' is int64\[2, 4\], allowed is int64\[2, 5\]"),
        (lambda c: c.pop("caption_hash"), "no column 'caption_hash'"),
        (lambda c: c["terminated"].__setitem__((1, 2), 1), "lane 1, row 2 ends its episode, but row 3 is not final"),
    ],
)
def test_fragment_that_does_not_fit_is_refused_by_name_and_nothing_written(rows, shard, spoil, message):
    actor = Actor(rows, shard.register(0, ENVS))
    fragment = actor.fragment()
    spoil(fragment.columns)
    with pytest.raises(ReplayError, match=message):
        shard.insert(fragment)
    assert shard.counters().inserted_rows == 0
    assert not RingReader(shard.path).columns["reward"].any()


def test_episode_end_at_a_fragments_border_needs_its_final_row_in_the_next(rows, shard):
    actor = Actor(rows, shard.register(0, ENVS))
    fragment = actor.fragment()
    fragment.columns["truncated"][0, STEPS - 1] = 1
    shard.insert(fragment)
    with pytest.raises(ReplayError, match="lane 0 ended its episode with the last fragment's newest row"):
        shard.insert(actor.fragment())


def test_fragment_too_long_for_the_ring_is_refused_with_the_sum(rows, shard):
    actor = Actor(rows, shard.register(0, ENVS))
    shard.insert(actor.fragment(steps=21))  # 4 x (21 + 1 + 3) = 100 = 400 rows / 4 lanes
    with pytest.raises(ReplayError, match=r"4 x \(22 rows \+ 1 head row \+ 3 window rows\) = 104 slots per lane"):
        shard.insert(actor.fragment(steps=22))


def test_actor_or_environments_beyond_the_rings_room_are_refused(shard):
    with pytest.raises(ReplayError, match="group 2 does not exist, the ring has groups 0 to 1"):
        shard.register(2, ENVS)
    with pytest.raises(ReplayError, match="asks for 3 lanes, allowed are 1 to 2"):
        shard.register(0, 3)


def test_fragment_with_another_number_of_environments_than_registered_is_refused(rows, shard):
    actor = Actor(rows, shard.register(0, ENVS))
    actor.lease = dataclasses.replace(actor.lease, lanes=ENVS - 1)
    with pytest.raises(LeaseError, match="registered 2 environments, its fragment has 1"):
        shard.insert(actor.fragment())


def test_windows_longer_than_the_ring_was_made_for_are_refused(shard):
    with pytest.raises(ReplayError, match=r"windows of 4 steps cannot be drawn .*the ring was made for 1 to 3"):
        UniformSampler(RingReader(shard.path), n_steps=4, batch_size=1, rng=np.random.default_rng(0))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"role": np.full((ENVS, STEPS + 1), 9, np.uint8)}, r"row 0 has the role 9; allowed are 0 .* and 1"),
        ({"role": np.uint8(0)}, "column .* with at least 4"),
        ({"reward": [1.0]}, "column 'reward' is float64"),
        ({"action": [[0] * (STEPS + 1)] * ENVS}, "column 'action' is a list, allowed is a NumPy array"),
        (
            {"caption_hash": [[0] * (STEPS + 1)] * ENVS},
            r"'caption_hash' int64\[2, 5\].* allowed are NumPy arrays, uint64",
        ),
        ({"caption_hash": np.zeros(STEPS + 1, np.uint64)}, r"'caption_hash' uint64\[5\].* and one integer a lane"),
    ],
    ids=["unknown role", "no rows", "a list", "a list of that kind", "hashes in a list", "hashes without lanes"],
)
def test_columns_of_the_wrong_kind_are_refused_by_name(rows, shard, change, said):
    actor = Actor(rows, shard.register(0, ENVS))
    fragment = actor.fragment()
    fragment.columns.update(change)
    with pytest.raises(ReplayError, match=said):
        shard.insert(fragment)
    assert shard.counters().inserted_rows == 0
    reader = RingReader(shard.path)
    assert (reader._words["writing"] == reader._words["committed"]).all(), "nothing was begun"


def test_numbers_of_rows_that_are_no_integers_are_refused(rows, shard):
    fragment = Actor(rows, shard.register(0, ENVS)).fragment()
    fragment.columns["caption_hash"][:] = 0
    with pytest.raises(ReplayError, match="in integers"):
        shard.insert(dataclasses.replace(fragment, rows_per_lane=np.full(ENVS, STEPS + 0.5)))


def test_a_ring_of_no_actors_is_refused_by_name(rows, ring_path, captions):
    sizes = {"max_actors": 0, "envs_per_actor": ENVS, "capacity_rows": 400, "window_rows": 3}
    with pytest.raises(ReplayError, match="groups is 0, it must be at least 1"):
        Shard.create(ring_path, rows.SPEC, **sizes, run_id="run", limiter=LIMITER, resolve=captions)


@pytest.mark.parametrize("kept", [False, True], ids=["a new ring", "a ring with rows"])
def test_without_room_for_the_drawn_word_a_new_ring_is_removed_and_one_with_rows_stays(
    rows, ring_path, captions, monkeypatch, kept
):
    made = {"run_id": "run", "limiter": LIMITER, "resolve": captions}
    sizes = {"max_actors": 1, "envs_per_actor": ENVS, "capacity_rows": 400, "window_rows": 3}
    if kept:
        shard = Shard.create(ring_path, rows.SPEC, **sizes, **made)
        shard.insert(Actor(rows, shard.register(0, ENVS)).fragment())
        shard.close()
        drawn_path(ring_path).unlink()
    reserve = os.posix_fallocate

    def full(descriptor, offset, size):
        if size == DrawnWord._BYTES:
            raise OSError(errno.ENOSPC, "No space left on device")
        reserve(descriptor, offset, size)

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(ReplayError, match=r"too little shared memory .*\(No space left on device\).*drawn"):
        Shard.reopen(ring_path, **made) if kept else Shard.create(ring_path, rows.SPEC, **sizes, **made)
    assert list(ring_path.parent.iterdir()) == ([ring_path] if kept else [])
    monkeypatch.undo()
    again = Shard.reopen(ring_path, **made) if kept else Shard.create(ring_path, rows.SPEC, **sizes, **made)
    assert again.counters().readable_rows == (ENVS * STEPS if kept else 0)
    again.close()
