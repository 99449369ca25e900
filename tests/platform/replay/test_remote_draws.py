"""What is drawn through calls is what a local sampler draws, of every kind; the same with real Ray between."""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest

from onibi.platform.errors import ReplayError
from onibi.platform.replay.draws_batch import draw_arrays, from_record_batch, to_record_batch
from onibi.platform.replay.remote_draws import DrawDesk, DrawRequest, RemoteSampler
from onibi.platform.replay.ring.reader import RingReader
from onibi.platform.replay.ring.writer import RingWriter
from onibi.platform.replay.samplers.draws import PrioritySettings, SequenceDraws, SlabDraws, WindowDraws
from onibi.platform.replay.samplers.fifo_sampler import FifoSampler
from onibi.platform.replay.samplers.frame_stack import FrameStack
from onibi.platform.replay.samplers.make_sampler import make_sampler
from onibi.platform.replay.samplers.newest_first_sampler import NewestFirstSettings
from onibi.platform.replay.samplers.trajectory_sampler import TrajectorySettings
from onibi.platform.replay.samplers.windows import Windows

PRIORITIES = PrioritySettings(exponent=0.7, importance_exponent=0.4, importance_anneal_updates=10)
DRAWS = {
    "windows": WindowDraws(n_steps=3, batch_size=16),
    "windows by priority": WindowDraws(n_steps=3, batch_size=16, priorities=PRIORITIES),
    "newest windows": WindowDraws(n_steps=3, batch_size=16, sampling=NewestFirstSettings(half_life_rows=5)),
    "windows of good trajectories": WindowDraws(n_steps=3, batch_size=16, sampling=TrajectorySettings()),
    "sequences": SequenceDraws(length=2, burn_in=1, period=1, batch_size=6),
    "sequences by priority": SequenceDraws(length=2, burn_in=1, period=1, batch_size=6, priorities=PRIORITIES),
    "slabs": SlabDraws(rows=2, batch_lanes=2),
}
REQUEST = DrawRequest(client="learner", seed=3, draws=DRAWS["windows"])


def insert_episodes(rows, writer):
    """Some episodes in two lanes."""
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


@pytest.fixture
def ring(rows, ring_path):
    """A ring of two lanes with some episodes in them."""
    writer = RingWriter.create(
        ring_path, rows.SPEC, groups=1, lanes_per_group=2, slots=256, window_rows=3, run_id="run"
    )
    insert_episodes(rows, writer)
    writer.close()
    return ring_path


def local_sampler(ring, request=REQUEST):
    return make_sampler(
        RingReader(ring),
        request.draws,
        np.random.default_rng(request.seed),
        lanes=request.lanes,
        columns=request.columns,
        stack=request.stack,
    )


def in_process(desk, request, **options):
    """A client whose calls are answered as soon as they are made, over bytes as a network would carry them; what they
    raise comes when they are waited for.
    """

    def start(call):
        try:
            answer = call()
            if isinstance(answer, pa.RecordBatch):
                answer = pa.ipc.read_record_batch(pa.py_buffer(answer.serialize().to_pybytes()), answer.schema)
        except ReplayError as error:
            return error
        return answer

    def wait(answer):
        if isinstance(answer, ReplayError):
            raise answer
        return answer

    return RemoteSampler(
        lambda count: start(lambda: desk.draw(request.client, count)),
        lambda *update: start(lambda: desk.update(request.client, *update)),
        wait,
        desk.open(request),
        **options,
    )


def assert_same(drawn, expected):
    assert type(drawn) is type(expected)
    for (name, found), (expected_name, array) in zip(draw_arrays(drawn), draw_arrays(expected), strict=True):
        assert name == expected_name
        assert found.dtype == array.dtype
        np.testing.assert_array_equal(found, array, err_msg=name)
    if isinstance(expected, Windows):
        for name, leaf in expected.bootstrap_observation.items():
            np.testing.assert_array_equal(drawn.bootstrap_observation[name], leaf)
            np.testing.assert_array_equal(drawn.observation[name], expected.observation[name])


