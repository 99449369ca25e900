"""The checked copy of a live ring: whole rows of chosen lanes and columns, and none that the writer overtook."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from onibi.platform.errors import ReplayError
from onibi.platform.replay.ring import snapshot as ring_snapshot
from onibi.platform.replay.ring.reader import RingReader
from onibi.platform.replay.ring.snapshot import snapshot_table
from onibi.platform.replay.ring.writer import RingWriter
from onibi.platform.replay.schema import spec_from_arrow

ENVS, STEPS, WINDOW, SLOTS = 3, 5, 2, 60


class Story:
    """A ring that is written fragment by fragment, and its model."""

    def __init__(self, rows, path):
        self.rows = rows
        self.writer = RingWriter.create(
            path, rows.SPEC, groups=1, lanes_per_group=ENVS, slots=SLOTS, window_rows=WINDOW, run_id="story"
        )
        self.model = rows.RingModel(ENVS, SLOTS)
        rng = np.random.default_rng(0)
        self.lanes = [rows.Lane(rng, lane, True, 0.2) for lane in range(ENVS)]
        self.incarnation, self.sequence = self.writer.register(0), 0

    def insert(self, count=1):
        for _ in range(count):
            made = [[row for _ in range(STEPS) for row in lane.advance()] for lane in self.lanes]
            heads = [lane.head() for lane in self.lanes]
            self.writer.insert(
                0,
                incarnation=self.incarnation,
                sequence=self.sequence,
                rows_per_lane=np.array([len(lane) for lane in made], np.int32),
                columns=self.rows.fragment_columns(made, heads),
            )
            self.sequence += 1
            for lane in range(ENVS):
                self.model.add(lane, made[lane], heads[lane])

    def expected(self, lane, row):
        return self.model.rows[lane][row]


@pytest.fixture
def story(rows, ring_path):
    story = Story(rows, ring_path)
    yield story
    story.writer.close()


def assert_rows_are_the_models(rows, story, table, names):
    lane, generation = table["lane"].to_pylist(), table["generation"].to_pylist()
    for name in names:
        expected = [np.asarray(story.expected(*at)[name]).reshape(-1) for at in zip(lane, generation, strict=True)]
        values = table[name].combine_chunks()
        if pa.types.is_fixed_size_list(values.type):
            values = values.flatten()
        found = values.to_numpy(zero_copy_only=False).reshape(len(expected), -1)
        np.testing.assert_array_equal(found, np.array(expected), err_msg=name)


def test_table_holds_every_readable_row_with_all_its_columns(rows, story, ring_path):
    story.insert(30)
    table = snapshot_table(RingReader(ring_path))
    at = list(zip(table["lane"].to_pylist(), table["generation"].to_pylist(), strict=True))
    model = story.model
    assert at == [(lane, row) for lane in range(ENVS) for row in range(model.oldest[lane], len(model.rows[lane]))]
    assert min(model.oldest) > 0
    assert_rows_are_the_models(rows, story, table, [column.name for column in rows.SPEC.columns])
    assert table.schema.field("terminated").type == pa.bool_()
    assert {True, False} == set(table["terminated"].to_pylist())
    told = table.schema.metadata
    assert (told[b"overtaken_rows"], told[b"run_id"]) == (b"0", b"story")
    assert spec_from_arrow(pa.schema(list(table.schema)[2:], told)) == rows.SPEC


def test_only_the_chosen_lanes_and_columns_are_copied(rows, story, ring_path):
    story.insert(3)
    table = snapshot_table(RingReader(ring_path), columns=["reward", "observation.image"], lanes=[2, 0])
    assert table.column_names == ["lane", "generation", "observation.image", "reward"]
    assert set(table["lane"].to_pylist()) == {0, 2}
    assert_rows_are_the_models(rows, story, table, ["reward", "observation.image"])


def test_empty_ring_is_an_empty_table_of_the_same_schema(rows, story, ring_path):
    empty = snapshot_table(RingReader(ring_path))
    assert empty.num_rows == 0
    story.insert()
    assert empty.schema.remove_metadata() == snapshot_table(RingReader(ring_path)).schema.remove_metadata()


def test_unknown_column_or_lane_is_refused(story, ring_path):
    with pytest.raises(ReplayError, match=r"no replay columns \['bonus'\]"):
        snapshot_table(RingReader(ring_path), columns=["bonus"])
    with pytest.raises(ReplayError, match="the ring has 0 to 2"):
        snapshot_table(RingReader(ring_path), lanes=[3])


class OvertakenReader(RingReader):
    """Lets the writer go on between a snapshot and the reads that follow it."""

    def __init__(self, path, story):
        super().__init__(path)
        self.story = story
        self.believes = False

    def snapshot(self):
        seen = super().snapshot()
        self.story.insert(2)  # overwrites the oldest rows of the snapshot just taken
        return seen

    def oldest_now(self):
        return np.zeros(self.lanes, np.int64) if self.believes else super().oldest_now()


@pytest.mark.parametrize("block_rows", [7, 10**6])
def test_rows_overtaken_during_the_copy_are_left_out_and_counted(rows, story, ring_path, monkeypatch, block_rows):
    monkeypatch.setattr(ring_snapshot, "_BLOCK_BYTES", block_rows * rows.SPEC.row_bytes)
    story.insert(30)
    reader = OvertakenReader(ring_path, story)
    table = snapshot_table(reader)
    overtaken = int(table.schema.metadata[b"overtaken_rows"])
    assert overtaken >= ENVS * 2 * STEPS
    assert table.num_rows + overtaken == ENVS * (SLOTS - 1)
    assert_rows_are_the_models(rows, story, table, [column.name for column in rows.SPEC.columns])


def test_without_the_end_check_overtaken_rows_would_be_in_the_table(rows, story, ring_path):
    story.insert(30)
    reader = OvertakenReader(ring_path, story)
    reader.believes = True
    with pytest.raises(AssertionError):
        assert_rows_are_the_models(rows, story, snapshot_table(reader), ["episode_id", "step", "reward"])
