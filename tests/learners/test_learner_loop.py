"""The loop between feed and learner, for each kind of batch: priorities go back, weights go out, figures are of the
rows that are learned from."""

from __future__ import annotations

import tempfile
from collections import Counter

import numpy as np
import pytest
from safetensors.numpy import load_file

from onibi.learners.learner import Update
from onibi.learners.learner_loop import LearnerLoop, batch_metrics, learning_rows
from onibi.platform.errors import NonFiniteError, TrainingError
from onibi.platform.policy import Weights, weights_version
from onibi.platform.replay.feed import ReplayFeed
from onibi.platform.replay.limiter import DrawnWord, Limiter
from onibi.platform.replay.ring.file import drawn_path
from onibi.platform.replay.ring.reader import RingReader
from onibi.platform.replay.ring.writer import RingWriter
from onibi.platform.replay.samplers.draws import PrioritySettings, SequenceDraws, SlabDraws, WindowDraws
from onibi.platform.rewards.mixer import RewardMixer
from onibi.platform.rewards.settings import ExtrinsicSettings, RewardSettings
from onibi.platform.rewards.table import RewardTable
from onibi.platform.spec import ROLE_FINAL, ArraySpec, ReplaySpec

SPEC = ReplaySpec(observation=(ArraySpec(name="observation", dtype="float32"),), actions=2, keys_per_caption=1)
REWARDS = RewardSettings(extrinsic=ExtrinsicSettings(clip=None))
LANES, ROWS = 2, 12  # a fragment: 11 steps, the last one terminates, and a final row
DRAWS = {
    "windows": WindowDraws(n_steps=2, batch_size=6),
    "prioritized": WindowDraws(n_steps=2, batch_size=6, priorities=PrioritySettings(exponent=1.0)),
    "sequences": SequenceDraws(length=4, burn_in=2, period=2, batch_size=3, priorities=PrioritySettings(exponent=1.0)),
    "slabs": SlabDraws(rows=6, batch_lanes=2),
}


class Recorder:
    """Learns nothing: notes what it is given, and makes ``steps`` gradient steps of each batch."""

    def __init__(self, steps: int = 1, updates: int = 0) -> None:
        self.updates, self.steps = updates, steps
        self.rewards: list[np.ndarray] = []
        self.starts: Counter[tuple[int, int]] = Counter()
        self.favourite: tuple[int, int] | None = None

    def update(self, batch, reward) -> Update:
        self.updates += self.steps
        assert reward.shape == batch.reward.shape
        self.rewards.append(reward.copy())
        names = list(zip(batch.lane.tolist(), batch.generation.tolist(), strict=True))
        self.starts.update(names)
        self.favourite = self.favourite or names[0]
        priorities = np.array([1.0 if name == self.favourite else 1e-4 for name in names], np.float32)
        return Update({"loss": 0.5}, priorities)

    def weights(self, version) -> Weights:
        return Weights(version, {"updates": np.array(self.updates)})


@pytest.fixture
def make_feed(tmp_path):
    """Ten episodes in each of two lanes, the rewards of row k being k, chosen by weights of update k."""
    path = tmp_path / "loop.ring"
    writer = RingWriter.create(path, SPEC, groups=1, lanes_per_group=LANES, slots=400, window_rows=8, run_id="loop")
    incarnation = writer.register(0)
    for sequence in range(10):
        row = sequence * ROWS + np.arange(ROWS + 1)
        columns = {c.name: np.zeros((LANES, ROWS + 1, *c.shape), c.dtype) for c in SPEC.columns}
        columns["observation"][:] = row
        columns["step"][:] = row % ROWS
        columns["reward"][:, : ROWS - 1] = row[: ROWS - 1]
        columns["policy_version"][:, : ROWS - 1] = [weights_version(1, int(k)) for k in row[: ROWS - 1]]
        columns["terminated"][:, ROWS - 2] = 1
        columns["role"][:, ROWS - 1] = ROLE_FINAL
        rows_per_lane = np.full(LANES, ROWS, np.int32)
        writer.insert(0, incarnation=incarnation, sequence=sequence, rows_per_lane=rows_per_lane, columns=columns)
    DrawnWord.create(drawn_path(path))
    limiter = Limiter(ratio=1e6, minimum_rows=1, tolerance_rows=1e9)
    feeds = []

    def make(kind):
        feeds.append(ReplayFeed(RingReader(path), DRAWS[kind], limiter, np.random.default_rng(0)))
        return feeds[-1]

    yield make
    for feed in feeds:
        feed.close()
    writer.close()


