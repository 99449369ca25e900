"""States kept every few steps: where they lie, what is refused, and what a commit that was cut off leaves of them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from onibi.platform.errors import ReplayError, SpecError
from onibi.platform.fragment import StateRows
from onibi.platform.replay.ring.layout import RingLayout
from onibi.platform.replay.ring.reader import RingReader
from onibi.platform.replay.ring.row_table import rows_schema
from onibi.platform.replay.ring.state_ring import StateRing, is_kept, state_entries
from onibi.platform.replay.ring.writer import RingWriter
from onibi.platform.replay.samplers.sequence_sampler import SequenceSampler
from onibi.platform.replay.samplers.sequences import Tail
from onibi.platform.replay.schema import arrow_schema, spec_from_arrow
from onibi.platform.spec import ArraySpec, ReplaySpec, StateSpec

MEMORY = StateSpec(name="memory", dtype="float32", shape=(2,), period=4)
SPEC = ReplaySpec(observation=(ArraySpec(name="observation", dtype="float32"),), actions=2, states=(MEMORY,))
ENVS, ROWS, WINDOW = 2, 8, 4
SLOTS = 4 * (ROWS + 1 + WINDOW)


def states_of(*rows):
    """Of (lane, row, value)."""
    lane, row, value = zip(*rows, strict=True)
    return StateRows(np.array(lane), np.array(row), np.float32([[each, -each] for each in value]))


def taken(ring, rows):
    """Values of (lane, row, step)."""
    lane, row, step = np.array(rows).T
    out = np.full((len(rows), 2), np.nan, np.float32)
    ring.take(lane, row, step, out)
    assert (out[:, 1] == -out[:, 0]).all()
    return out[:, 0].tolist()


def columns(step):
    """ROWS rows and a head of each lane, beginning with this step."""
    made = {column.name: np.zeros((ENVS, ROWS + 1, *column.shape), column.dtype) for column in SPEC.columns}
    made["step"][:] = step + np.arange(ROWS + 1)
    made["observation"][:] = made["step"]
    return made


def insert(writer, sequence, step, states, incarnation=1, rows=ROWS):
    return writer.insert(
        0,
        incarnation=incarnation,
        sequence=sequence,
        rows_per_lane=np.full(ENVS, rows, np.int32),
        columns=columns(step),
        states=states,
    )


@pytest.fixture
def writer(ring_path):
    created = RingWriter.create(
        ring_path, SPEC, groups=1, lanes_per_group=ENVS, slots=SLOTS, window_rows=WINDOW, run_id="states"
    )
    created.register(0)
    yield created
    created.close()


def test_a_state_is_that_of_its_row_and_every_other_one_is_zero():
    ring = StateRing(MEMORY, np.zeros((2, 5), np.int64), np.full((2, 5, 2), 9, np.float32))
    ring.put(0, np.array([100, 200]), states_of((0, 0, 1.0), (0, 4, 2.0), (1, 3, 3.0)))
    assert taken(ring, [(0, 100, 4), (0, 104, 8), (1, 203, 4)]) == [1.0, 2.0, 3.0]
    # Its neighbours' rows share the entry; steps that keep none, an episode's first, and another lane have none.
    assert taken(ring, [(0, 101, 4), (0, 100, 5), (0, 100, 0), (1, 100, 4), (0, 120, 4)]) == [0.0] * 5
    ring.put(0, np.array([120, 0]), states_of((0, 0, 7.0)))  # one time round: 5 entries of 4 rows
    assert taken(ring, [(0, 100, 4), (0, 120, 4), (0, 104, 8)]) == [0.0, 7.0, 2.0]


def test_of_two_states_in_an_entry_the_later_one_stays():
    ring = StateRing(MEMORY, np.zeros((1, 5), np.int64), np.zeros((1, 5, 2), np.float32))
    ring.put(0, np.array([100]), states_of((0, 0, 1.0), (0, 2, 2.0)))
    assert taken(ring, [(0, 100, 4), (0, 102, 40)]) == [0.0, 2.0]


@pytest.mark.parametrize("period", [1, 2, 3, 7, 40])
def test_an_entry_is_overwritten_when_the_rows_it_served_are_no_longer_read(period):
    for slots in range(period, 4 * period + 50):
        entries = state_entries(slots, period)
        for row in range(period):
            over = (row // period + entries) * period  # the first row that takes its entry
            oldest = over + 2 - slots  # with it committed and a head behind it
            assert row < oldest


def test_the_first_step_keeps_none():
    assert is_kept(np.arange(9), 4).tolist() == [False] * 4 + [True] + [False] * 3 + [True]
    assert is_kept(np.arange(3), 1).tolist() == [False, True, True]


def test_states_come_back_from_another_mapping_over_many_laps(writer, ring_path):
    kept = {}
    for sequence in range(30):
        rows = [(lane, row, 1 + 8.0 * sequence + row + lane) for lane in range(ENVS) for row in (0, 4)]
        insert(writer, sequence, 8 * sequence, {"memory": states_of(*rows[sequence == 0 :: 1 + (sequence == 0)])})
        kept |= {(lane, 8 * sequence + row): value for lane, row, value in rows}
    reader = RingReader(ring_path)
    oldest, cursor = reader.snapshot().oldest, reader.snapshot().cursor
    assert oldest.min() > 100
    rows = [(lane, k, k) for lane in range(ENVS) for k in range(oldest[lane], cursor[lane])]
    expected = [kept.get((lane, k), 0.0) for lane, k, _ in rows]
    assert taken(reader.states["memory"], rows) == expected
    assert len(set(expected)) > 15
    reader.close()


def test_a_row_of_a_cut_off_commit_lends_its_state_to_no_other_row(writer, ring_path):
    """The number of a row that was never committed comes again; as an episode's fourth step or as its first."""

    class Cut(BaseException):
        pass

    def cut_behind_states(commit):
        for name in writer._stores(commit):
            if name == "state memory":
                raise Cut

    insert(writer, 0, 0, {"memory": states_of((0, 4, 1.0))})
    whole, writer._run = writer._run, cut_behind_states
    with pytest.raises(Cut):
        insert(writer, 1, 8, {"memory": states_of((0, 0, 2.0), (0, 4, 3.0))})
    writer._run = whole
    reader = RingReader(ring_path)
    assert taken(reader.states["memory"], [(0, 4, 4)]) == [1.0]
    assert writer.register(0) == 2  # its heads, rows 8, become final; row 9 begins an episode
    insert(writer, 0, 0, {}, incarnation=2)
    # Row 12 was to be step 12 and is step 3 now; had the new episode come a row earlier, its step 0 might be there.
    assert taken(reader.states["memory"], [(0, 12, 3), (0, 12, 0), (0, 9, 0)]) == [0.0, 0.0, 0.0]
    reader.close()


