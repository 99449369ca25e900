from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from onibi.platform.config import read_settings, to_mapping
from onibi.platform.errors import ConfigError
from onibi.platform.rewards.bounds import Bounds, value_bounds
from onibi.platform.rewards.mixer import RewardMixer
from onibi.platform.rewards.settings import ExtrinsicSettings, RewardSettings
from onibi.platform.rewards.table import LABELLED, NEVER_ASKED, UNLABELLED, RewardTable
from onibi.platform.rewards.table_component import RetrievalSettings

TABLE = RewardTable(
    version=7,
    caption_keys=np.array([[-1], [0], [1], [2]], np.int32),  # empty, helpful, unlabelled, never asked
    value=np.array([1, 0, 0], np.float32),
    labelled=np.array([LABELLED, UNLABELLED, NEVER_ASKED], np.uint8),
)


@dataclass
class Drawn:
    """The columns of replay.windows.Windows that the mixer reads."""

    reward: Any
    caption_id: Any
    caption_count: Any
    used: Any


def drawn(reward, caption_id, count, used=None):
    reward = np.array(reward, np.float32)
    return Drawn(
        reward,
        np.array(caption_id, np.uint32),
        np.array(count, np.uint16)[..., None],
        np.ones(reward.shape, np.bool_) if used is None else np.array(used),
    )


def both(**intrinsic):
    return RewardSettings(
        extrinsic=ExtrinsicSettings(coefficient=0.5, scale=2.0, clip=3.0),
        intrinsic=RetrievalSettings(coefficient=0.4, **intrinsic),
    )


def test_the_total_is_the_formula_of_oni():
    mixed = RewardMixer(both()).mix(drawn([[1.0, 9.0, -9.0]], [[1, 1, 0]], [[1, 2, 0]]), TABLE)
    assert mixed.components["extrinsic"].tolist() == [[1.0, 1.5, -1.5]]  # ½ · clip(2 r, −3, 3)
    assert mixed.components["intrinsic"] == pytest.approx(np.array([[0.4, 0.05, 0.0]]))  # 0.4 · 1 / N³
    assert mixed.total == pytest.approx(np.array([[1.4, 1.55, -1.5]]))
    assert mixed.total.dtype == np.float32
    assert mixed.clipped_share == pytest.approx(2 / 3)
    assert mixed.table_version == 7


def test_a_terminal_caption_is_paid():
    # The last used step of a window is where an episode ends; nothing about it differs.
    mixed = RewardMixer(both()).mix(drawn([[0.0, 0.0]], [[0, 1]], [[0, 1]], [[True, True]]), TABLE)
    assert mixed.components["intrinsic"].tolist() == [[0.0, pytest.approx(0.4)]]


def test_steps_behind_a_windows_end_pay_nothing_whatever_stands_there():
    mixed = RewardMixer(both()).mix(drawn([[1.0, 99.0]], [[0, 1]], [[0, 1]], [[True, False]]), TABLE)
    assert mixed.total.tolist() == [[1.0, 0.0]]
    assert (mixed.clipped_share, mixed.labelled_share) == (0.0, 1.0)


def test_a_newer_table_pays_rows_that_were_drawn_before():
    later = RewardTable(
        version=8,
        caption_keys=TABLE.caption_keys,
        value=np.array([1, 1, 0], np.float32),
        labelled=np.array([1, 1, 2], np.uint8),
    )
    windows = drawn([[0.0]], [[2]], [[1]])
    mixer = RewardMixer(both())
    assert mixer.mix(windows, TABLE).total.tolist() == [[0.0]]
    assert mixer.mix(windows, later).total == pytest.approx(np.array([[0.4]]))


@pytest.mark.parametrize(
    ("captions", "share"),
    [
        ([1, 1, 2, 2], 0.5),
        ([1, 0, 3, 0], 1.0),  # empty ones and bumps wait for nothing
        ([2, 0, 3, 9], 0.0),  # 9 is newer than the table
        ([0, 0, 3, 3], 1.0),
    ],
)
def test_the_labelled_share_counts_rows_that_have_something_to_ask(captions, share):
    mixed = RewardMixer(both()).mix(drawn([[0.0] * 4], [captions], [[1] * 4]), TABLE)
    assert mixed.labelled_share == share


def test_before_the_first_table_captions_pay_nothing():
    mixed = RewardMixer(both()).mix(drawn([[1.0]], [[1]], [[1]]), None)
    assert (mixed.total.tolist(), mixed.labelled_share, mixed.table_version) == ([[1.0]], 0.0, -1)


