"""What the learner's process computes for bonuses: against NumPy, plain counters, and themselves restored."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from onibi.learners.bonuses.bonus_module import ModulePlace
from onibi.learners.bonuses.features import numpy_features
from onibi.learners.bonuses.inverse_dynamics import InverseDynamics
from onibi.learners.bonuses.registry import BONUS_MODULES
from onibi.learners.bonuses.reward_sources import RewardSources, needs_sources
from onibi.learners.bonuses.rnd import NovelDModule, RndModule, noveld
from onibi.learners.bonuses.run_counts import KeyRunCounts, ObservationRunCounts, hash_words
from onibi.platform.config import load_class, read_settings
from onibi.platform.errors import CheckpointError, NonFiniteError
from onibi.platform.replay.ring.reader import RingReader
from onibi.platform.replay.ring.writer import RingWriter
from onibi.platform.replay.row_view import RowView
from onibi.platform.replay.samplers.fifo_sampler import FifoSampler
from onibi.platform.replay.samplers.uniform_sampler import UniformSampler
from onibi.platform.replay.samplers.window_gather import EachRow
from onibi.platform.rewards.bonus_columns import bonus_row_columns
from onibi.platform.rewards.bonus_settings import (
    E3bSettings,
    KeyCountsSettings,
    NovelDSettings,
    ObservationCountsSettings,
    RndSettings,
    visit_column,
)
from onibi.platform.rewards.settings import RewardSettings
from onibi.platform.rewards.table import NEVER_ASKED, UNLABELLED, RewardTable
from onibi.platform.rewards.table_component import RetrievalSettings
from onibi.platform.spec import ROLE_FINAL, ArraySpec, ReplaySpec

PLACES, LANES = 6, 2
ALL = {"n": NovelDSettings(train_rows=16), "r": RndSettings(train_rows=16)}
OBSERVATION = ArraySpec(name="observation", dtype="float32", shape=(PLACES,))
SPEC = ReplaySpec(
    observation=(OBSERVATION,), actions=3, keys_per_caption=1, extra=bonus_row_columns(ALL | {"e": E3bSettings()})
)


class Walks:
    """A ring that walks on a ring of places are written into; all rows are kept in lists besides."""

    def __init__(self, path: Path, spec: ReplaySpec = SPEC) -> None:
        self.spec, self.rng = spec, np.random.default_rng(3)
        self.writer = RingWriter.create(
            path, spec, groups=1, lanes_per_group=LANES, slots=4_000, window_rows=8, run_id="walks"
        )
        self.incarnation, self.sequence = self.writer.register(0), 0
        self.reader = RingReader(path)
        self.places = self.rng.integers(0, PLACES, LANES)
        self.rows = [[] for _ in range(LANES)]  # (place, role, caption)

    def walk(self, steps: int, stay: bool = False) -> None:
        """One more fragment. With ``stay`` nobody moves."""
        columns = {c.name: np.zeros((LANES, steps + 1, *c.shape), c.dtype) for c in self.spec.columns}
        for lane in range(LANES):
            for k in range(steps + 1):
                place, action = int(self.places[lane]), 1 if stay else int(self.rng.integers(0, 3))
                final = k % 10 == 9
                columns["observation"][lane, k] = np.eye(PLACES)[place]
                if k == steps:
                    break
                columns["role"][lane, k] = ROLE_FINAL if final else 0
                self.rows[lane].append((place, columns["role"][lane, k], 0 if final else place))
                if final:
                    continue
                columns["action"][lane, k] = action if self.spec.action is None else action - 1.0
                columns["caption_id"][lane, k] = place
                columns["caption_count"][lane, k] = 1
                if visit_column("n") in columns:
                    columns[visit_column("n")][lane, k] = k % 2
                self.places[lane] = (place + action - 1) % PLACES
        self.writer.insert(
            0,
            incarnation=self.incarnation,
            sequence=self.sequence,
            rows_per_lane=np.full(LANES, steps, np.int32),
            columns=columns,
        )
        self.sequence += 1

    def place(self, name: str = "r", seed: int = 5) -> ModulePlace:
        return ModulePlace(name, self.reader, self.spec, (OBSERVATION,), seed, "cpu")

    def view(self, n: int = 3, batch: int = 32) -> RowView:
        each = EachRow(extra=tuple(c.name for c in self.spec.extra), observation=("observation",))
        sampler = UniformSampler(self.reader, n_steps=n, batch_size=batch, rng=np.random.default_rng(0), each_row=each)
        return RowView(sampler.draw())


@pytest.fixture
def walks(tmp_path):
    made = Walks(tmp_path / "walks.ring")
    yield made
    made.writer.close()
    made.reader.close()


def test_a_bonus_that_cannot_learn_ends_the_run_with_words_about_itself(walks):
    module = RndModule(RndSettings(), walks.place("curiosity"))
    weight = module._network.predictor.layers[0].weight
    for _ in range(9):
        module._training._step(weight.sum() * torch.nan)
    with pytest.raises(NonFiniteError, match=r"^rewards.bonuses.curiosity, step 10: .* 10 times in a row.* its learn"):
        module._training._step(weight.sum() * torch.nan)


def one_hot_view(view):
    """Places of o and o′ of each row."""
    return view.before("observation").argmax(axis=-1), view.after("observation").argmax(axis=-1)


def reference_errors(state, observation):
    """error(o) by the arrays of a checkpoint alone, in float64."""
    arrays = {name: np.asarray(each, np.float64) for name, each in state.items()}

    def network(which, layers):
        mean, variance = (arrays[f"network.{which}.encoder.normalizer.{name}"] for name in ("mean", "variance"))
        x = np.clip((observation - mean) / np.sqrt(variance + 1e-6), -10, 10)
        x = np.maximum(
            x @ arrays[f"network.{which}.encoder.trunk.linear.0.weight"].T
            + arrays[f"network.{which}.encoder.trunk.linear.0.bias"],
            0,
        )
        for layer in range(layers):
            x = x @ arrays[f"network.{which}.layers.{layer}.weight"].T + arrays[f"network.{which}.layers.{layer}.bias"]
            if layer < layers - 1:
                x = np.maximum(x, 0)
        return x

    return ((network("predictor", 2) - network("target", 1)) ** 2).mean(axis=-1)


def test_rnd_pays_the_prediction_error_by_its_running_deviation(walks):
    module = RndModule(RndSettings(train_rows=16), walks.place())
    view = None
    for _ in range(4):
        walks.walk(50)
        module.learn()
    view = walks.view()
    paid = module.pay(view, None)
    state = module.state()
    deviation = np.sqrt(np.float64(state["network.moments.variance"][0]))
    wanted = reference_errors(state, view.after("observation").astype(np.float64)) / deviation
    assert paid.shape == (32, 3)
    assert paid.dtype == np.float32
    assert paid[view.used] == pytest.approx(wanted[view.used], rel=1e-3, abs=1e-5)
    assert int(state["gradient.counters.updates"]) == 4 * 50 * LANES // 16, "each row is in one step"
    assert int(state["network.moments.count"]) == 4 * 50 * LANES // 16 * 16


def test_target_and_predictor_of_rnd_scale_observations_by_those_of_all_rows(walks):
    module = RndModule(RndSettings(train_rows=LANES), walks.place())
    walks.walk(40)
    module.learn()
    state = module.state()
    places = [place for lane in walks.rows for place, _, _ in lane]  # final observations, too
    share = np.bincount(places, minlength=PLACES) / len(places)  # each observation is a one-hot
    for which in ("target", "predictor"):
        scale = {name: state[f"network.{which}.encoder.normalizer.{name}"] for name in ("count", "mean", "variance")}
        assert scale["count"] == len(places) == LANES * 40
        np.testing.assert_allclose(scale["mean"], share, rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(scale["variance"], share * (1 - share), rtol=1e-3, atol=1e-6)


def test_before_the_first_rows_rnd_pays_nothing_at_all(walks):
    walks.walk(10)
    assert (RndModule(RndSettings(), walks.place()).pay(walks.view(), None) == 0).all()


def test_what_is_seen_again_and_again_becomes_familiar_and_the_rest_does_not(walks):
    module = RndModule(RndSettings(train_rows=16, learning_rate=1e-3), walks.place())
    walks.walk(30)
    module.learn()
    for _ in range(25):
        walks.walk(40, stay=True)
        module.learn()
    novelty = module.novelty({"observation": np.eye(PLACES, dtype=np.float32)[None]})[0]
    stayed = {int(place) for place in walks.places}
    known = [novelty[place] for place in stayed]
    new = [novelty[place] for place in range(PLACES) if place not in stayed]
    assert max(known) < 0.2 * min(new)


def test_noveld_is_the_gain_in_novelty_at_first_visits(walks):
    before, after = np.array([[1.0, 4.0, 2.0]], np.float32), np.array([[3.0, 1.0, 2.0]], np.float32)
    assert noveld(before, after, np.array([[1, 1, 0]], np.uint8), 0.5).tolist() == [[2.5, 0.0, 0.0]]
    module = NovelDModule(NovelDSettings(train_rows=16, scale=0.3), walks.place("n"))
    walks.walk(100)
    module.learn()
    view = walks.view()
    told = [module.novelty({"observation": each}) for each in (view.before("observation"), view.after("observation"))]
    wanted = np.maximum(told[1] - np.float32(0.3) * told[0], 0) * view.column(visit_column("n"))
    assert module.pay(view, None)[view.used] == pytest.approx(wanted[view.used])
    assert (wanted[view.used] > 0).any()


def test_run_counts_are_those_of_a_plain_counter(walks):
    observed = ObservationRunCounts(ObservationCountsSettings(scope="global", power=1.0), walks.place())
    heard = KeyRunCounts(KeyCountsSettings(scope="global", power=1.0), walks.place())
    table = RewardTable(
        version=1,
        caption_keys=np.array([[-1], [0], [1], [1], [2]], np.int32),  # 2 and 3 share a key; 5 is newer
        value=np.zeros(3, np.float32),
        labelled=np.array([UNLABELLED, UNLABELLED, NEVER_ASKED], np.uint8),
    )
    for steps in (7, 40, 3):
        walks.walk(steps)
        observed.learn()
        heard.learn()
    seen = Counter(place for lane in walks.rows for place, _, _ in lane)
    told = Counter(caption for lane in walks.rows for _, role, caption in lane if role != ROLE_FINAL)
    view = walks.view()
    _, after = one_hot_view(view)
    assert observed.pay(view, None)[view.used] == pytest.approx([1 / max(1, seen[at]) for at in after[view.used]])
    worth = {0: 0.0, 1: 1 / told[1], 2: 1 / (told[2] + told[3]), 3: 1 / (told[2] + told[3]), 4: 0.0, 5: 1 / told[5]}
    captions = view.batch.caption_id
    assert heard.pay(view, table)[view.used] == pytest.approx([worth[int(at)] for at in captions[view.used]])
    assert heard.pay(view, None)[view.used] == pytest.approx(
        [1 / told[int(at)] if at else 0.0 for at in captions[view.used]]
    )


def test_hashes_of_different_rows_differ_and_are_the_same_in_every_process():
    rng = np.random.default_rng(0)
    one_hot = np.eye(512, dtype=np.float32).view(np.uint64)
    pairs = rng.integers(0, 2, (20_000, 80)).astype(np.float32).view(np.uint64)
    for words in (one_hot, pairs):
        hashed = hash_words(np.ascontiguousarray(words))
        assert len(set(hashed.tolist())) == len({row.tobytes() for row in words})
        filled = np.bincount((hashed % np.uint64(64)).astype(np.int64), minlength=64)
        assert filled.max() < 3 * len(words) / 64 + 12, "no bucket is crowded"
    assert int(hash_words(np.array([[1, 2, 3]], np.uint64))[0]) == 1997461084795314664, (
        "a checkpoint's counts hang on it"
    )


@pytest.mark.parametrize("kind", sorted(BONUS_MODULES))
def test_a_restored_module_goes_on_bit_for_bit(walks, kind):
    chosen = {
        "e3b": E3bSettings(train_rows=16, features=4),
        "key_counts": KeyCountsSettings(scope="global"),
        "noveld": NovelDSettings(train_rows=16),
        "observation_counts": ObservationCountsSettings(scope="global", table_rows=4096),
        "rnd": RndSettings(train_rows=16),
    }[kind]
    make = load_class(BONUS_MODULES, kind)
    first = make(chosen, walks.place("n"))
    walks.walk(45)
    first.learn()
    state = first.state()
    second = make(chosen, walks.place("n", seed=99))
    second.restore(state)
    walks.walk(45)
    first.learn()
    second.learn()
    ours, theirs = first.state(), second.state()
    assert ours.keys() == theirs.keys()
    for name, array in ours.items():
        np.testing.assert_array_equal(array, theirs[name], err_msg=name)
    changed = [name for name in state if not np.array_equal(state[name], ours[name])]
    assert changed, "it has learnt between"


def test_a_state_of_other_settings_is_refused(walks):
    walks.walk(20)
    state = RndModule(RndSettings(features=8), walks.place()).state()
    with pytest.raises(CheckpointError, match="does not fit these settings"):
        RndModule(RndSettings(features=16), walks.place()).restore(state)
    counts = ObservationRunCounts(ObservationCountsSettings(scope="global", table_rows=2048), walks.place())
    with pytest.raises(CheckpointError, match="table_rows is 4096"):
        ObservationRunCounts(ObservationCountsSettings(scope="global", table_rows=4096), walks.place()).restore(
            counts.state()
        )


@pytest.mark.parametrize("continuous", [False, True])
def test_the_inverse_model_learns_the_action_and_actors_compute_its_features_without_torch(tmp_path, continuous):
    spec = ReplaySpec(
        observation=(OBSERVATION,),
        actions=0 if continuous else 3,
        keys_per_caption=1,
        action=ArraySpec(name="action", dtype="float32", shape=(1,)) if continuous else None,
        action_low=(-1.0,) if continuous else (),
        action_high=(1.0,) if continuous else (),
    )
    walks = Walks(tmp_path / "walks.ring", spec)
    module = InverseDynamics(E3bSettings(train_rows=32, features=4, hidden=(32,), learning_rate=5e-3), walks.place("e"))
    for _ in range(40):
        walks.walk(100)
        module.learn()
    figures = module.metrics()
    assert figures["loss"] < (0.05 if continuous else 0.2)
    assert continuous or figures["accuracy"] > 0.9
    observation = {"observation": np.random.default_rng(0).normal(size=(7, PLACES)).astype(np.float32)}
    told = numpy_features((OBSERVATION,))(module.weights())(observation)
    with torch.no_grad():
        wanted = module._model.features({"observation": torch.from_numpy(observation["observation"])}).numpy()
    assert told == pytest.approx(wanted, rel=1e-4, abs=1e-5)
    walks.writer.close()
    walks.reader.close()


def test_sources_give_a_batch_what_its_components_need_whatever_drew_it(walks):
    bonuses = {**ALL, "e": E3bSettings(train_rows=16, features=4)}
    rewards = RewardSettings(bonuses=bonuses, intrinsic=RetrievalSettings(episode_cap=1.0))
    assert needs_sources(rewards)
    assert not needs_sources(RewardSettings(intrinsic=RetrievalSettings()))
    sources = RewardSources(rewards, walks.reader, SPEC, stack=None, seed=1, device="cpu")
    walks.walk(80)
    sources.learn()
    for batch in (walks.view().batch, FifoSampler(walks.reader, rows=5, batch_lanes=2).draw()):
        told = sources.gather(batch, None)
        assert set(told.rows) == {"e"}
        assert set(told.modules) == {"n", "r"}
        assert set(told.paid_before) == {"intrinsic"}
        for part in (told.rows, told.modules, told.paid_before):
            assert all(array.shape == batch.reward.shape for array in part.values())
    assert all(name.startswith("e.") for name in sources.weights())
    assert {name.partition(".")[0] for name in sources.state()} == {"e", "n", "r"}
    assert sources.metrics()["bonus/r_steps"] == 10
    with pytest.raises(CheckpointError, match=r"rewards\.bonuses\.r"):
        sources.restore({name: each for name, each in sources.state().items() if not name.startswith("r.")})


def test_schedules_follow_the_steps_of_the_run_of_which_a_ring_may_have_a_third(walks):
    ramp = {"kind": "retrieval", "coefficient": {"start": 0.0, "end": 1.0, "env_steps": 1_000}}
    rewards = read_settings(RewardSettings, {"intrinsic": ramp})
    walks.walk(40)
    batch = walks.view().batch
    inserted = walks.reader.snapshot().inserted_rows
    sources = RewardSources(
        rewards, walks.reader, SPEC, stack=None, seed=1, device="cpu", steps_before=100, steps_per_row=3
    )
    assert sources.gather(batch, None).env_steps == 100 + 3 * inserted > 100
