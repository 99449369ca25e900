"""A commit cut off after each of its stores, and every kind of commit after it."""

from __future__ import annotations

import copy
import shutil

import numpy as np
import pytest

from onibi.platform.replay.ring_reader import RingReader
from onibi.platform.replay.ring_writer import RingWriter

ENVS, STEPS, WINDOW = 2, 5, 2
SLOTS = 4 * (2 * STEPS + 1 + WINDOW)


class Cut(BaseException):
    """The process ends here."""


class CutWriter(RingWriter):
    """Ends after ``stores`` stores of its next commit; 0 is before the first."""

    stores = 0

    def _run(self, commit):
        steps = self._stores(commit)
        for _ in range(self.stores):
            if next(steps, None) is None:
                return
        raise Cut


class DerivedOldest(RingWriter):
    """Derives `oldest` from the cursor alone: the mutant that forgets what an unfinished commit has overwritten."""

    def _plan(self, *arguments):
        plan = super()._plan(*arguments)
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
        made = [
            [row for _ in range(count) for row in lane.advance()] for lane, count in zip(self.lanes, steps, strict=True)
        ]
        return made, [lane.head() for lane in self.lanes]

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

    def check(self):
        reader = RingReader(self.path)
        self.rows.assert_ring_holds(reader, self.model)
        reader.close()


def store_count(story):
    """How many stores an insertion has, and a registration."""
    story = story.copy()
    names = []

    class Listing(RingWriter):
        def _run(self, commit):
            names.append(list(self._stores(commit)))

    writer = Listing.open(story.path, "r")
    story.insert(writer, *story.collect([STEPS] * ENVS))
    writer.register(0)
    writer.close()
    return len(names[0]), len(names[1])


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
    stores, _ = store_count(base)
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
    stores, _ = store_count(base)
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
    stores, _ = store_count(story)
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
    _, stores = store_count(base)
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
    stores, _ = store_count(story)
    fragment = story.collect([STEPS] * ENVS)
    cut(story, fragment, stores - 1)
    writer = DerivedOldest.open(story.path, "r")
    story.replace_actor(writer)
    story.commit(writer, *story.collect([0, 1]))
    with pytest.raises(AssertionError):
        story.check()
    writer.close()
