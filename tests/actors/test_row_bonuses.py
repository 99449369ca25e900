"""Bonuses that actors compute: against plain counting and direct inversion, in all autoreset modes."""

from __future__ import annotations

import copy
import itertools
from collections import Counter

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from onibi.actors.bonuses.e3b import E3bBonus
from onibi.actors.bonuses.elliptic_memory import EllipticMemory
from onibi.actors.bonuses.row_bonus import Arrival, RowBonusPlace
from onibi.actors.bonuses.row_bonuses import RowBonuses
from onibi.actors.captioners.info import InfoCaptioner, InfoCaptionerSettings
from onibi.actors.rollout import Rollout, RolloutIdentity, RolloutSettings
from onibi.actors.views.leaves import LeavesSettings, LeavesView
from onibi.platform.errors import ConfigError
from onibi.platform.fragment import CaptionText, KeyText
from onibi.platform.policy import NO_WEIGHTS, PolicyStep, Weights, WeightsVersion
from onibi.platform.rewards.bonus_columns import bonus_leaves, bonus_row_columns
from onibi.platform.rewards.bonus_settings import (
    E3bSettings,
    KeyCountsSettings,
    NovelDSettings,
    ObservationCountsSettings,
    RndSettings,
)
from onibi.platform.spec import ROLE_FINAL, ArraySpec, ReplaySpec

PLACES, ENVS, RIDGE = 5, 3, 0.25
OBSERVATION = ArraySpec(name="observation", dtype="float32", shape=(PLACES,))
BONUSES = {
    "heard": KeyCountsSettings(power=1.0),
    "seen": ObservationCountsSettings(power=0.5),
    "capped": ObservationCountsSettings(power=1.0, episode_cap=1.75),
    "novel": NovelDSettings(),
    "e3b": E3bSettings(features=PLACES, ridge=RIDGE, clip=2.0),
    "learners": RndSettings(),
}
SPEC = ReplaySpec(observation=(OBSERVATION,), actions=3, keys_per_caption=1, extra=bonus_row_columns(BONUSES))


class Ring(gym.Env):
    """A walk on a ring of places, seen as a one-hot; it says where it is, but at place 0."""

    observation_space = gym.spaces.Box(0.0, 1.0, (PLACES,), np.float32)
    action_space = gym.spaces.Discrete(3)

    def __init__(self, lane):
        self.rng = np.random.default_rng(lane)

    def reset(self, *, seed=None, options=None):
        self.place, self.left = int(self.rng.integers(PLACES)), int(self.rng.integers(1, 14))
        return self.told()

    def step(self, action):
        self.place, self.left = (self.place + int(action) - 1) % PLACES, self.left - 1
        observation, info = self.told()
        return observation, 1.0, self.left == 0 and self.place % 2 == 0, self.left == 0, info

    def told(self):
        return np.eye(PLACES, dtype=np.float32)[self.place], {
            "caption": f"At {'abcde'[self.place]}."
        } if self.place else {}


class Wanderer:
    version = NO_WEIGHTS

    def initial_state(self, envs):
        return None

    def act(self, observation, state, rng):
        return PolicyStep(action=rng.integers(0, 3, len(observation["observation"])))

    def load(self, weights):
        self.version = weights.version


class Scaled:
    """An encoder: the observation times what was published."""

    def __init__(self, arrays):
        self.scale = arrays["scale"]

    def __call__(self, observation):
        return observation["observation"] * self.scale


def bonuses(envs=ENVS, chosen=BONUSES):
    return RowBonuses(chosen, SPEC, envs, {"e3b": Scaled})


def weights(version, scale):
    return Weights(WeightsVersion(version), {}, {"e3b.scale": np.array(scale, np.float32)})


def rollout(mode, steps=11):
    numbers = itertools.count()
    env = SyncVectorEnv([lambda: Ring(next(numbers))] * ENVS, autoreset_mode=mode)
    return Rollout(
        env,
        LeavesView(LeavesSettings(), env.single_observation_space),
        InfoCaptioner(InfoCaptionerSettings()),
        Wanderer(),
        SPEC,
        RolloutSettings(
            envs_per_actor=ENVS,
            fragment_steps=steps,
            fragment_steps_max=steps,
            fragment_seconds=0.0,
            caption_counts=False,
        ),
        RolloutIdentity(actor=0, incarnation=0, next_sequence=0, seed=4),
        "ring",
        bonuses=bonuses(),
    )


