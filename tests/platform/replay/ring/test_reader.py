"""A reader that stays and looks again: its snapshots and its end check beside those of one that comes fresh."""

from __future__ import annotations

import numpy as np
import pytest

from onibi.platform.errors import ReplayError
from onibi.platform.replay.ring.reader import RingReader, Snapshot
from onibi.platform.replay.ring.writer import RingWriter
from onibi.platform.replay.samplers.uniform_sampler import UniformSampler

LANES, STEPS, SLOTS = 2, 5, 52


def watched_writer(path, look):
    """A writer, opened, that calls ``look`` behind every store."""

    class Watched(RingWriter):
        def _run(self, commit):
            for _ in self._stores(commit):
                look()

    return Watched.open(path, "r")


@pytest.fixture
def ring(rows, ring_path):
    RingWriter.create(
        ring_path, rows.SPEC, groups=2, lanes_per_group=LANES, slots=SLOTS, window_rows=2, run_id="r"
    ).close()
    return ring_path


@pytest.fixture
def insert(rows):
    """(writer, group, incarnation, sequence, steps) → nothing: a fragment of rows that are as good as any."""
    lanes = [rows.Lane(np.random.default_rng(0), lane, True, 0.2) for lane in range(2 * LANES)]

    def make(writer, group, incarnation, sequence, steps=STEPS):
        its = lanes[group * LANES : (group + 1) * LANES]
        made = [[row for _ in range(steps) for row in lane.advance()] for lane in its]
        writer.insert(
            group,
            incarnation=incarnation,
            sequence=sequence,
            rows_per_lane=np.array([len(lane) for lane in made], np.int32),
            columns=rows.fragment_columns(made, [lane.head() for lane in its]),
        )

    return make


def fresh_snapshot(path):
    reader = RingReader(path)
    snapshot = reader.snapshot()
    reader.close()
    return snapshot


def assert_alike(found: Snapshot, expected: Snapshot):
    for name, array in vars(expected).items():
        np.testing.assert_array_equal(getattr(found, name), array, err_msg=name)


def test_a_reader_that_stays_sees_what_a_fresh_one_sees_behind_every_store(ring, insert):
    reader, seen = RingReader(ring), []

    def look():
        seen.append(reader.snapshot())
        assert_alike(seen[-1], fresh_snapshot(ring))

    writer = watched_writer(ring, look)
    incarnations = [writer.register(group) for group in range(2)]
    for sequence in range(2 * SLOTS // STEPS):  # laps the ring
        for group in range(2):
            insert(writer, group, incarnations[group], sequence)
    insert(writer, 1, writer.register(1), 0)
    writer.retire(0)
    writer.close()
    assert min(seen[-1].oldest) > 0
    assert len({id(snapshot) for snapshot in seen}) < len(seen)  # stores of columns alone change nothing


def test_what_a_cut_commit_and_its_retry_by_another_process_store_is_seen(ring, insert):
    """The retry has the same number: `writing` alone would not tell it from the commit that was cut."""
    reader = RingReader(ring)
    writer = RingWriter.open(ring, "r")
    incarnation = writer.register(0)
    for sequence in range(2 * SLOTS // STEPS):
        insert(writer, 0, incarnation, sequence)
    writer.close()

    class Stop(BaseException):
        pass

    stores = 0

    def stop():
        nonlocal stores
        stores += 1
        assert_alike(reader.snapshot(), fresh_snapshot(ring))
        if stores == cut_at:
            raise Stop

    for cut_at in range(1, 30):  # noqa: B007 - read by stop
        stores = 0
        cut = watched_writer(ring, stop)
        try:
            insert(cut, 0, incarnation, sequence + 1, steps=1)
        except Stop:
            pass
        else:
            break  # fewer stores than this
        finally:
            cut.close()
        retry = watched_writer(ring, lambda: assert_alike(reader.snapshot(), fresh_snapshot(ring)))
        sequence += 1
        insert(retry, 0, incarnation, sequence)  # longer than what was cut: it overwrites more
        retry.close()
    assert cut_at > 20


def test_snapshots_are_the_same_one_until_something_is_stored_and_nobody_can_write_to_them(ring, insert):
    reader, writer = RingReader(ring), RingWriter.open(ring, "r")
    insert(writer, 0, writer.register(0), 0)
    first = reader.snapshot()
    assert reader.snapshot() is first
    with pytest.raises(ValueError, match="read-only"):
        first.cursor[0] = 7
    insert(writer, 0, writer.register(0), 0)
    assert reader.snapshot() is not first
    assert reader.snapshot().inserted_rows > first.inserted_rows
    writer.close()


def test_rows_overwritten_between_plan_and_draw_are_drawn_again_though_words_stood_still_before(ring, insert):
    writer = RingWriter.open(ring, "r")
    incarnation, sequence = writer.register(0), 0

    def lap():
        nonlocal sequence
        for _ in range(2 * SLOTS // STEPS):
            insert(writer, 0, incarnation, sequence)
            sequence += 1

    lap()
    reader = RingReader(ring)
    sampler = UniformSampler(reader, n_steps=1, batch_size=16, rng=np.random.default_rng(0), lanes=range(LANES))
    for _ in range(3):
        sampler.draw()
    assert sampler.overtaken == 0
    lap()
    windows = sampler.draw()
    assert sampler.overtaken == 16
    assert (windows.generation >= reader.oldest_now()[windows.lane]).all()
    assert sampler.draw().generation.shape == (16,)
    assert sampler.overtaken == 32  # the plan is five batches old rows still
    writer.close()


def test_columns_handed_out_are_not_written_to_by_later_draws(ring, insert):
    writer = RingWriter.open(ring, "r")
    insert(writer, 0, writer.register(0), 0)
    sampler = UniformSampler(
        RingReader(ring), n_steps=2, batch_size=4, rng=np.random.default_rng(0), lanes=range(LANES)
    )
    out = sampler.allocate()
    names = ("reward", "continues", "used", "steps", "action", "caption_id", "caption_count", "lane", "generation")
    kept = []
    for _ in range(20):
        sampler.draw(out)
        kept.append([(getattr(out, name), getattr(out, name).copy()) for name in names])
    for batch in kept:
        for array, copied in batch:
            np.testing.assert_array_equal(array, copied)
    writer.close()


def test_a_reader_that_is_closed_releases_its_own_mapping_and_not_the_writers(ring, insert):
    writer = RingWriter.open(ring, "r")
    borrowed, own = writer.reader(), RingReader(ring)
    mapped = own._ring
    borrowed.close(), own.close()
    assert (borrowed.columns, own.columns, mapped.columns) == ({}, {}, {})
    insert(writer, 0, writer.register(0), 0)
    assert fresh_snapshot(ring).readable_rows == writer.reader().snapshot().readable_rows > 0
    writer.close()


def test_a_closed_reader_says_that_it_is_closed(ring, insert):
    writer, reader = RingWriter.open(ring, "r"), RingReader(ring)
    insert(writer, 0, writer.register(0), 0)
    sampler = UniformSampler(reader, n_steps=1, batch_size=2, rng=np.random.default_rng(0))
    reader.snapshot(), reader.close()
    for use in (reader.snapshot, reader.oldest_now, sampler.draw, lambda: reader.columns["reward"]):
        with pytest.raises(ReplayError, match="this reader is closed"):
            use()
    writer.close()