@pytest.mark.parametrize("kind", [kind for kind in DRAWS if "priority" not in kind])
@pytest.mark.parametrize(("draws", "calls_ahead"), [(1, 0), (3, 1), (8, 2)])
def test_what_comes_from_elsewhere_is_what_a_local_sampler_draws_under_the_same_seed(ring, kind, draws, calls_ahead):
    request = replace(REQUEST, draws=DRAWS[kind])
    remote = in_process(DrawDesk(RingReader(ring)), request, draws=draws, calls_ahead=calls_ahead)
    local = local_sampler(ring, request)
    buffers, drawn_rows = remote.allocate(), 0
    for turn in range(15):
        batch = remote.draw(buffers) if turn % 2 else remote.draw()
        expected = local.draw()
        assert_same(batch, expected)
        drawn_rows += expected.drawn_rows
        if turn % 2:
            assert batch is buffers
    assert remote.drawn_rows == drawn_rows == local.drawn_rows


@pytest.mark.parametrize("kind", ["windows by priority", "sequences by priority"])
def test_priorities_given_from_elsewhere_act_on_the_next_call_and_weights_are_annealed(ring, kind):
    request = replace(REQUEST, draws=DRAWS[kind])
    remote = in_process(DrawDesk(RingReader(ring)), request, draws=1, calls_ahead=0)
    local, rng, weights = local_sampler(ring, request), np.random.default_rng(0), []
    for turn in range(30):
        local.importance_exponent = min(1.0, 0.4 + 0.06 * turn)
        batch, expected = remote.draw(), local.draw()
        np.testing.assert_allclose(batch.weight, expected.weight, rtol=1e-6)  # 0.4 + 0.6 · turn / 10, rounded otherwise
        np.testing.assert_array_equal(batch.lane, expected.lane)
        np.testing.assert_array_equal(batch.generation, expected.generation)
        weights.append(float(batch.weight.min()))
        priority = rng.random(len(batch.lane)) ** 4
        remote.update(batch.lane, batch.generation, priority)
        assert remote.flush() == local.update(expected.lane, expected.generation, priority)
    assert min(weights) < 0.9, "else nothing was prioritized"


def test_priorities_act_on_what_is_asked_for_after_them(ring):
    """Calls of two batches, one call ahead: the third and fourth batch are drawn when the first is asked for."""
    request = replace(REQUEST, draws=replace(DRAWS["windows by priority"], batch_size=4))
    remote = in_process(DrawDesk(RingReader(ring)), request, draws=2, calls_ahead=1)
    snapshot = RingReader(ring).snapshot()
    batch = remote.draw()
    everything = [(lane, row) for lane in range(2) for row in range(snapshot.oldest[lane], snapshot.cursor[lane])]
    kept = (int(batch.lane[0]), int(batch.generation[0]))
    lanes, rows = np.array(everything).T
    remote.update(lanes, rows, [1.0 if place == kept else 0.0 for place in everything])
    batches = [remote.draw() for _ in range(12)]
    alone = [set(zip(b.lane.tolist(), b.generation.tolist(), strict=True)) == {kept} for b in batches]
    first = alone.index(True)
    assert first >= 3, "batches 2 to 4 had been drawn already"
    assert all(alone[first:]) and first <= 3 + 8, "8 batches are planned at once"
    assert remote.flush() > 0


def test_priorities_of_uniform_draws_are_applied_nowhere_and_damaged_ones_are_told(ring):
    desk = DrawDesk(RingReader(ring))
    remote = in_process(desk, REQUEST)
    batch = remote.draw()
    remote.update(batch.lane, batch.generation, np.ones(16))
    assert remote.flush() == 0
    remote = in_process(desk, replace(REQUEST, draws=DRAWS["windows by priority"]))
    batch = remote.draw()
    remote.update(batch.lane, batch.generation, np.full(16, np.nan))
    with pytest.raises(ReplayError, match="priorit"):
        remote.flush()


