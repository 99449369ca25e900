"""What an episode's figures are taken from."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from onibi.actors.episodes import EpisodeBook
from onibi.platform.errors import EnvironmentFault


class OneStep(gym.Env):
    observation_space = gym.spaces.Discrete(2)
    action_space = gym.spaces.Discrete(2)

    def __init__(self, info):
        self.info = info

    def reset(self, *, seed=None, options=None):
        return 0, {}

    def step(self, action):
        return 0, 1.0, True, False, dict(self.info)


def figures_of(*infos):
    """Extra figures of an episode of one step in each lane, by Gymnasium's own vector infos."""
    env = SyncVectorEnv([lambda info=info: OneStep(info) for info in infos], autoreset_mode=AutoresetMode.NEXT_STEP)
    env.reset()
    _, _, terminated, _, told = env.step(np.zeros(len(infos), np.int64))
    book = EpisodeBook(len(infos), 0, 0, 0)
    book.record(np.ones(len(infos), np.float32))
    book.end(np.arange(len(infos)), terminated, told, {})
    env.close()
    return [dict(episode.extra) for episode in book.take()]


@pytest.mark.parametrize("key", ["is_success", "success"])
@pytest.mark.parametrize("value", [True, np.True_, 1, 1.0, np.float32(1)])
def test_success_is_taken_from_where_other_environments_tell_it(key, value):
    assert figures_of({key: value}, {key: type(value)(0)}, {}) == [{"success": 1.0}, {"success": 0.0}, {}]


def test_an_environments_own_figures_count_before_it():
    own = {"episode_figures": {"success": 0.0, "score": 7.0}, "is_success": True}
    assert figures_of(own) == [{"success": 0.0, "score": 7.0}]
    assert figures_of({"episode_figures": {"score": 7.0}, "is_success": True}) == [{"success": 1.0, "score": 7.0}]


@pytest.mark.parametrize("value", ["yes", 3, -1.0, float("nan"), None, {"how": 1}, np.ones(2)])
def test_what_is_no_share_is_no_success(value):
    assert figures_of({"success": value}) == [{}]


@pytest.mark.parametrize("value", [None, float("nan")])
def test_a_figure_that_is_none_or_nan_tells_nothing(value):
    assert figures_of({"episode_figures": {"score": 7.0, "goal": value}}) == [{"score": 7.0}]


@pytest.mark.parametrize("value", ["fell", {"how": "fell"}, np.ones(2)])
def test_a_figure_that_is_no_number_is_refused_by_name(value):
    with pytest.raises(EnvironmentFault, match=r"episode_figures'\]\['cause'\] of environment 0 is .* must be numbers"):
        figures_of({"episode_figures": {"cause": value}})
