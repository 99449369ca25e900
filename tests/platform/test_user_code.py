"""Which line of the user's code an error is told with."""

from __future__ import annotations

import json
from pathlib import Path

import gymnasium as gym
import pytest
import yaml

from onibi.platform.user_code import raised_at


def error_of(call):
    with pytest.raises(Exception) as caught:
        call()
    return caught.value


def line_of(text):
    lines = Path(__file__).read_text(encoding="utf-8").splitlines()
    return next(number for number, line in enumerate(lines, 1) if line.strip().startswith(text))


def sensor():
    raise ValueError("sensor fell off")


class Warehouse(gym.Env):
    def step(self, action):
        if action == 1:
            yaml.safe_load("{")
        if action == 2:
            json.loads("{")
        sensor()


@pytest.mark.parametrize(("action", "text"), [(0, "raise ValueError("), (1, "yaml.safe_load("), (2, "json.loads(")])
def test_the_users_innermost_line_is_named_not_that_of_a_library_it_calls(action, text):
    env = gym.wrappers.TimeLimit(Warehouse(), 9)
    assert raised_at(error_of(lambda: env.step(action))) == f" ({__file__}:{line_of(text)})"


def test_where_no_code_of_the_users_is_among_the_frames_an_installed_packages_line_is_named():
    scope = {"__name__": "onibi.actors.rollout", "yaml": yaml}
    exec(compile("def call():\n    yaml.safe_load('{')\n", "<made>", "exec"), scope)
    error = error_of(scope["call"])
    while error.__traceback__.tb_frame.f_code.co_filename == __file__:  # this test's own frames are a user's
        error.__traceback__ = error.__traceback__.tb_next
    assert "/yaml/" in raised_at(error)


def test_onibis_own_lines_are_no_place():
    scope = {"__name__": "onibi.actors.rollout"}
    exec(compile("def call(): raise ValueError", "rollout.py", "exec"), scope)
    error = error_of(scope["call"])
    while error.__traceback__.tb_frame.f_code.co_filename == __file__:
        error.__traceback__ = error.__traceback__.tb_next
    assert raised_at(error) == ""