def loop_of(learner, feed, published, period=10):
    return LearnerLoop(learner, feed, RewardMixer(REWARDS), 0, published.append, period)


@pytest.mark.parametrize("kind", sorted(DRAWS))
def test_rewards_of_every_kind_of_batch_have_its_shape_and_figures_are_of_the_rows_learned_from(kind, make_feed):
    feed, learner = make_feed(kind), Recorder(updates=500)
    loop = loop_of(learner, feed, [])
    assert loop.ready()
    loop.update()
    batch = feed._buffers[feed._turn]
    metrics = loop.report().metrics
    rows = learning_rows(batch)
    if kind in ("windows", "prioritized"):
        learnt = batch.generation[:, None] + np.arange(2)
        learnt = np.where(batch.used, learnt, 0)
        ages = 500 - batch.generation
        mean_reward = learnt.mean()
    else:
        first = batch.first_row if kind == "sequences" else batch.generation
        number = first + np.arange(6)[:, None] if kind == "sequences" else first[:, None] + np.arange(6)
        learnt = number[rows]
        assert (learnt % ROWS != ROWS - 1).all(), "no final row"
        ages, mean_reward = 500 - learnt, learnt.mean()
    assert metrics["learner/data_age_mean_updates"] == pytest.approx(ages.mean())
    assert metrics["learner/data_age_max_updates"] == ages.max()
    assert metrics["learner/reward_extrinsic"] == pytest.approx(mean_reward, rel=1e-6)
    assert metrics["learner/loss"] == 0.5


@pytest.mark.parametrize("kind", ["prioritized", "sequences"])
def test_priorities_of_an_update_choose_what_is_drawn_next(kind, make_feed):
    learner = Recorder()
    loop = loop_of(learner, make_feed(kind), [])
    for _ in range(150):
        loop.update()
    share = learner.starts[learner.favourite] / sum(learner.starts.values())
    assert share > 0.4, "the one start of priority 1 among starts of 0.0001"


def test_priorities_bear_the_version_of_the_table_that_they_were_made_with(make_feed):
    learner, feed = Recorder(), make_feed("sequences")
    given = []
    loop = loop_of(learner, feed, [])
    feed.update_priorities = lambda _batch, _priorities, version: given.append(version)
    loop.update()
    no_captions = np.zeros((0, 1), np.int32), np.zeros(0, np.float32), np.zeros(0, np.uint8)
    loop.set_table(RewardTable(7, *no_captions))
    loop.update()
    assert given == [-1, 7]


def test_without_priorities_every_start_is_drawn_alike(make_feed):
    learner = Recorder()
    loop = loop_of(learner, make_feed("windows"), [])
    for _ in range(150):
        loop.update()
    assert learner.starts[learner.favourite] / sum(learner.starts.values()) < 0.05


@pytest.mark.parametrize(("steps", "expected"), [(1, [10, 20, 30]), (4, [12, 20, 32]), (25, [25, 50, 75])])
def test_weights_go_out_whenever_the_period_is_full_however_many_steps_an_update_makes(steps, expected, make_feed):
    learner, published = Recorder(steps), []
    loop = loop_of(learner, make_feed("windows"), published)
    while len(published) < 3:
        loop.update()
    assert [int(weights.arrays["updates"]) for weights in published] == expected
    assert [weights.version for weights in published] == [weights_version(0, updates) for updates in expected]


