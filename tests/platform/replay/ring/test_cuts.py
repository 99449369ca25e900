"""A commit cut off after each of its stores, and every kind of commit after it; lanes that come and go."""

from __future__ import annotations

import copy
import shutil

import numpy as np
import pytest

from onibi.platform.errors import LeaseError, ReplayError
from onibi.platform.replay.ring.reader import RingReader
from onibi.platform.replay.ring.writer import RingWriter
from onibi.platform.replay.samplers.uniform_sampler import UniformSampler

ENVS, STEPS, WINDOW = 2, 5, 2
SLOTS = 4 * (2 * STEPS + 1 + WINDOW)


class Cut(BaseException):
    """The process ends here."""


class CutWriter(RingWriter):
    """Ends after ``stores`` stores of its next commits; 0 is before the first."""

    stores = 0

    def _run(self, commit):
        steps = self._stores(commit)
        while self.stores:
            if next(steps, None) is None:
                return
            self.stores -= 1
        raise Cut


class DerivedOldest(RingWriter):
    """Derives `oldest` from the cursor alone: the mutant that forgets what an unfinished commit has overwritten."""

    def _plan(self, *arguments, **named):
        plan = super()._plan(*arguments, **named)
        object.__setattr__(plan, "oldest", np.maximum(plan.cursor + 1 - self.layout.slots, 0))
        return plan


class Story:
    """One ring that has been lapped, its model, and the fragment that comes next."""

    def __init__(self, rows, path):
        self.rows, self.path = rows, path
        rng = np.random.default_rng(0)
        self.lanes = [rows.Lane(rng, lane, True, 0.2) for lane in range(ENVS)]
        self.model = rows.RingModel(ENVS, SLOTS)
        writer = RingWriter.create(
            path, rows.SPEC, groups=1, lanes_per_group=ENVS, slots=SLOTS, window_rows=WINDOW, run_id="r"
        )
        self.incarnation, self.sequence = writer.register(0), 0
        for _ in range(20):
            self.commit(writer, *self.collect([STEPS] * ENVS))
        assert min(self.model.oldest) > 0
        writer.close()

    def copy(self):
        """The same story once more, in a file of its own."""
        twin = copy.copy(self)
        twin.path = self.path.with_name("copy.ring")
        shutil.copyfile(self.path, twin.path)
        twin.lanes, twin.model = copy.deepcopy((self.lanes, self.model))
        return twin

    def collect(self, steps):
        """Rows and heads of the first lanes, as many as there are step counts."""
        lanes = self.lanes[: len(steps)]
        made = [[row for _ in range(count) for row in lane.advance()] for lane, count in zip(lanes, steps, strict=True)]
        return made, [lane.head() for lane in lanes]

    def insert(self, writer, made, heads):
        return writer.insert(
            0,
            incarnation=self.incarnation,
            sequence=self.sequence,
            rows_per_lane=np.array([len(lane) for lane in made], np.int32),
            columns=self.rows.fragment_columns(made, heads),
        )

    def commit(self, writer, made, heads):
        outcome = self.insert(writer, made, heads)
        assert (outcome.repeated, outcome.gap, outcome.foreign_heads) == (False, False, 0)
        for lane in range(ENVS):
            self.model.add(lane, made[lane], heads[lane])
        self.sequence += 1

    def replace_actor(self, writer):
        self.incarnation, self.sequence = writer.register(0), 0
        for lane in range(ENVS):
            self.model.close(lane)
            self.lanes[lane].begin()

    def retire(self, writer):
        writer.retire(0)
        for lane in range(ENVS):
            self.model.close(lane)
            self.model.oldest[lane] = len(self.model.rows[lane])
            self.lanes[lane].begin()

    def check(self):
        reader = RingReader(self.path)
        self.rows.assert_ring_holds(reader, self.model)
        reader.close()


def store_count(story):
    """How many stores an insertion has, a registration, and the two commits of a retirement."""
    story = story.copy()
    names = []

    class Listing(RingWriter):
        def _run(self, commit):
            names.append(list(self._stores(commit)))

    writer = Listing.open(story.path, "r")
    story.insert(writer, *story.collect([STEPS] * ENVS))
    writer.retire(0)
    writer.close()
    return [len(stores) for stores in names]


RETRIES = {
    "the same fragment": lambda story, writer, made, heads: story.commit(writer, made, heads),
    "a ragged one by a new incarnation": lambda story, writer, made, heads: (
        story.replace_actor(writer),
        story.commit(writer, *story.collect([STEPS, 1])),
    ),
    "a shorter one by a new incarnation": lambda story, writer, made, heads: (
        story.replace_actor(writer),
        story.commit(writer, *story.collect([0, 1])),
    ),
    "nothing but a register": lambda story, writer, made, heads: story.replace_actor(writer),
    "a new actor after the group was retired": lambda story, writer, made, heads: (
        story.retire(writer),
        story.check(),
        story.replace_actor(writer),
    ),
    "two registers": lambda story, writer, made, heads: (story.replace_actor(writer), story.replace_actor(writer)),
}


