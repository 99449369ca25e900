"""Fragments as Arrow record batches: the same on the other side, and without a copy."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onibi.platform.errors import ReplayError
from onibi.platform.fragment import CaptionText, EpisodeStatistics, Fragment, KeyText, StateRows
from onibi.platform.fragment_batch import from_batch, to_batch

DTYPES = ("bool", "int8", "uint8", "uint16", "int32", "uint32", "int64", "uint64", "float32", "float64")
TEXTS = st.text(max_size=20)
KEYS = st.lists(st.builds(KeyText, TEXTS, st.booleans()), max_size=2).map(tuple)


@st.composite
def fragments(draw) -> Fragment:
    envs, rows = draw(st.integers(1, 4)), draw(st.integers(1, 5))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    columns = {}
    for number in range(draw(st.integers(1, 4))):
        shape = tuple(draw(st.lists(st.integers(1, 3), max_size=3)))
        raw = rng.integers(0, 256, (envs, rows, *shape), np.int64)
        columns[f"column.{number}"] = raw.astype(draw(st.sampled_from(DTYPES)))
    states = {}
    for number in range(draw(st.integers(0, 2))):
        kept = rng.permutation(np.flatnonzero(rng.random(envs * rows) < draw(st.sampled_from([0.0, 0.3, 1.0]))))
        shape = tuple(draw(st.lists(st.integers(1, 3), max_size=3)))
        values = rng.integers(0, 100, (len(kept), *shape)).astype(draw(st.sampled_from(["uint8", "float32", "int64"])))
        states[f"state.{number}"] = StateRows(*np.divmod(kept, rows), values)
    return Fragment(
        actor=draw(st.integers(0, 4095)),
        incarnation=draw(st.integers(0, 2**40)),
        sequence=draw(st.integers(0, 2**60)),
        rows_per_lane=rng.integers(0, rows, envs).astype(np.int32),
        columns=columns,
        states=states,
        new_captions=draw(
            st.lists(
                st.builds(
                    CaptionText, TEXTS, st.lists(st.builds(KeyText, TEXTS, st.booleans()), max_size=2).map(tuple)
                ),
                max_size=3,
            )
        ),
        episodes=draw(
            st.lists(
                st.builds(
                    EpisodeStatistics,
                    lane=st.integers(0, 9),
                    episode_id=st.integers(0, 2**62),
                    episode_return=st.floats(allow_nan=False, allow_infinity=False),
                    length=st.integers(1, 99),
                    terminated=st.booleans(),
                    extra=st.dictionaries(TEXTS, st.floats(-1e9, 1e9), max_size=2),
                ),
                max_size=3,
            )
        ),
        env_steps=draw(st.integers(0, 10**6)),
    )


def through_a_stream(batch: pa.RecordBatch) -> pa.RecordBatch:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batch.schema) as writer:
        writer.write_batch(batch)
    return pa.ipc.open_stream(sink.getvalue()).read_next_batch()


@given(fragment=fragments())
@settings(max_examples=25, deadline=None)
def test_a_fragment_is_the_same_on_the_other_side(fragment):
    for carried in (to_batch(fragment), through_a_stream(to_batch(fragment))):
        received = from_batch(carried)
        assert list(received.columns) == list(fragment.columns)
        for name, column in fragment.columns.items():
            assert received.columns[name].dtype == column.dtype
            assert received.columns[name].shape == column.shape
            assert np.array_equal(received.columns[name], column)
        assert list(received.states) == list(fragment.states)
        for name, kept in fragment.states.items():
            order, found = np.lexsort((kept.row, kept.lane)), received.states[name]
            assert (found.lane.tolist(), found.row.tolist()) == (kept.lane[order].tolist(), kept.row[order].tolist())
            assert (found.values.dtype, found.values.shape) == (kept.values.dtype, kept.values.shape)
            assert np.array_equal(found.values, kept.values[order])
        assert received.rows_per_lane.tolist() == fragment.rows_per_lane.tolist()
        assert received.rows_per_lane.dtype == np.int32
        for name in ("actor", "incarnation", "sequence", "env_steps", "new_captions", "episodes"):
            assert getattr(received, name) == getattr(fragment, name)


def plain_fragment() -> Fragment:
    columns = {
        "observation": np.arange(2 * 3 * 4, dtype=np.float32).reshape(2, 3, 4),
        "reward": np.arange(6, dtype=np.float32).reshape(2, 3),
        "flag": np.array([[True, False, True], [False, False, True]]),
    }
    return Fragment(0, 0, 0, np.array([2, 1], np.int32), columns)


def test_neither_way_copies_the_rows():
    fragment = plain_fragment()
    received = from_batch(to_batch(fragment))
    for name, column in fragment.columns.items():
        assert np.shares_memory(received.columns[name], column), name


def test_rows_received_cannot_be_written_to():
    received = from_batch(through_a_stream(to_batch(plain_fragment())))
    for column in received.columns.values():
        with pytest.raises(ValueError, match="read-only"):
            column[:] = 0


def test_a_column_that_is_not_contiguous_arrives_right():
    fragment = plain_fragment()
    turned = np.asfortranarray(fragment.columns["observation"])
    fragment.columns["observation"] = turned
    assert np.array_equal(from_batch(to_batch(fragment)).columns["observation"], turned)


def test_other_tools_read_the_rows_lane_by_lane():
    batch = to_batch(plain_fragment())
    assert batch.num_rows == 6
    assert batch.column("observation")[4].as_py() == [16.0, 17.0, 18.0, 19.0]  # lane 1, row 1
    assert batch.column("reward").to_pylist() == [0, 1, 2, 3, 4, 5]


def test_a_batch_that_is_no_fragment_is_refused():
    with pytest.raises(ReplayError, match=r"\['a'\] is no fragment"):
        from_batch(pa.record_batch({"a": [1, 2]}))
