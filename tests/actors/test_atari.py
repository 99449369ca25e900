"""Atari's games by ALE's own vector environment; the package is an extra."""

from __future__ import annotations

import sys

import gymnasium as gym
import numpy as np
import pytest

from onibi.actors.environments.factory import EnvironmentSettings, make_vector_env
from onibi.platform.errors import EnvironmentFault

pytest.importorskip("ale_py")
GAMES = 3


def made(env_id="ALE/Pong-v5", max_episode_steps=None, **kwargs):
    settings = EnvironmentSettings(
        id=env_id, vectorization="native", kwargs=kwargs, max_episode_steps=max_episode_steps
    )
    return make_vector_env(settings, GAMES)


def played(env, seed, steps=60):
    """Observations, rewards and ends of random play from ``seed``."""
    rng, seen = np.random.default_rng(5), [env.reset(seed=seed)[0].copy()]
    for _ in range(steps):
        observation, reward, terminated, truncated, _ = env.step(rng.integers(env.single_action_space.n, size=GAMES))
        seen += [observation.copy(), np.array(reward), np.array(terminated), np.array(truncated)]
    env.close()
    return seen


def test_what_is_played_is_ales_own_game_a_frame_an_observation():
    env = made("ale_py:ALE/Breakout-v5")
    assert env.single_observation_space == gym.spaces.Box(0, 255, (1, 84, 84), np.uint8)
    own = gym.make_vec(
        "ALE/Breakout-v5",
        num_envs=GAMES,
        vectorization_mode="vector_entry_point",
        stack_num=1,
        reward_clipping=False,
    )
    for ours, theirs in zip(played(env, 7), played(own, 7), strict=True):
        assert np.array_equal(ours, theirs)


@pytest.mark.parametrize("seed", [0, 2**31 - 1, 2**32 - 1, 2**63 - 1])
def test_seeds_of_any_size_repeat_and_games_beside_each_other_differ(seed):
    first = played(made(), seed)
    for one, other in zip(first, played(made(), seed), strict=True):
        assert np.array_equal(one, other)
    assert any(not np.array_equal(each[0], each[1]) for each in first[1::4])


def test_rewards_are_the_games_points_unless_ale_is_to_clip_them():
    own = np.array(played(made("ALE/MsPacman-v5", noop_max=0), 3, steps=120)[2::4])
    clipped = np.array(played(made("ALE/MsPacman-v5", noop_max=0, reward_clipping=True), 3, steps=120)[2::4])
    assert own.max() >= 10, "a pill gives ten points"
    assert np.array_equal(np.sign(own), clipped)


def test_a_limit_of_ours_arrives_as_truncated_whatever_a_steps_frames_are():
    env = made(max_episode_steps=20, frameskip=3, noop_max=0)
    env.reset(seed=1)
    ends = []
    for step in range(1, 45):
        _, _, terminated, truncated, info = env.step(np.zeros(GAMES, np.int64))
        assert not terminated.any()
        if truncated.any():
            assert truncated.all()
            ends.append(step)
        elif ends == [step - 1]:
            assert (info["episode_frame_number"] <= 3).all(), "the step after an end shows the next game's first frame"
    assert ends == [20, 41]


def test_a_picture_is_what_the_first_games_player_sees():
    env = made(img_height=42, img_width=50)
    with pytest.raises(EnvironmentFault, match="before its first reset"):
        env.render()
    observation, _ = env.reset(seed=1)
    assert env.render().shape == (168, 200, 3)
    for _ in range(3):
        observation = env.step(np.ones(GAMES, np.int64))[0]
    assert np.array_equal(env.render()[::4, ::4, 1], observation[0, 0])
    assert env.metadata["render_fps"] == 15.0
    colored = made(grayscale=False)
    seen = colored.reset(seed=1)[0]
    assert np.array_equal(colored.render()[::4, ::4], seen[0, 0])


def test_an_unknown_game_is_told_with_the_nearest():
    with pytest.raises(EnvironmentFault, match=r"'ALE/Pang-v5' is not a registered Gymnasium id.*ALE/Pong-v5"):
        made("ALE/Pang-v5")


def test_a_missing_package_is_told(monkeypatch):
    monkeypatch.setitem(sys.modules, "ale_py", None)
    with pytest.raises(EnvironmentFault, match=r"pip install 'onibi\[atari\]'"):
        made()