def cut(story, fragment, stores):
    writer = CutWriter.open(story.path, "r")
    writer.stores = stores
    with pytest.raises(Cut):
        story.insert(writer, *fragment)
    writer.close()


@pytest.mark.parametrize("retry", RETRIES)
def test_ring_is_whole_after_a_cut_behind_any_store_and_after_what_comes_next(rows, ring_path, retry):
    base = Story(rows, ring_path)
    stores, *_ = store_count(base)
    assert stores > 20
    for cut_at in range(stores):  # the last store is the commit itself: behind it nothing can be cut off
        story = base.copy()
        fragment = story.collect([STEPS] * ENVS)
        cut(story, fragment, cut_at)
        story.check()
        writer = RingWriter.open(story.path, "r")
        RETRIES[retry](story, writer, *fragment)
        story.check()
        story.commit(writer, *story.collect([STEPS] * ENVS))
        story.check()
        writer.close()


def test_two_cuts_in_a_row_leave_the_committed_record_alone(rows, ring_path):
    base = Story(rows, ring_path)
    stores, *_ = store_count(base)
    for cut_at in range(stores):
        story = base.copy()
        fragment = story.collect([STEPS] * ENVS)
        cut(story, fragment, stores // 2)
        cut(story, fragment, cut_at)
        story.check()
        writer = RingWriter.open(story.path, "r")
        story.commit(writer, *fragment)
        story.check()
        writer.close()


def test_cut_behind_the_last_store_is_a_commit_and_its_retry_a_repeat(rows, ring_path):
    story = Story(rows, ring_path)
    stores, *_ = store_count(story)
    made, heads = story.collect([STEPS] * ENVS)
    cut(story, (made, heads), stores)
    writer = RingWriter.open(story.path, "r")
    assert story.insert(writer, made, heads).repeated
    for lane in range(ENVS):
        story.model.add(lane, made[lane], heads[lane])
    story.check()
    writer.close()


def test_registration_cut_behind_any_store_is_made_again_or_was_made(rows, ring_path):
    base = Story(rows, ring_path)
    _, stores, _ = store_count(base)
    for cut_at in range(stores):
        story = base.copy()
        writer = CutWriter.open(story.path, "r")
        writer.stores = cut_at
        with pytest.raises(Cut):
            writer.register(0)
        writer.close()
        story.check()
        writer = RingWriter.open(story.path, "r")
        story.commit(writer, *story.collect([STEPS] * ENVS))  # the old actor is still there
        story.check()
        story.replace_actor(writer)
        story.check()
        writer.close()


def test_deriving_oldest_from_the_cursor_shows_rows_that_a_cut_commit_overwrote(rows, ring_path):
    story = Story(rows, ring_path)
    stores, *_ = store_count(story)
    fragment = story.collect([STEPS] * ENVS)
    cut(story, fragment, stores - 1)
    writer = DerivedOldest.open(story.path, "r")
    story.replace_actor(writer)
    story.commit(writer, *story.collect([0, 1]))
    with pytest.raises(AssertionError):
        story.check()
    writer.close()


def bad_windows(story):
    """Drawn windows that are not those of the model, of many more draws than there are starts."""
    reader = RingReader(story.path)
    windows = UniformSampler(reader, n_steps=WINDOW, batch_size=300, rng=np.random.default_rng(0)).draw()
    reader.close()
    bad = 0
    for index in range(300):
        expected = story.model.window(int(windows.lane[index]), int(windows.generation[index]), WINDOW)
        same = windows.action[index] == expected["first"]["action"]
        for name in ("reward", "used", "caption_id", "caption_count"):
            same = same and np.array_equal(getattr(windows, name)[index], expected[name])
        image = windows.observation["observation.image"][index]
        bad += not (same and np.array_equal(image, expected["first"]["observation.image"]))
    return bad


@pytest.mark.parametrize(("mutant", "bad"), [(RingWriter, False), (DerivedOldest, True)])
def test_windows_drawn_after_a_cut_and_a_shorter_commit_are_bad_only_where_oldest_is_derived(
    rows, ring_path, mutant, bad
):
    story = Story(rows, ring_path)
    stores, *_ = store_count(story)
    cut(story, story.collect([STEPS] * ENVS), stores - 1)
    writer = mutant.open(story.path, "r")
    story.replace_actor(writer)
    story.commit(writer, *story.collect([0, 1]))
    assert (bad_windows(story) > 0) is bad
    writer.close()


AFTER_RETIREMENT = {
    "retired again": lambda story, writer, known: story.retire(writer),
    "taken by a new actor": lambda story, writer, known: None,
    "a fragment of the old actor": lambda story, writer, known: (
        story.commit(writer, *story.collect([0, STEPS])) if known else None
    ),
}


@pytest.mark.parametrize("after", AFTER_RETIREMENT)
def test_retirement_cut_behind_any_store_is_whole_before_and_after_what_comes_next(rows, ring_path, after):
    base = Story(rows, ring_path)
    _, first, second = store_count(base)
    for cut_at in range(first + second):
        story = base.copy()
        writer = CutWriter.open(story.path, "r")
        writer.stores = cut_at
        with pytest.raises(Cut):
            writer.retire(0)
        writer.close()
        known = cut_at < first  # the registration of nobody, which refuses the old actor, is not committed
        if not known:
            for lane in range(ENVS):
                story.model.close(lane)
                story.lanes[lane].begin()
        story.check()
        writer = RingWriter.open(story.path, "r")
        AFTER_RETIREMENT[after](story, writer, known)
        story.check()
        story.replace_actor(writer)
        story.commit(writer, *story.collect([STEPS] * ENVS))
        story.check()
        assert bad_windows(story) == 0
        writer.close()


def test_rows_of_a_retired_group_are_drawn_no_more_and_its_actor_is_refused(rows, ring_path):
    story = Story(rows, ring_path)
    writer = RingWriter.open(story.path, "r")
    assert not writer.is_free(0)
    old_cursor = [len(lane) for lane in story.model.rows]
    story.retire(writer)
    assert writer.is_free(0)
    story.check()
    reader = RingReader(story.path)
    assert reader.snapshot().readable_rows == 0
    with pytest.raises(ReplayError, match="no committed rows"):
        UniformSampler(reader, n_steps=1, batch_size=1, rng=np.random.default_rng(0)).draw()
    committed = writer.committed().tolist()
    for guess in (0, 1):  # its own incarnation, and that of nobody
        story.incarnation += guess
        with pytest.raises(LeaseError, match="The group was retired"):
            story.insert(writer, *story.collect([STEPS] * ENVS))
    writer.retire(0)
    assert writer.committed().tolist() == committed  # nothing to do
    story.replace_actor(writer)
    story.commit(writer, *story.collect([STEPS] * ENVS))
    story.check()
    assert bad_windows(story) == 0
    snapshot = reader.snapshot()
    assert snapshot.oldest.tolist() == [cursor + 1 for cursor in old_cursor]  # behind the heads, which became rows
    assert (snapshot.cursor > snapshot.oldest).all()
    writer.close()


def test_windows_chosen_before_a_retirement_are_redrawn_and_not_handed_out(rows, ring_path):
    writer = RingWriter.create(
        ring_path, rows.SPEC, groups=2, lanes_per_group=1, slots=64, window_rows=WINDOW, run_id="r"
    )
    rng = np.random.default_rng(0)
    lanes = [rows.Lane(rng, lane, True, 0.2) for lane in range(2)]
    for group in range(2):
        made = [row for _ in range(6) for row in lanes[group].advance()]
        writer.insert(
            group,
            incarnation=writer.register(group),
            sequence=0,
            rows_per_lane=np.array([len(made)], np.int32),
            columns=rows.fragment_columns([made], [lanes[group].head()]),
        )
    sampler = UniformSampler(
        RingReader(ring_path), n_steps=1, batch_size=50, rng=np.random.default_rng(0), batches_ahead=4
    )
    assert set(sampler.draw().lane.tolist()) == {0, 1}
    writer.retire(0)
    for _ in range(8):  # three of them were planned before
        assert set(sampler.draw().lane.tolist()) == {1}
    assert sampler.overtaken > 0
    writer.close()


def test_lanes_that_a_smaller_actor_leaves_are_released_and_its_other_lanes_stay(rows, ring_path):
    story = Story(rows, ring_path)
    writer = RingWriter.open(story.path, "r")
    story.replace_actor(writer)
    writer.release_lanes(0, first=1)
    story.model.oldest[1] = len(story.model.rows[1])
    story.check()
    made, heads = story.collect([STEPS])
    story.insert(writer, made, heads)
    story.model.add(0, made[0], heads[0])
    story.check()
    assert bad_windows(story) == 0
    committed = writer.committed().tolist()
    writer.release_lanes(0, first=1)
    assert writer.committed().tolist() == committed
    writer.close()


def test_release_closes_what_is_open_in_the_released_lanes_alone(rows, ring_path):
    story = Story(rows, ring_path)
    writer = RingWriter.open(story.path, "r")
    lease = writer.lease(0)
    writer.release_lanes(0, first=1)
    assert writer.lease(0) == lease  # the actor goes on
    story.model.close(1)
    story.model.oldest[1] = len(story.model.rows[1])
    story.check()
    assert RingReader(story.path).snapshot().open.tolist() == [True, False]
    writer.close()
