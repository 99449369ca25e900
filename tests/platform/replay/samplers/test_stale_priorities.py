"""Priorities know the version of the reward table that they were made with; draws by outdated ones are counted."""

from __future__ import annotations

import numpy as np
import pytest

from onibi.platform.replay.feed import ReplayFeed
from onibi.platform.replay.limiter import DrawnWord, Limiter
from onibi.platform.replay.prefetched_feed import PrefetchedFeed
from onibi.platform.replay.ring.file import drawn_path
from onibi.platform.replay.ring.reader import RingReader
from onibi.platform.replay.ring.writer import RingWriter
from onibi.platform.replay.samplers.draws import PrioritySettings, SequenceDraws, WindowDraws
from onibi.platform.replay.samplers.prioritized_sampler import PrioritizedSampler
from onibi.platform.replay.samplers.sequence_sampler import SequenceSampler
from onibi.platform.spec import ArraySpec, ReplaySpec

SPEC = ReplaySpec(observation=(ArraySpec(name="observation", dtype="float32", shape=(2,)),), actions=2)
LANES, ROWS, SLOTS, BATCH = 2, 64, 300, 16
FREE = Limiter(ratio=1.0, minimum_rows=1, tolerance_rows=1e12)


class Store:
    """A ring of one endless episode in each lane."""

    def __init__(self, folder) -> None:
        self.path = folder / "stale.ring"
        self._writer = RingWriter.create(
            self.path, SPEC, groups=1, lanes_per_group=LANES, slots=SLOTS, window_rows=4, run_id="stale"
        )
        self._incarnation, self._sequence = self._writer.register(0), 0
        DrawnWord.create(drawn_path(self.path))
        self.fill()

    def fill(self) -> None:
        columns = {column.name: np.zeros((LANES, ROWS + 1, *column.shape), column.dtype) for column in SPEC.columns}
        columns["step"][:] = self._sequence * ROWS + np.arange(ROWS + 1)
        self._writer.insert(
            0,
            incarnation=self._incarnation,
            sequence=self._sequence,
            rows_per_lane=np.full(LANES, ROWS, np.int32),
            columns=columns,
        )
        self._sequence += 1

    def close(self) -> None:
        self._writer.close()


@pytest.fixture
def store(tmp_path):
    made = Store(tmp_path)
    yield made
    made.close()


def windows(reader):
    return PrioritizedSampler(
        reader, n_steps=1, batch_size=BATCH, rng=np.random.default_rng(0), exponent=1.0, batches_ahead=1
    )


def sequences(reader):
    return SequenceSampler(
        reader, length=2, burn_in=2, batch_size=BATCH, rng=np.random.default_rng(0), exponent=1.0, period=1
    )


def rate(sampler, lanes, version):
    """Priority 1 for every row of ``lanes``, made with the rewards of ``version``."""
    names = np.array([(lane, row) for lane in lanes for row in range(ROWS)])
    assert sampler.update(names[:, 0], names[:, 1], np.ones(len(names)), version) == len(names)


@pytest.mark.parametrize("make", [windows, sequences])
def test_draws_by_priorities_of_an_older_table_are_counted(store, make):
    reader = RingReader(store.path)
    sampler = make(reader)
    sampler.draw()
    rate(sampler, [0, 1], 3)
    for _ in range(10):
        sampler.draw()
    assert sampler.stale_draws == 0
    rate(sampler, [0], 4)
    outdated = sum(np.count_nonzero(sampler.draw().lane == 1) for _ in range(20))
    assert sampler.stale_draws == outdated > 50

    again = make(RingReader(store.path))
    again.restore(sampler.state())
    outdated += np.count_nonzero(again.draw().lane == 1)
    assert again.stale_draws == outdated

    rate(again, [1], 4)
    again.draw()
    assert again.stale_draws == outdated


def test_a_first_priority_is_never_outdated(store):
    sampler = windows(RingReader(store.path))
    sampler.draw()
    rate(sampler, [0], 3)
    rate(sampler, [1], 4)
    for _ in range(SLOTS // ROWS + 1):  # over all that were rated
        store.fill()
    for _ in range(20):
        assert sampler.draw().generation.min() >= ROWS
    assert sampler.stale_draws == 0


def test_a_state_from_before_versions_were_kept_is_taken_as_first_priorities(store):
    sampler = windows(RingReader(store.path))
    sampler.draw()
    rate(sampler, [0, 1], 3)
    state = sampler.state()
    state["table"] = {
        name: value
        for name, value in state["table"].items()
        if name not in ("version", "newest_version", "stale_draws")
    }
    again = windows(RingReader(store.path))
    again.restore(state)
    again.draw()
    assert again.stale_draws == 0


@pytest.mark.parametrize("ahead", [0, 1])
@pytest.mark.parametrize(
    "draws",
    [
        WindowDraws(n_steps=1, batch_size=BATCH, priorities=PrioritySettings()),
        SequenceDraws(length=2, burn_in=2, period=1, batch_size=BATCH, priorities=PrioritySettings()),
    ],
)
def test_a_feed_tells_them_as_a_metric(store, draws, ahead):
    plain = ReplayFeed(
        RingReader(store.path), draws, FREE, np.random.default_rng(0), buffers=PrefetchedFeed.buffers_for(1)
    )
    feed = PrefetchedFeed(plain, 1) if ahead else plain
    for version in (0, 0, 1, 1):
        for _ in range(60):  # nearly every row is rated
            while not feed.may_draw():
                pass
            batch = feed.draw()
            feed.update_priorities(batch, np.ones(BATCH), version)
        if version == 0:
            assert feed.figures()["replay/stale_priority_draws"] == 0
    assert 60 < feed.figures()["replay/stale_priority_draws"] < 120 * BATCH
    feed.close()