def test_weights_go_out_at_the_start_where_there_are_updates(make_feed):
    published = []
    loop_of(Recorder(updates=0), make_feed("windows"), published)
    assert published == []
    loop_of(Recorder(updates=7), make_feed("windows"), published)
    assert [weights.version for weights in published] == [weights_version(0, 7)]


def test_a_slab_of_final_rows_has_no_ages(make_feed):
    feed = make_feed("slabs")
    batch = feed.draw()
    mixed = RewardMixer(REWARDS).mix(batch, None)
    assert "learner/data_age_mean_updates" in batch_metrics(batch, mixed, 3)
    batch.used[:] = False
    assert batch_metrics(batch, mixed, 3) == {"learner/labelled_share": 1.0, "learner/reward_clipped_share": 0.0}


def test_the_batch_that_could_not_be_learned_from_is_in_the_file_that_the_message_names(make_feed, tmp_path):
    class Broken(Recorder):
        def update(self, batch, reward) -> Update:
            if self.updates == 3:
                raise NonFiniteError("update 3: not finite 10 times in a row.")
            return super().update(batch, reward)

    learner, feed = Broken(), make_feed("windows")
    loop = LearnerLoop(learner, feed, RewardMixer(REWARDS), 0, None, 10, faults=tmp_path / "faults")
    for _ in range(3):
        loop.update()
    with pytest.raises(TrainingError, match=r"10 times in a row\. The last of these batches is kept in ") as raised:
        loop.update()
    (path,) = (tmp_path / "faults").iterdir()
    assert str(raised.value).endswith(str(path))
    kept, batch = load_file(path), feed._buffers[feed._turn]
    np.testing.assert_array_equal(kept["generation"], batch.generation)
    np.testing.assert_array_equal(kept["mixed_reward"], batch.reward)


def test_a_batch_that_cannot_be_kept_anywhere_does_not_hide_what_was_wrong_with_it(make_feed, tmp_path, monkeypatch):
    class Diverged(Recorder):
        def update(self, batch, reward) -> Update:
            raise NonFiniteError("update 3: not finite 10 times in a row.")

    (tmp_path / "taken").write_text("a file", encoding="utf-8")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "nowhere"))
    loop = LearnerLoop(Diverged(), make_feed("windows"), RewardMixer(REWARDS), 0, None, 10, faults=tmp_path / "taken")
    with pytest.raises(NonFiniteError, match=r"^update 3: not finite 10 .* could not be kept: .*nowhere"):
        loop.update()


def test_the_delay_of_publishing_is_told_apart_from_the_age_of_the_data(make_feed):
    published = []
    loop = loop_of(Recorder(), make_feed("windows"), published, period=2)
    for _ in range(3):
        loop.update()
    assert "learner/publish_delay_max_updates" not in loop.report().metrics  # on its way
    loop.weights_arrived(published[0].version)
    loop.update()
    metrics = loop.report().metrics
    assert metrics["learner/publish_delay_max_updates"] == metrics["learner/publish_delay_mean_updates"] == 1.0  # 3 − 2
    assert metrics["learner/publish_delay_max_seconds"] > 0
    assert "learner/publish_delay_max_updates" not in loop.report().metrics


def test_a_loop_without_publisher_learns_all_the_same(make_feed):
    learner = Recorder(updates=10)
    loop = LearnerLoop(learner, make_feed("windows"), RewardMixer(REWARDS), 0, None, 1)
    loop.update()
    assert learner.updates == 11


class Broken(Recorder):
    """A learner of a user's, whose module this file stands for."""

    def update(self, batch, reward):
        raise RuntimeError("shelf fell")


def test_what_a_learner_of_ones_own_raises_is_told_with_its_line(make_feed):
    loop = loop_of(Broken(), make_feed("windows"), [])
    with pytest.raises(TrainingError, match=r"RuntimeError: shelf fell \(.*test_learner_loop\.py:\d+\)"):
        loop.update()
