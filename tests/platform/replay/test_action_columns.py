"""Continuous actions in the row layout, the ring and what samplers hand out; discrete ones beside them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest

from onibi.platform.errors import SpecError
from onibi.platform.replay.draws_batch import from_record_batch, to_record_batch
from onibi.platform.replay.ring.reader import RingReader
from onibi.platform.replay.ring.snapshot import snapshot_table
from onibi.platform.replay.ring.writer import RingWriter
from onibi.platform.replay.samplers.draws import PrioritySettings, SequenceDraws, SlabDraws, WindowDraws
from onibi.platform.replay.samplers.make_sampler import make_sampler
from onibi.platform.replay.schema import arrow_schema, ring_columns, spec_from_arrow
from onibi.platform.spec import ROLE_FINAL, ArraySpec, ReplaySpec

OBSERVATION = (ArraySpec(name="observation", dtype="float32"),)
DISCRETE = ReplaySpec(observation=OBSERVATION, actions=50, keys_per_caption=1)
CONTINUOUS = ReplaySpec(
    observation=OBSERVATION,
    actions=0,
    keys_per_caption=1,
    action=ArraySpec(name="action", dtype="float32", shape=(3,)),
    action_low=(-1.0, 0.1, float("-inf")),
    action_high=(1.0, 0.7, float("inf")),
)
SPECS = {"discrete": DISCRETE, "continuous": CONTINUOUS}
LANES, ROWS = 2, 12
DRAWS = {
    "uniform": WindowDraws(n_steps=3, batch_size=16),
    "prioritized": WindowDraws(n_steps=1, batch_size=16, priorities=PrioritySettings()),
    "sequences": SequenceDraws(length=5, burn_in=2, period=1, batch_size=8),
    "slabs": SlabDraws(rows=7, batch_lanes=2),
}


def actions_of(spec: ReplaySpec, row: np.ndarray) -> np.ndarray:
    """The action of a row with this number; 0 in the final row of each episode."""
    acts = row % ROWS != ROWS - 1
    if spec.action is None:
        return np.where(acts, row % 50, 0)
    return np.where(acts[..., None], row[..., None] + np.array([0.0, 0.25, 0.5]), 0).astype(np.float32)


@pytest.fixture(params=sorted(SPECS))
def ring(request, tmp_path):
    spec, path = SPECS[request.param], tmp_path / "actions.ring"
    writer = RingWriter.create(path, spec, groups=1, lanes_per_group=LANES, slots=100, window_rows=7, run_id="actions")
    incarnation = writer.register(0)
    for sequence in range(12):  # the ring goes round once
        row = sequence * ROWS + np.arange(ROWS + 1)
        columns = {c.name: np.zeros((LANES, ROWS + 1, *c.shape), c.dtype) for c in spec.columns}
        columns["observation"][:] = row
        columns["action"][:, :ROWS] = actions_of(spec, row[:ROWS])
        columns["terminated"][:, ROWS - 2] = 1
        columns["role"][:, ROWS - 1] = ROLE_FINAL
        rows_per_lane = np.full(LANES, ROWS, np.int32)
        writer.insert(0, incarnation=incarnation, sequence=sequence, rows_per_lane=rows_per_lane, columns=columns)
    reader = RingReader(path)
    yield spec, reader
    reader.close()
    writer.close()


@pytest.mark.parametrize("kind", sorted(DRAWS))
def test_actions_of_every_kind_of_batch_are_those_of_its_rows(kind, ring):
    spec, reader = ring
    sampler = make_sampler(reader, DRAWS[kind], np.random.default_rng(0))
    out = sampler.allocate()
    for _ in range(4):
        batch = sampler.draw(out=out)
        if kind in ("uniform", "prioritized"):
            rows = batch.generation
        elif kind == "sequences":
            rows = batch.first_row + np.arange(7)[:, None]
            batch.action[~batch.used] = actions_of(spec, rows)[~batch.used]  # padding is unspecified
        else:
            rows = batch.generation[:, None] + np.arange(7)
        expected = actions_of(spec, rows)
        assert batch.action.dtype == expected.dtype
        assert np.array_equal(batch.action, expected)
        assert batch.batch_size == len(batch.lane)


def test_windows_travel_with_their_actions(ring):
    spec, reader = ring
    windows = make_sampler(reader, DRAWS["uniform"], np.random.default_rng(0)).draw()
    again = from_record_batch(to_record_batch(windows), 0)
    assert np.array_equal(again.action, actions_of(spec, again.generation))
    assert again.action.dtype == windows.action.dtype


def test_a_snapshot_has_the_actions_and_its_schema_the_spec(ring):
    spec, reader = ring
    table = snapshot_table(reader)
    assert spec_from_arrow(table.select(list(range(2, table.num_columns))).schema) == spec
    assert reader.spec == spec
    rows = table.column("generation").to_numpy()
    stored = table.column("action").combine_chunks()
    values = stored.flatten() if pa.types.is_fixed_size_list(stored.type) else stored
    assert np.array_equal(values.to_numpy().reshape(actions_of(spec, rows).shape), actions_of(spec, rows))


@pytest.mark.parametrize("name", sorted(SPECS))
def test_the_spec_comes_back_from_its_schema(name):
    schema = arrow_schema(SPECS[name])
    assert spec_from_arrow(pa.ipc.read_schema(schema.serialize())) == SPECS[name]
    assert (b"action_low" in schema.metadata) == (name == "continuous"), "discrete layouts read as they always did"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"actions": 2}, "beside 2 discrete actions; allowed is 'action'"),
        ({"action": ArraySpec(name="torque", dtype="float32", shape=(3,))}, "the action column is 'torque'"),
        ({"action": ArraySpec(name="action", dtype="float64", shape=(3,))}, r"float64\[3\]"),
        ({"action": ArraySpec(name="action", dtype="float32", shape=(3, 1))}, r"float32\[3, 1\]"),
        ({"action_low": (0.0,)}, "has 3 dimensions, its bounds have 1 and 3"),
        ({"action": None}, "0 discrete actions with bounds"),
        ({"action": None, "action_low": (), "action_high": ()}, "allowed are 1 or more"),
    ],
)
def test_actions_that_are_neither_numbers_below_a_count_nor_a_vector_are_refused(changes, message):
    with pytest.raises(SpecError, match=message):
        ring_columns(replace(CONTINUOUS, **changes))
