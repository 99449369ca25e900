"""Bonuses, products, schedules and caps in the mixer, against sums by hand and the declared bounds."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onibi.platform.config import read_settings, to_mapping
from onibi.platform.errors import TrainingError
from onibi.platform.rewards.bonus_settings import E3bSettings, KeyCountsSettings, ObservationCountsSettings, RndSettings
from onibi.platform.rewards.bounds import Bounds, value_bounds
from onibi.platform.rewards.coefficient import ScheduleSettings, coefficient_at
from onibi.platform.rewards.count_bonus import key_count_bonus
from onibi.platform.rewards.mixer import RewardMixer, Sources
from onibi.platform.rewards.settings import ExtrinsicSettings, RewardSettings
from onibi.platform.rewards.table import LABELLED, NEVER_ASKED, RewardTable
from onibi.platform.rewards.table_component import RetrievalSettings

TABLE = RewardTable(
    version=1,
    caption_keys=np.array([[-1], [0], [1]], np.int32),
    value=np.array([1, 0], np.float32),
    labelled=np.array([LABELLED, NEVER_ASKED], np.uint8),
)


@dataclass
class Rows:
    """What the mixer reads of a batch."""

    reward: Any
    caption_id: Any
    caption_count: Any
    used: Any


def rows(reward, heard=None, used=None):
    reward = np.array(reward, np.float32)
    heard = np.zeros(reward.shape) if heard is None else np.array(heard)
    return Rows(
        reward,
        heard.astype(np.uint32),
        np.ones((*reward.shape, 1), np.uint16),
        np.ones(reward.shape, np.bool_) if used is None else np.array(used),
    )


def test_bonuses_are_added_with_their_coefficients_and_clipped_before():
    mixer = RewardMixer(
        RewardSettings(
            bonuses={"e3b": E3bSettings(coefficient=0.5, clip=2.0), "rnd": RndSettings(coefficient=0.25, clip=4.0)}
        )
    )
    sources = Sources(
        rows={"e3b": np.array([[1.0, 3.0, np.nan, 7.0]], np.float32)},
        modules={"rnd": np.array([[2.0, 8.0, 0.0, 7.0]], np.float32)},
    )
    mixed = mixer.mix(rows([[1.0, 0.0, 0.0, 9.0]], used=[[True, True, True, False]]), None, sources)
    assert mixed.components["e3b"].tolist() == [[0.5, 1.0, 0.0, 0.0]]
    assert mixed.components["rnd"].tolist() == [[0.5, 1.0, 0.0, 0.0]]
    assert mixed.total.tolist() == [[2.0, 2.0, 0.0, 0.0]]
    assert mixed.total.dtype == np.float32
    assert mixed.metrics["reward_missing_share/e3b"] == pytest.approx(1 / 3)
    assert mixed.metrics["reward_clipped_share/e3b"] == pytest.approx(1 / 3)
    assert mixed.metrics["reward_clipped_share/rnd"] == pytest.approx(1 / 3)
    assert (mixer.bounds("e3b"), mixer.bounds("rnd")) == (Bounds(0.0, 1.0), Bounds(0.0, 1.0))


def test_what_is_in_a_product_is_multiplied_and_not_added_unless_a_list_says_so():
    bonuses = {"rnd": RndSettings(coefficient=2.0), "seen": ObservationCountsSettings(coefficient=1.0)}
    intrinsic = RetrievalSettings(coefficient=0.5)
    sources = Sources(
        rows={"seen": np.array([[0.25, 1.0]], np.float32)}, modules={"rnd": np.array([[3.0, 1.0]], np.float32)}
    )
    batch = rows([[1.0, 1.0]], heard=[[1, 0]])
    mixed = RewardMixer(RewardSettings(intrinsic=intrinsic, bonuses=bonuses, products=(("intrinsic", "rnd"),))).mix(
        batch, TABLE, sources
    )
    assert mixed.total.tolist() == [[1.0 + 0.25 + 0.5 * 6.0, 1.0 + 1.0]]
    assert mixed.metrics["reward_product/intrinsic-rnd"] == 1.5
    assert mixed.components["rnd"].tolist() == [[6.0, 2.0]]
    mixed = RewardMixer(
        RewardSettings(intrinsic=intrinsic, bonuses=bonuses, products=(("intrinsic", "rnd"), ("rnd",)))
    ).mix(batch, TABLE, sources)
    assert mixed.total.tolist() == [[1.0 + 0.25 + 3.0 + 6.0, 1.0 + 1.0 + 2.0]]


def test_a_schedule_goes_from_start_to_end_and_stays_there():
    schedule = ScheduleSettings(start=1.0, end=0.2, env_steps=100)
    assert [coefficient_at(schedule, steps) for steps in (0, 50, 100, 10**9)] == pytest.approx([1.0, 0.6, 0.2, 0.2])
    mixer = RewardMixer(RewardSettings(bonuses={"rnd": RndSettings(coefficient=schedule)}))
    assert mixer.scheduled
    assert not RewardMixer(RewardSettings(bonuses={"rnd": RndSettings()})).scheduled
    paid = [
        mixer.mix(rows([[0.0]]), None, Sources(modules={"rnd": np.ones((1, 1), np.float32)}, env_steps=steps))
        for steps in (0, 50, 200)
    ]
    assert [float(mixed.total[0, 0]) for mixed in paid] == pytest.approx([1.0, 0.6, 0.2])
    assert paid[1].metrics["coefficient/rnd"] == pytest.approx(0.6)
    assert mixer.bounds("rnd") == Bounds(0.0, 5.0), "the bounds hold at any time"
    assert value_bounds(mixer.settings, 0.0) == (-10.0, 15.0)


def test_an_episode_cap_pays_what_is_left_of_it():
    mixer = RewardMixer(RewardSettings(intrinsic=RetrievalSettings(coefficient=0.5, episode_cap=2.5)))
    before = np.array([[0.0, 2.0, 2.5, 9.0]], np.float32)
    mixed = mixer.mix(rows([[0.0] * 4], heard=[[1] * 4]), TABLE, Sources(paid_before={"intrinsic": before}))
    assert mixed.components["intrinsic"].tolist() == [[0.5, 0.25, 0.0, 0.0]]
    assert mixed.metrics["reward_capped_share/intrinsic"] == 0.75
    assert value_bounds(mixer.settings, 0.99)[1] == pytest.approx(10 / 0.01 + 0.5 * 2.5)


def test_a_source_that_is_missing_is_a_fault_and_not_a_zero():
    mixer = RewardMixer(RewardSettings(bonuses={"rnd": RndSettings()}))
    with pytest.raises(TrainingError, match="component 'rnd'"):
        mixer.mix(rows([[0.0]]), None)


def test_settings_with_everything_come_back_from_their_mapping():
    told = {
        "intrinsic": {"coefficient": {"start": 1.0, "end": 0.0, "env_steps": 10}, "episode_cap": 3.0},
        "bonuses": {"a": {"kind": "noveld", "scale": 0.1}, "b": {"kind": "key_counts", "scope": "global"}},
        "products": [["intrinsic", "a"], ["b"]],
    }
    read = read_settings(RewardSettings, told)
    assert read.intrinsic.coefficient == ScheduleSettings(start=1.0, end=0.0, env_steps=10)
    assert read.bonuses["b"] == KeyCountsSettings(scope="global")
    assert read.terms == (("extrinsic",), ("intrinsic", "a"), ("b",))
    assert read_settings(RewardSettings, to_mapping(read)) == read


def test_key_counts_pay_the_rarest_key_that_somebody_may_be_asked_about():
    table = RewardTable(
        version=1,
        caption_keys=np.array([[-1, -1], [0, 1], [1, -1]], np.int32),
        value=np.zeros(2, np.float32),
        labelled=np.array([LABELLED, NEVER_ASKED], np.uint8),
    )
    captions = np.array([0, 1, 2, 3])  # empty; two keys; a bump; newer than the table
    counts = np.array([[0, 0], [4, 1], [1, 0], [9, 16]])
    assert key_count_bonus(table, captions, counts, 0.5).tolist() == [0.0, 0.5, 0.0, pytest.approx(1 / 3)]
    assert key_count_bonus(None, captions, counts, 1.0).tolist() == [0.0, 1.0, 1.0, pytest.approx(1 / 9)]


coefficients = st.one_of(
    st.floats(0, 3),
    st.builds(ScheduleSettings, start=st.floats(0, 3), end=st.floats(0, 3), env_steps=st.integers(1, 1000)),
)


@st.composite
def reward_settings(draw):
    chosen = RewardSettings(
        extrinsic=ExtrinsicSettings(coefficient=draw(st.floats(-2, 2)), clip=draw(st.floats(0.1, 5))),
        intrinsic=draw(st.none() | st.builds(RetrievalSettings, coefficient=coefficients)),
        bonuses={
            "e3b": E3bSettings(coefficient=draw(coefficients), clip=draw(st.floats(0.1, 5))),
            "rnd": RndSettings(coefficient=draw(coefficients), clip=draw(st.floats(0.1, 5))),
        },
    )
    names = draw(st.lists(st.sampled_from(chosen.components), min_size=2, max_size=3, unique=True))
    return RewardSettings(
        extrinsic=chosen.extrinsic,
        intrinsic=chosen.intrinsic,
        bonuses=chosen.bonuses,
        products=draw(st.sampled_from([(), (tuple(names),)])),
    )


@settings(max_examples=150, deadline=None)
@given(reward_settings(), st.integers(0, 2**32 - 1), st.integers(0, 2000), st.floats(0.0, 0.99))
def test_total_and_returns_lie_in_the_bounds_and_the_total_is_the_plain_sum_of_the_terms(chosen, seed, steps, discount):
    rng = np.random.default_rng(seed)
    shape = (4, 6)
    batch = rows(rng.normal(0, 5, shape), rng.integers(0, 3, shape), rng.random(shape) < 0.8)
    sources = Sources(
        rows={"e3b": np.where(rng.random(shape) < 0.2, np.nan, rng.exponential(2, shape)).astype(np.float32)},
        modules={"rnd": rng.exponential(3, shape).astype(np.float32)},
        env_steps=steps,
    )
    mixer = RewardMixer(chosen)
    mixed = mixer.mix(batch, TABLE, sources)
    slack = 1e-5
    for name, paid in mixed.components.items():
        assert mixer.bounds(name).low - slack <= paid.min()
        assert paid.max() <= mixer.bounds(name).high + slack
    plain = np.zeros(shape)
    for at in np.ndindex(*shape):
        for term in chosen.terms:
            plain[at] += math.prod(float(mixed.components[name][at]) for name in term)
    assert mixed.total == pytest.approx(plain, rel=1e-4, abs=1e-4)
    assert (mixed.total[~batch.used] == 0).all()
    low, high = value_bounds(chosen, discount) if any(mixed.total.ravel()) else (-math.inf, math.inf)
    returns = (mixed.total * discount ** np.arange(shape[1])).sum(axis=1)
    assert low - 1e-3 <= returns.min()
    assert returns.max() <= high + 1e-3