def test_slabs_come_as_far_as_there_are_rows_and_each_row_once(ring):
    request = replace(REQUEST, draws=DRAWS["slabs"])
    remote, local = in_process(DrawDesk(RingReader(ring)), request), local_sampler(ring, request)
    slabs = 0
    while local.ready:
        assert_same(remote.draw(), local.draw())
        slabs += 1
    assert slabs > 20
    for _ in range(2):
        with pytest.raises(ReplayError, match="too few rows"):
            remote.draw()


@pytest.mark.parametrize("kind", ["windows", "slabs"])
def test_errors_of_calls_made_before_the_rows_came_are_forgotten(rows, ring_path, kind):
    writer = RingWriter.create(
        ring_path, rows.SPEC, groups=1, lanes_per_group=2, slots=256, window_rows=3, run_id="run"
    )
    request = replace(REQUEST, draws=DRAWS[kind])
    remote = in_process(DrawDesk(RingReader(ring_path)), request, draws=3, calls_ahead=2)
    for _ in range(2):
        with pytest.raises(ReplayError):
            remote.draw()
    insert_episodes(rows, writer)
    local = local_sampler(ring_path, request)
    for _ in range(4):
        assert_same(remote.draw(), local.draw())


def test_slabs_made_before_an_error_are_sent_and_the_next_call_tells_it(ring, monkeypatch):
    request = replace(REQUEST, draws=DRAWS["slabs"])
    remote, local = (
        in_process(DrawDesk(RingReader(ring)), request, draws=4, calls_ahead=0),
        local_sampler(ring, request),
    )
    draw, calls = FifoSampler.draw, []

    def third_fails(self, out=None):
        calls.append(1)
        if len(calls) in (3, 4):
            raise ReplayError("the writer overtook it")
        return draw(self, out)

    expected = [local.draw() for _ in range(3)]
    monkeypatch.setattr(FifoSampler, "draw", third_fails)
    for slab in expected[:2]:
        assert_same(remote.draw(), slab)
    with pytest.raises(ReplayError, match="overtook"):
        remote.draw()
    assert_same(remote.draw(), expected[2])


def test_frame_stacks_come_from_elsewhere(ring):
    stack = FrameStack(frames=2, leaves=("observation.image",))
    request = replace(REQUEST, stack=stack, draws=WindowDraws(n_steps=2, batch_size=4))
    remote, local = in_process(DrawDesk(RingReader(ring)), request), local_sampler(ring, request)
    for _ in range(5):
        assert_same(remote.draw(), local.draw())


def test_clients_draw_independently_of_each_other(ring):
    desk = DrawDesk(RingReader(ring))
    other = DrawRequest(
        client="tool",
        seed=4,
        draws=WindowDraws(n_steps=1, batch_size=5),
        lanes=(1,),
        columns=("observation.image",),
    )
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

    remote = RemoteSampler(start, lambda *update: update, wait, desk.open(REQUEST), draws=2, calls_ahead=2)
    remote.draw()
    assert (len(started), len(answered)) == (3, 1)
    remote.draw()
    assert (len(started), len(answered)) == (3, 1)
    remote.draw()
    assert (len(started), len(answered)) == (4, 2)


def test_batch_is_read_without_a_copy_and_is_read_only(ring):
    batch = to_record_batch(local_sampler(ring).draw())
    first, again = from_record_batch(batch, 0), from_record_batch(batch, 0)
    assert np.shares_memory(again.pairs["observation.image"], first.pairs["observation.image"])
    assert np.shares_memory(again.observation["observation.image"], again.pairs["observation.image"])
    received = pa.ipc.read_record_batch(pa.py_buffer(batch.serialize().to_pybytes()), batch.schema)
    with pytest.raises(ValueError, match="read-only"):
        from_record_batch(received, 0).reward[0] = 0


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
    with pytest.raises(ReplayError, match="holds no draws"):
        from_record_batch(pa.record_batch({"x": [1]}), 0)


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
        by_priority = replace(REQUEST, draws=DRAWS["windows by priority"])
        remote = remote_sampler(actor, by_priority, draws=1, calls_ahead=0)
        batch = remote.draw()
        remote.update(batch.lane, batch.generation, np.ones(16))
        assert remote.flush() == 16
    finally:
        ray.shutdown()
        shutil.rmtree(folder, ignore_errors=True)