def test_without_an_intrinsic_section_only_the_environment_pays():
    mixer = RewardMixer(RewardSettings())
    mixed = mixer.mix(drawn([[1.0]], [[1]], [[1]]), TABLE)
    assert (mixed.total.tolist(), list(mixed.components)) == ([[1.0]], ["extrinsic"])
    with pytest.raises(KeyError, match="intrinsic"):
        mixer.bounds("intrinsic")


def test_mixing_leaves_the_windows_as_they_were():
    windows = drawn([[9.0, 1.0]], [[1, 1]], [[1, 2]])
    RewardMixer(both()).mix(windows, TABLE)
    assert windows.reward.tolist() == [[9.0, 1.0]]


def test_every_reward_lies_within_the_declared_bounds():
    rng = np.random.default_rng(0)
    for extrinsic in (ExtrinsicSettings(coefficient=-2.0, clip=1.0), ExtrinsicSettings(coefficient=0.5, scale=-3.0)):
        mixer = RewardMixer(RewardSettings(extrinsic=extrinsic, intrinsic=RetrievalSettings(coefficient=0.3)))
        mixed = mixer.mix(
            drawn(rng.normal(0, 9, (50, 4)), rng.integers(0, 6, (50, 4)), rng.integers(0, 4, (50, 4))), TABLE
        )
        for name, paid in mixed.components.items():
            assert mixer.bounds(name).low <= paid.min()
            assert paid.max() <= mixer.bounds(name).high


def test_unclipped_rewards_have_no_bounds():
    mixer = RewardMixer(RewardSettings(extrinsic=ExtrinsicSettings(clip=None)))
    assert mixer.bounds("extrinsic") == Bounds(-math.inf, math.inf)
    assert RewardMixer(RewardSettings(extrinsic=ExtrinsicSettings(clip=None, coefficient=0))).bounds(
        "extrinsic"
    ) == Bounds(0, 0)


def test_value_bounds_are_the_discounted_sum_of_the_step_bounds():
    # ½ · 3 / (1 − 0.9) = 15;  + 0.4 / (1 − 0.9) = 4
    assert value_bounds(both(), 0.9) == (pytest.approx(-15.0), pytest.approx(19.0))


def test_declared_episode_bounds_are_used_where_they_are_tighter():
    declared = RewardSettings(
        extrinsic=ExtrinsicSettings(clip=1.0, episode_low=0.0, episode_high=1.0),
        intrinsic=RetrievalSettings(coefficient=0.1, episode_high=6.0),
    )
    assert value_bounds(declared, 0.99) == (0.0, pytest.approx(1.6))  # 1 + 0.1 · 6
    assert value_bounds(declared, 0.5) == (0.0, pytest.approx(1.2))  # 1 + 0.1 · 1/(1 − ½)


@pytest.mark.parametrize(
    ("settings", "discount", "message"),
    [
        (RewardSettings(extrinsic=ExtrinsicSettings(clip=None)), 0.9, "rewards.extrinsic.clip"),
        (RewardSettings(), 1.0, "a discount below 1"),
        (RewardSettings(extrinsic=ExtrinsicSettings(coefficient=0)), 0.9, "nothing to learn"),
        (RewardSettings(), 1.5, "between 0 and 1"),
    ],
)
def test_bounds_that_do_not_follow_are_an_error_that_says_what_to_set(settings, discount, message):
    with pytest.raises(ConfigError, match=message):
        value_bounds(settings, discount)


def test_settings_come_back_from_yaml_and_absent_means_off():
    assert read_settings(RewardSettings, {}) == RewardSettings()
    assert read_settings(RewardSettings, {"intrinsic": {}}).intrinsic == RetrievalSettings()
    assert read_settings(RewardSettings, to_mapping(both())) == both()


@pytest.mark.parametrize(
    ("mapping", "message"),
    [
        ({"intrinsic": {"coefficient": -1.0}}, "intrinsic: coefficient is -1.0"),
        ({"extrinsic": {"clip": 0.0}}, "extrinsic: clip is 0.0"),
        ({"extrinsic": {"episode_low": 2.0, "episode_high": 1.0}}, "above episode_high"),
        ({"intrinsic": {"count_power": -3.0}}, "count_power"),
        ({"intrinsic": {"kind": "rating"}}, "retrieval"),
    ],
)
def test_wrong_settings_are_refused(mapping, message):
    with pytest.raises(ConfigError, match=message):
        read_settings(RewardSettings, mapping)