@pytest.mark.parametrize(
    ("states", "message"),
    [
        ({"other": states_of((0, 4, 1.0))}, "unknown state 'other'"),
        ({"memory": StateRows(np.array([0]), np.array([4]), np.zeros((1, 2)))}, "is float64"),
        ({"memory": StateRows(np.array([0]), np.array([4]), np.zeros((1, 3), np.float32))}, "allowed is float32"),
        ({"memory": StateRows(np.array([0]), np.array([4]), np.zeros((2, 2), np.float32))}, "as many signed integers"),
        ({"memory": StateRows(np.array([0]), np.array([4]), np.float32(1))}, "as many signed integers"),
        ({"memory": StateRows(np.array([[0]]), np.array([[4]]), np.zeros((1, 2), np.float32))}, "signed integers"),
        ({"memory": StateRows(np.array([0.0]), np.array([4]), np.zeros((1, 2), np.float32))}, "signed integers"),
        ({"memory": StateRows(np.array([0]), np.uint64([4]), np.zeros((1, 2), np.float32))}, "signed integers"),
        ({"memory": states_of((ENVS, 4, 1.0))}, "does not commit"),
        ({"memory": states_of((-1, 4, 1.0))}, "does not commit"),
        ({"memory": states_of((0, ROWS, 1.0))}, "does not commit"),
        ({"memory": states_of((0, -1, 1.0))}, "does not commit"),
        ({"memory": StateRows(np.array([0, 1]), np.array([4]), np.zeros((2, 2), np.float32))}, "signed integers"),
    ],
)
def test_a_fragment_whose_states_do_not_fit_is_refused_whole(writer, states, message):
    with pytest.raises(ReplayError, match=message):
        insert(writer, 0, 0, states)
    assert writer.record("cursor").max() == 0
    assert insert(writer, 0, 0, {}).step_rows == ENVS * ROWS


def test_states_are_in_the_header_and_cost_their_share_of_memory(writer, ring_path):
    assert spec_from_arrow(arrow_schema(SPEC)) == SPEC
    reader = RingReader(ring_path)
    assert reader.spec == SPEC
    reader.close()
    wide = StateSpec(name="memory", dtype="float32", shape=(1024,), period=40)
    sizes = []
    for spec in (
        replace(SPEC, states=()),
        replace(SPEC, states=(wide,)),
        replace(SPEC, states=(), extra=(ArraySpec(name="memory", dtype="float32", shape=(1024,)),)),
    ):
        layout = RingLayout(spec=spec, groups=1, lanes_per_group=4, slots=10_000, window_rows=4, run_id="r")
        sizes.append(layout.offsets().file_bytes)
    none, every_forty, every = sizes
    assert (every_forty - none) * 39 < every - none


@pytest.mark.parametrize(
    ("states", "message"),
    [
        ((replace(MEMORY, period=0),), "period 0"),
        ((replace(MEMORY, name="reward"),), "declared twice"),
        ((MEMORY, MEMORY), "declared twice"),
        ((replace(MEMORY, dtype="object"),), "dtype"),
        ((replace(MEMORY, dtype="bool"),), "of at least 1, and numbers"),
        ((replace(MEMORY, dtype=">f4"),), "byte order"),
    ],
)
def test_a_state_that_cannot_be_kept_is_refused(states, message):
    with pytest.raises(SpecError, match=message):
        arrow_schema(replace(SPEC, states=states))


def test_tables_and_logs_know_nothing_of_states():
    assert rows_schema(SPEC).equals(rows_schema(replace(SPEC, states=())), check_metadata=True)


def test_damaged_metadata_of_states_are_told(writer):
    schema = arrow_schema(SPEC)
    for told in (b"[", b"[1]", b'[{"name": "memory"}]', b'[{"shape": 3}]', b"3"):
        with pytest.raises(SpecError, match="'states' are damaged"):
            spec_from_arrow(schema.with_metadata({**schema.metadata, b"states": told}))


@pytest.mark.parametrize("changes", [{"period": 6}, {"burn_in": 2}, {"tail": Tail.SHIFT}])
def test_sequences_that_would_begin_between_states_are_refused(writer, ring_path, changes):
    reader = RingReader(ring_path)
    choices = {"length": 2, "burn_in": 0, "period": 4, "first_row_columns": ["memory"], **changes}
    with pytest.raises(ReplayError, match="kept every 4 steps"):
        SequenceSampler(reader, batch_size=2, rng=np.random.default_rng(0), **choices)
    reader.close()
