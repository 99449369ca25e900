"""Windows drawn through calls are those of a local sampler; the same with real Ray between."""

from __future__ import annotations

import shutil
import tempfile

import numpy as np
import pyarrow as pa
import pytest

from onibi.platform.errors import ReplayError
from onibi.platform.replay.remote_draws import DrawDesk, DrawRequest, RemoteSampler
from onibi.platform.replay.ring_reader import RingReader
from onibi.platform.replay.ring_writer import RingWriter
from onibi.platform.replay.sampler import UniformSampler
from onibi.platform.replay.windows_batch import from_windows_batch, to_windows_batch, window_arrays

REQUEST = DrawRequest(client="learner", seed=3, n_steps=3, batch_size=16)


@pytest.fixture
def ring(rows, ring_path):
    """A ring of two lanes with some episodes in them."""
    writer = RingWriter.create(
        ring_path, rows.SPEC, groups=1, lanes_per_group=2, slots=256, window_rows=3, run_id="run"
    )
    rng = np.random.default_rng(0)
    lanes = [rows.Lane(rng, lane, True, 0.1) for lane in range(2)]
    made = [[row for _ in range(40) for row in lane.advance()] for lane in lanes]
    writer.insert(
        0,
        incarnation=writer.register(0),
        sequence=0,
        rows_per_lane=np.array([len(lane) for lane in made], np.int32),
        columns=rows.fragment_columns(made, [lane.head() for lane in lanes]),
    )
    writer.close()
    return ring_path


def local_sampler(ring, request=REQUEST):
    return UniformSampler(
        RingReader(ring),
        n_steps=request.n_steps,
        batch_size=request.batch_size,
        rng=np.random.default_rng(request.seed),
        lanes=request.lanes,
        columns=request.columns,
    )


def in_process(desk, request, **options):
    """A client whose calls are answered when they are waited for, over bytes as a network would carry them."""

    def carried(batch):
        return pa.ipc.read_record_batch(pa.py_buffer(batch.serialize().to_pybytes()), batch.schema)

    return RemoteSampler(
        lambda count: count, lambda count: carried(desk.draw(request.client, count)), desk.open(request), **options
    )


def assert_same(windows, expected):
    for (name, found), (expected_name, array) in zip(window_arrays(windows), window_arrays(expected), strict=True):
        assert name == expected_name
        assert found.dtype == array.dtype
        np.testing.assert_array_equal(found, array, err_msg=name)
    for name, leaf in expected.bootstrap_observation.items():
        np.testing.assert_array_equal(windows.bootstrap_observation[name], leaf)
        np.testing.assert_array_equal(windows.observation[name], expected.observation[name])


@pytest.mark.parametrize(("draws", "calls_ahead"), [(1, 0), (3, 1), (8, 2)])
def test_remote_windows_are_those_of_a_local_sampler_under_the_same_seed(ring, draws, calls_ahead):
    remote = in_process(DrawDesk(RingReader(ring)), REQUEST, draws=draws, calls_ahead=calls_ahead)
    local = local_sampler(ring)
    buffers = remote.allocate()
    for turn in range(20):
        windows = remote.draw(buffers) if turn % 2 else remote.draw()
        assert_same(windows, local.draw())
    assert remote.drawn_rows == 20 * REQUEST.batch_size
    assert windows is buffers


def test_clients_draw_independently_of_each_other(ring):
    desk = DrawDesk(RingReader(ring))
    other = DrawRequest(client="tool", seed=4, n_steps=1, batch_size=5, lanes=(1,), columns=("observation.image",))
    one, two = in_process(desk, REQUEST), in_process(desk, other)
    expected_one, expected_two = local_sampler(ring), local_sampler(ring, other)
    for _ in range(12):
        assert_same(one.draw(), expected_one.draw())
        assert_same(two.draw(), expected_two.draw())
    assert set(desk.overtaken()) == {"learner", "tool"}


def test_calls_are_under_way_before_their_batches_are_asked_for(ring):
    desk, started, answered = DrawDesk(RingReader(ring)), [], []

    def start(count):
        started.append(count)
        return desk.draw("learner", count)

    def wait(call):
        answered.append(call)
        return call

    remote = RemoteSampler(start, wait, desk.open(REQUEST), draws=2, calls_ahead=2)
    remote.draw()
    assert (len(started), len(answered)) == (3, 1)
    remote.draw()
    assert (len(started), len(answered)) == (3, 1)
    remote.draw()
    assert (len(started), len(answered)) == (4, 2)


def test_batch_of_windows_is_read_without_a_copy_and_is_read_only(ring):
    windows = local_sampler(ring).draw()
    batch = to_windows_batch(windows)
    again = from_windows_batch(batch)
    assert np.shares_memory(again.pairs["observation.image"], windows.pairs["observation.image"])
    assert np.shares_memory(again.observation["observation.image"], again.pairs["observation.image"])
    received = pa.ipc.read_record_batch(pa.py_buffer(batch.serialize().to_pybytes()), batch.schema)
    with pytest.raises(ValueError, match="read-only"):
        from_windows_batch(received).reward[0] = 0


def test_opening_again_begins_at_the_seed(ring):
    desk = DrawDesk(RingReader(ring))
    first = in_process(desk, REQUEST).draw()
    assert_same(in_process(desk, REQUEST).draw(), first)


def test_unknown_client_or_foreign_batch_is_refused(ring):
    desk = DrawDesk(RingReader(ring))
    desk.open(REQUEST)
    desk.close("learner")
    with pytest.raises(ReplayError, match="no draws are open for client 'learner'"):
        desk.draw("learner", 1)
    desk.open(REQUEST)
    with pytest.raises(ReplayError, match="asked for 0 batches"):
        desk.draw("learner", 0)
    with pytest.raises(ReplayError, match="holds no windows"):
        from_windows_batch(pa.record_batch({"x": [1]}))


def test_windows_through_ray_are_those_of_a_local_sampler(ring, monkeypatch):
    import ray

    from onibi.platform.replay.remote_actor import remote_sampler, start_remote_draws

    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    folder = tempfile.mkdtemp(prefix="oni", dir="/tmp")  # Ray puts sockets below it, and their names end at 107 bytes
    ray.init(
        address="local",
        num_cpus=1,
        include_dashboard=False,
        _temp_dir=folder,
        log_to_driver=False,
        object_store_memory=80_000_000,
    )
    try:
        actor = start_remote_draws(str(ring), ray.get_runtime_context().get_node_id())
        remote = remote_sampler(actor, REQUEST, draws=3, calls_ahead=2)
        local, buffers = local_sampler(ring), remote.allocate()
        for _ in range(20):
            assert_same(remote.draw(buffers), local.draw())
        assert ray.get(actor.overtaken.remote()) == {"learner": 0}
        ray.get(actor.close.remote("learner"))
        with pytest.raises(ReplayError, match="no draws are open"):
            ray.get(actor.draw.remote("learner", 1))
    finally:
        ray.shutdown()
        shutil.rmtree(folder, ignore_errors=True)