def rows_of(fragments):
    """Each lane's rows in time order, then its head: dictionaries of columns."""
    lanes = [[] for _ in range(ENVS)]
    for fragment in fragments:
        for lane, rows in enumerate(lanes):
            count = int(fragment.rows_per_lane[lane])
            part = [{n: c[lane, k].copy() for n, c in fragment.columns.items()} for k in range(count + 1)]
            rows[-1:] = part  # the head of the last fragment is this one's first row
    return lanes


def expected(rows, scale_of):
    """Columns of each step row by walking along them; ``scale_of(episode_id)``: of the encoder, None for none yet."""
    found, fresh = [], True
    for row, after in itertools.pairwise(rows):
        if row["role"] == ROLE_FINAL:
            fresh = True
            found.append(dict.fromkeys(("bonus.heard", "bonus.seen", "bonus.capped", "bonus.novel.first_visit"), 0))
            continue
        if fresh:
            place = int(row["observation"].argmax())
            seen, paid, fresh = Counter([place]), 0.0, False
        place = int(after["observation"].argmax())
        seen[place] += 1
        told = {
            "bonus.heard": 1 / seen[place] if place else 0.0,
            "bonus.seen": seen[place] ** -0.5,
            "bonus.capped": min(1 / seen[place], 1.75 - paid),
            "bonus.novel.first_visit": float(seen[place] == 1),
        }
        paid += told["bonus.capped"]
        scale = scale_of(int(row["episode_id"]))
        told["bonus.e3b"] = np.nan if scale is None else 1 / (seen[place] - 1 + RIDGE / scale**2)
        found.append(told)
    return found


@pytest.mark.parametrize("mode", list(AutoresetMode))
def test_rows_hold_what_a_walk_along_them_says(mode):
    acting = rollout(mode)
    fragments = [copy.deepcopy(acting.collect(lambda version: None)) for _ in range(3)]
    early = {int(row["episode_id"]) for rows in rows_of(fragments) for row in rows}
    news = lambda version: weights(1, 2.0) if version < 1 else None  # noqa: E731
    fragments += [copy.deepcopy(acting.collect(news)) for _ in range(20)]
    ended = [episode for fragment in fragments for episode in fragment.episodes]
    lanes = rows_of(fragments)
    total = {}
    steps = 0
    for rows in lanes:
        for row, told in zip(rows, expected(rows, lambda episode: None if episode in early else 2.0), strict=False):
            for name, value in told.items():
                assert row[name] == pytest.approx(value, rel=1e-5, nan_ok=True), name
            if row["role"] != ROLE_FINAL:
                steps += 1
                for name in ("heard", "seen", "capped", "e3b"):
                    paid = min(float(row[f"bonus.{name}"]), BONUSES[name].clip)
                    key = int(row["episode_id"]), name
                    total[key] = total.get(key, 0.0) + (0.0 if np.isnan(paid) else paid)
    assert steps > 400
    assert len(ended) > 30
    for episode in ended:
        for name in ("heard", "seen", "capped", "e3b"):
            assert episode.extra[f"return_{name}"] == pytest.approx(total[episode.episode_id, name], rel=1e-5)
        assert episode.extra["return_capped"] <= 1.75 + 1e-6
        assert "return_novel" not in episode.extra
    assert any(episode.extra["return_capped"] == pytest.approx(1.75) for episode in ended), "the cap was reached"


def test_a_new_encoder_is_used_from_the_next_episode_on():
    paying = bonuses(envs=2, chosen={"e3b": BONUSES["e3b"]})
    both, first = np.array([True, True]), np.array([True, False])
    at = [Arrival({"observation": np.eye(PLACES, dtype=np.float32)[[0, place]]}) for place in range(PLACES)]
    paying.load({"e3b.scale": np.float32(1.0), "other.scale": np.float32(9.0)})
    paying.begin(at[0], both)
    assert paying.pay(at[1], both)["bonus.e3b"] == pytest.approx([1 / (1 + RIDGE), 1 / RIDGE])
    paying.load({"e3b.scale": np.float32(3.0)})
    assert paying.pay(at[2], both)["bonus.e3b"] == pytest.approx([1 / (2 + RIDGE), 1 / RIDGE])
    paying.begin(at[3], first)
    paid = paying.pay(at[3], both)["bonus.e3b"]
    assert paid == pytest.approx([9 / (9 + RIDGE), 1 / RIDGE]), "lane 0 has the new one and forgot, lane 1 neither"
    assert paying.pay(at[3], both)["bonus.e3b"][1] == pytest.approx(1 / (1 + RIDGE))


