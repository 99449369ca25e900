"""Fragments that come again, from living and from gone incarnations: none is in the ring twice."""

from __future__ import annotations

import numpy as np
import pytest

from onibi.platform.errors import LeaseError
from onibi.platform.replay.ring.reader import RingReader
from onibi.platform.replay.ring.writer import RingWriter

ENVS, STEPS, SLOTS = 2, 4, 80


class Group:
    """An actor's side: every fragment it ever made, by incarnation and sequence."""

    def __init__(self, rows, path):
        self.rows, self.path = rows, path
        self.writer = RingWriter.create(
            path, rows.SPEC, groups=1, lanes_per_group=ENVS, slots=SLOTS, window_rows=2, run_id="run"
        )
        self.number = 0

    def fragment(self):
        made = [
            [self.rows.blank_row(lane * 10_000 + self.number + step, lane, self.number + step) for step in range(STEPS)]
            for lane in range(ENVS)
        ]
        self.number += STEPS
        heads = [self.rows.blank_row(lane * 10_000 + self.number, lane, self.number) for lane in range(ENVS)]
        return {
            "rows_per_lane": np.full(ENVS, STEPS, np.int32),
            "columns": self.rows.fragment_columns(made, heads),
        }

    def insert(self, incarnation, sequence, fragment):
        return self.writer.insert(0, incarnation=incarnation, sequence=sequence, **fragment)


@pytest.fixture
def group(rows, ring_path):
    group = Group(rows, ring_path)
    yield group
    group.writer.close()


def bytes_of(path):
    return path.read_bytes()


def test_committed_fragment_of_an_older_incarnation_is_refused_when_it_comes_again(group, ring_path):
    first = group.writer.register(0)
    committed = [group.fragment() for _ in range(3)]
    for sequence, fragment in enumerate(committed):
        assert not group.insert(first, sequence, fragment).repeated
    second = group.writer.register(0)
    new = group.fragment()
    group.insert(second, 0, new)
    before = bytes_of(ring_path)
    for sequence, fragment in enumerate(committed):  # retries that were under way when the actor was replaced
        with pytest.raises(LeaseError, match=f"incarnation {second}, the fragment has {first}"):
            group.insert(first, sequence, fragment)
    assert group.insert(second, 0, new).repeated
    assert bytes_of(ring_path) == before
    assert RingReader(ring_path).snapshot().inserted_rows == 4 * ENVS * STEPS


def test_repeats_are_acknowledged_after_the_writer_was_replaced_and_the_next_fragment_follows(group, ring_path):
    incarnation = group.writer.register(0)
    fragments = [group.fragment() for _ in range(3)]
    for sequence in range(2):
        group.insert(incarnation, sequence, fragments[sequence])
    group.writer.close()
    group.writer = RingWriter.open(ring_path, "run")
    assert [group.insert(incarnation, sequence, fragments[sequence]).repeated for sequence in (1, 0)] == [True, True]
    outcome = group.insert(incarnation, 2, fragments[2])
    assert (outcome.repeated, outcome.gap, outcome.foreign_heads) == (False, False, 0)
    assert RingReader(ring_path).snapshot().cursor.tolist() == [3 * STEPS] * ENVS


def test_late_fragment_behind_a_gap_is_a_repeat_and_not_inserted_out_of_order(group, ring_path):
    incarnation = group.writer.register(0)
    fragments = [group.fragment() for _ in range(3)]
    group.insert(incarnation, 0, fragments[0])
    assert group.insert(incarnation, 2, fragments[2]).gap
    cursor = RingReader(ring_path).snapshot().cursor.tolist()
    assert group.insert(incarnation, 1, fragments[1]).repeated
    assert RingReader(ring_path).snapshot().cursor.tolist() == cursor == [2 * STEPS + 1] * ENVS


def test_fragments_of_a_retired_actor_are_refused_before_and_after_the_group_is_taken_again(group, ring_path):
    first = group.writer.register(0)
    fragment = group.fragment()
    group.insert(first, 0, fragment)
    group.writer.retire(0)
    for sequence in (0, 1):
        with pytest.raises(LeaseError, match="was retired"):
            group.insert(first, sequence, fragment)
    taken = group.writer.register(0)
    assert taken > first + 1
    with pytest.raises(LeaseError, match=f"incarnation {taken}, the fragment has {first}"):
        group.insert(first, 0, fragment)
    group.insert(taken, 0, group.fragment())
    snapshot = RingReader(ring_path).snapshot()
    assert (snapshot.cursor - snapshot.oldest).tolist() == [STEPS] * ENVS


def test_groups_may_register_late_while_others_go_round_the_ring(rows, ring_path):
    writer = RingWriter.create(ring_path, rows.SPEC, groups=3, lanes_per_group=1, slots=40, window_rows=2, run_id="run")
    assert [writer.is_free(group) for group in range(3)] == [True, True, True]
    reader = RingReader(ring_path)
    for turn in range(60):
        if turn in (0, 20, 40):
            writer.register(turn // 20)
        for group in range(turn // 20 + 1):
            sequence = turn - 20 * group
            first = sequence * STEPS
            made = [rows.blank_row(group * 1_000 + first + step, group, first + step) for step in range(STEPS)]
            head = rows.blank_row(group * 1_000 + first + STEPS, group, first + STEPS)
            writer.insert(
                group,
                incarnation=1,
                sequence=sequence,
                rows_per_lane=np.array([STEPS], np.int32),
                columns=rows.fragment_columns([made], [head]),
            )
        snapshot = reader.snapshot()
        assert snapshot.cursor.tolist() == [max(0, turn + 1 - 20 * group) * STEPS for group in range(3)]
        assert snapshot.oldest.tolist() == [max(0, cursor + 1 - 40) for cursor in snapshot.cursor.tolist()]
    writer.close()
