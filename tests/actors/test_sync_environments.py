"""Infos that differ between environments and steps, and environments that do not let themselves be closed."""

from __future__ import annotations

import logging

import gymnasium as gym
import numpy as np
import pytest

from onibi.actors.environments.sync_environments import SyncEnvironments


class Teller(gym.Env):
    """Tells the infos it was given, the first one at its reset; closing it raises where it is told to."""

    observation_space = gym.spaces.Discrete(2)
    action_space = gym.spaces.Discrete(2)

    def __init__(self, *infos, closes=True):
        self.infos, self.closes, self.is_closed = iter(infos), closes, False

    def reset(self, *, seed=None, options=None):
        return 0, next(self.infos)

    def step(self, action):
        return 0, 1.0, False, False, next(self.infos)

    def close(self):
        if not self.closes:
            raise RuntimeError("the window is gone")
        self.is_closed = True


def told(*values, name="told"):
    """Infos of one step in which each environment tells its value, "nothing" nothing."""
    infos = [{} if isinstance(value, str) and value == "nothing" else {name: value} for value in values]
    envs = SyncEnvironments([lambda info=info: Teller(info) for info in infos])
    found = envs.reset()[1]
    envs.close()
    return found


@pytest.mark.parametrize(
    ("values", "expected", "dtype"),
    [
        ((0, 7.75), [0.0, 7.75], np.float64),
        ((False, 0.5), [0.0, 0.5], np.float64),
        ((True, 3), [1, 3], np.int64),
        ((np.float32(0.5), 2), [0.5, 2.0], np.float64),
        ((3, None), [3, None], object),
        ((1.5, "far"), [1.5, "far"], object),
        (("nothing", 2, 5), [0, 2, 5], np.int64),
        ((4, "nothing", None), [4, None, None], object),
        ((1 << 100, 2, "nothing"), [1 << 100, 2, None], object),  # a generator's seed has 128 bits
        ((2, -(1 << 64), 0.5), [2, -(1 << 64), 0.5], object),
    ],
)
def test_what_one_environment_tells_does_not_change_what_another_does(values, expected, dtype):
    infos = told(*values)
    assert infos["told"].dtype == dtype
    assert infos["told"].tolist() == expected
    assert infos["_told"].tolist() == [not (isinstance(value, str) and value == "nothing") for value in values]


def test_arrays_of_other_lengths_come_as_objects_and_alike_ones_as_an_array():
    paths = told(np.arange(2), np.arange(3), "nothing")["told"]
    assert paths.dtype == object
    assert [None if path is None else path.tolist() for path in paths] == [[0, 1], [0, 1, 2], None]
    alike = told(np.array([1, 2]), np.array([0.5, 1.5]))["told"]
    assert alike.tolist() == [[1.0, 2.0], [0.5, 1.5]]
    assert told(np.array(["far"]), np.array([1]))["told"].dtype == object, "words and numbers make no array"


def test_arrays_of_objects_may_grow():
    bags = told(np.array(["lamp", None], object), np.array(["lamp", None, 3], object))["told"]
    assert [bag.tolist() for bag in bags] == [["lamp", None], ["lamp", None, 3]]


@pytest.mark.parametrize("values", [({"score": 0}, None, {"score": 1.5}), (None, {"score": 0}, {"score": 1.5})])
def test_where_some_tell_a_mapping_nothing_else_counts(values):
    infos = told(*values)
    mapping = [isinstance(value, dict) for value in values]
    assert infos["_told"].tolist() == mapping
    assert infos["told"]["_score"].tolist() == mapping
    assert [score for score, tells in zip(infos["told"]["score"], mapping, strict=True) if tells] == [0.0, 1.5]


def test_all_are_closed_where_closing_one_raises(caplog):
    envs = [Teller({}, closes=closes) for closes in (False, True, False)]
    with caplog.at_level(logging.WARNING):
        SyncEnvironments([lambda env=env: env for env in envs]).close()
    assert [env.is_closed for env in envs] == [False, True, False]
    (warning,) = caplog.messages
    assert warning == "2 of 3 environments raised when they were closed: RuntimeError: the window is gone"