def test_keys_that_nobody_is_asked_about_pay_nothing():
    paying = RowBonuses({"heard": KeyCountsSettings(power=1.0)}, SPEC, 3, {})
    captions = [
        CaptionText("a bump", (KeyText("a bump", askable=False),)),
        CaptionText("", ()),
        CaptionText("bump and deed", (KeyText("a bump", askable=False), KeyText("deed"))),
    ]
    count = np.array([[1, 0], [0, 0], [1, 4]], np.uint16)
    everybody = np.ones(3, np.bool_)
    paid = paying.pay(Arrival({}, captions, count), everybody)["bonus.heard"]
    assert paid.tolist() == [0.0, 0.0, 0.25]


def test_one_hot_features_are_worth_one_by_how_often_they_were_met():
    rng = np.random.default_rng(0)
    memory, met = EllipticMemory(2, 6, 0.1), np.zeros((2, 6))
    for _ in range(300):
        places = rng.integers(0, 6, 2)
        told = memory.take_in(np.eye(6, dtype=np.float32)[places], np.arange(2))
        assert told == pytest.approx([1 / (met[lane, place] + 0.1) for lane, place in enumerate(places)], rel=1e-12)
        met[np.arange(2), places] += 1
    memory.reset(np.array([False, True]))
    assert memory.take_in(np.eye(6, dtype=np.float32)[[0, 0]], np.arange(2))[1] == 10.0


@pytest.mark.parametrize(("ridge", "correlated"), [(0.1, False), (1e-3, True)])
def test_ten_thousand_vectors_leave_the_inverse_as_a_direct_inversion_has_it(ridge, correlated):
    rng = np.random.default_rng(1)
    features, steps = 16, 10_000
    memory, second = EllipticMemory(1, features, ridge), np.eye(features) * ridge
    mixing = rng.normal(size=(features, features)) * (np.logspace(0, -3, features) if correlated else 1.0)
    for step in range(steps):
        vector = (rng.normal(size=features) @ mixing.T).astype(np.float32)
        told = memory.take_in(vector[None], np.arange(1))[0]
        wide = vector.astype(np.float64)
        if step % 500 == 0 or step == steps - 1:
            assert told == pytest.approx(wide @ np.linalg.solve(second, wide), rel=1e-6)
        second += np.outer(wide, wide)
    direct = np.linalg.inv(second)
    assert np.abs(memory.inverse[0] - direct).max() <= (1e-6 if correlated else 1e-9) * np.abs(direct).max()
    assert (memory.inverse[0] == memory.inverse[0].T).all()


def test_leaves_that_are_not_there_are_refused_and_counts_of_captions_are_no_place():
    spec = ReplaySpec(
        observation=(OBSERVATION, ArraySpec(name="observation.caption_counts", dtype="float32", shape=(65,))), actions=2
    )
    assert [leaf.name for leaf in bonus_leaves("a", BONUSES["seen"], spec, numbers=False)] == ["observation"]
    with pytest.raises(ConfigError, match=r"rewards\.bonuses\.a\.leaves names \['observation.x'\]"):
        bonus_leaves("a", ObservationCountsSettings(leaves=("observation.x",)), spec, numbers=False)
    with pytest.raises(ConfigError, match="no observation leaf"):
        bonus_leaves("a", ObservationCountsSettings(leaves=()), spec, numbers=False)


def test_an_encoder_without_weights_pays_nothing_yet():
    bonus = E3bBonus(E3bSettings(features=PLACES), RowBonusPlace(1, (OBSERVATION,), Scaled))
    arrival = Arrival({"observation": np.eye(PLACES, dtype=np.float32)[[1]]})
    bonus.begin(arrival, np.array([True]))
    assert np.isnan(bonus.pay(arrival, np.array([True]))).all()
