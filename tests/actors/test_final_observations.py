"""What an ended lane shows of its last step, where the environment has begun the next episode already."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from onibi.actors.final_observations import with_finals
from onibi.platform.errors import EnvironmentFault


class Walk(gym.Env):
    """Ends after ``length`` steps; tells where it is as a number, as a vector, and as a matrix."""

    observation_space = gym.spaces.Box(0, 99, (1,), np.float32)
    action_space = gym.spaces.Discrete(2)

    def __init__(self, length, width):
        self.length, self.width = length, width

    def reset(self, *, seed=None, options=None):
        self.place = 0
        return self._told()

    def step(self, action):
        self.place += 1
        observation, info = self._told()
        return observation, 0.0, self.place == self.length, False, info

    def _told(self):
        vector = self.place + np.arange(self.width) / 10
        infos = {"place": self.place, "vector": vector, "deep": {"matrix": np.tile(vector, (2, 1))}}
        return np.array([self.place], np.float32), infos


@pytest.mark.parametrize("width", [1, 2, 3])  # as many as there are lanes: a mask along the wrong axis fits, too
def test_each_lane_has_its_own_infos_whatever_their_shape(width):
    env = SyncVectorEnv(
        [lambda length=length: Walk(length, width) for length in (2, 9, 2)], autoreset_mode=AutoresetMode.SAME_STEP
    )
    env.reset()
    env.step(np.zeros(3, int))
    raw, _, terminated, _, infos = env.step(np.zeros(3, int))
    assert terminated.tolist() == [True, False, True]
    raw, infos = with_finals(raw, infos, terminated, "walk")
    vectors = 2 + np.tile(np.arange(width) / 10, (3, 1))
    assert raw.tolist() == [[2], [2], [2]]
    assert infos["place"].tolist() == [2, 2, 2]
    np.testing.assert_array_equal(infos["vector"], vectors)
    np.testing.assert_array_equal(infos["deep"]["matrix"], np.stack([vectors, vectors], axis=1))


def test_final_observations_come_lane_by_lane_or_batched_as_the_observation_however_nested():
    raw = {"a": (np.zeros((2, 2)), {"b": {"n": np.array([5, 6])}, "t": ("a", "b")}), "t": ("c", "d")}
    ended = np.array([False, True])
    by_lane = np.array([None, None])
    by_lane[1] = {"a": (np.array([3.0, 4.0]), {"b": {"n": 8}, "t": "z"}), "t": "y"}
    batched = {
        "a": (np.array([[1.0, 2.0], [3.0, 4.0]]), {"b": {"n": np.array([7, 8])}, "t": ("x", "z")}),
        "t": ("w", "y"),
    }
    half = {"a": np.array([None, by_lane[1]["a"]], object), "t": ("w", "y")}
    for finals in (by_lane, batched, half):
        shown = with_finals(raw, {"final_obs": finals}, ended, "walk")[0]
        place, inner = shown["a"]
        assert place.tolist() == [[0, 0], [3, 4]]
        assert (inner["b"]["n"].tolist(), inner["t"], shown["t"]) == ([5, 8], ("a", "z"), ("c", "y"))


def test_an_info_that_changes_its_shape_is_told_by_name():
    ended = np.array([True, False])
    infos = {"map": np.zeros((2, 3)), "final_obs": np.zeros((2, 1)), "final_info": {"map": np.zeros((2, 4))}}
    with pytest.raises(EnvironmentFault, match=r"walk: info 'map' has the shape \(2, 3\) in a step and \(2, 4\)"):
        with_finals(np.zeros((2, 1)), infos, ended, "walk")
