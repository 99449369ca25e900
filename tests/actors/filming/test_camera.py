"""Who can be filmed, and what is told of those who cannot."""

from __future__ import annotations

import os
import subprocess
import sys

import gymnasium as gym
import numpy as np
import pytest

from onibi.actors.environments.factory import EnvironmentSettings
from onibi.actors.filming.camera import make_filmed_env
from onibi.platform.errors import EnvironmentFault

HERE = __name__


class Drawn(gym.Env):
    """Draws what it is told to draw, if it is asked for pictures."""

    def __init__(self, render_mode=None, drawn="picture", pace=None):
        self.observation_space = gym.spaces.Box(0, 1, (2,), np.float32)
        self.action_space = gym.spaces.Discrete(2)
        self.render_mode, self._drawn = render_mode, drawn
        self.metadata = {**self.metadata, **({} if pace is None else {"render_fps": pace})}
        self._steps = 0

    def reset(self, *, seed=None, options=None):
        self._steps = 0
        return np.zeros(2, np.float32), {}

    def step(self, action):
        self._steps += 1
        return np.zeros(2, np.float32), 0.0, False, False, {}

    def render(self):
        if self.render_mode != "rgb_array":
            return None
        return {
            "picture": np.full((4, 6, 3), 9, np.uint8),
            "grey": np.zeros((4, 6), np.uint8),
            "float": np.zeros((4, 6, 3)),
            "text": "+--+",
            "nothing": np.zeros((4, 0, 3), np.uint8),
            "huge": np.full((4000, 3000, 3), 9, np.uint8),
            "tall": np.full((4000, 10, 3), 9, np.uint8)[::-1],
            "growing": np.full((40 + 20 * self._steps, 60, 3), 9, np.uint8),
        }[self._drawn]


def plain(drawn="picture"):
    return Drawn(drawn=drawn)


class Silent(Drawn):
    render = gym.Env.render


def filmed(env_id, **settings):
    camera = make_filmed_env(EnvironmentSettings(id=env_id, **settings))
    try:
        camera.reset(seed=1)
        camera.step(np.array([camera.single_action_space.sample()]))
        return camera.take_pictures(), camera.frames_per_second
    finally:
        camera.close()


@pytest.mark.parametrize(
    ("env_id", "settings", "shape", "rate"),
    [
        (f"{HERE}:Drawn", {}, (4, 6, 3), 10.0),
        (f"{HERE}:plain", {"kwargs": {}}, None, None),
        ("CartPole-v1", {"vectorization": "native"}, (400, 600, 3), 50.0),
        ("MiniGrid-Empty-5x5-v0", {}, (160, 160, 3), 10.0),
        ("ALE/Breakout-v5", {"vectorization": "native", "kwargs": {"frameskip": 6}}, (336, 336, 3), 10.0),
        ("onibi.actors.environments.minatar:make", {"kwargs": {"game": "breakout"}}, (320, 320, 3), 10.0),
        ("onibi.actors.environments.corridor:CaptionCorridor", {}, (24, 480, 3), 5.0),
        ("onibi.actors.environments.listening_corridor:make", {"vectorization": "native"}, (24, 720, 3), 5.0),
        ("MiniHack-Room-5x5-v0", {}, (432, 720, 3), 6.0),
        ("NetHackScore-v0", {}, (432, 720, 3), 6.0),
    ],
)
def test_each_observation_has_a_picture(env_id, settings, shape, rate):
    if shape is None:
        with pytest.raises(EnvironmentFault, match="cannot be filmed: render\\(\\) gave nothing"):
            filmed(env_id, **settings)
        return
    pictures, frames_per_second = filmed(env_id, **settings)
    assert [picture.shape for picture in pictures] == [shape, shape]
    assert {picture.dtype for picture in pictures} == {np.dtype(np.uint8)}
    assert frames_per_second == rate
    assert pictures[0].max() > pictures[0].min() or env_id.startswith(HERE)


@pytest.mark.parametrize(
    ("env_id", "drawn", "told"),
    [
        (f"{HERE}:Drawn", "grey", "gave an array of uint8 \\[4, 6\\]"),
        (f"{HERE}:Drawn", "float", "gave an array of float64 \\[4, 6, 3\\]"),
        (f"{HERE}:Drawn", "text", "gave a str"),
        (f"{HERE}:Drawn", "nothing", "gave an empty picture, \\[4, 0, 3\\]"),
        (f"{HERE}:Silent", "picture", "render\\(\\) raised NotImplementedError"),
    ],
)
def test_what_is_no_picture_is_told(env_id, drawn, told):
    with pytest.raises(EnvironmentFault, match=told) as fault:
        filmed(env_id, kwargs={"drawn": drawn})
    assert 'render_mode="rgb_array"' in str(fault.value)


@pytest.mark.parametrize(("drawn", "shape"), [("huge", (1000, 750, 3)), ("tall", (1000, 3, 3))])
def test_pictures_too_large_to_show_are_shrunk_before_they_are_kept(drawn, shape):
    pictures, _ = filmed(f"{HERE}:Drawn", kwargs={"drawn": drawn})  # every fourth pixel: 4000 / 1280 = 3.1
    assert [picture.shape for picture in pictures] == [shape, shape]
    assert np.unique(pictures[0]).tolist() == [9]


def test_a_picture_of_another_size_than_the_first_is_scaled_into_it():
    pictures, _ = filmed(f"{HERE}:Drawn", kwargs={"drawn": "growing"})
    assert [picture.shape for picture in pictures] == [(40, 60, 3), (40, 60, 3)]
    assert (pictures[1] == 9).all(axis=(0, 2)).tolist() == [False] * 10 + [True] * 40 + [False] * 10  # 60 · 40/60 wide


@pytest.mark.parametrize(
    ("declared", "rate"),
    [
        (25, 25.0),
        (np.float32(12.5), 12.5),
        (0, 10.0),
        (-5, 10.0),
        (float("nan"), 10.0),
        ("fast", 10.0),
        ([30], 10.0),
        (True, 10.0),
        (1e-9, 1.0),
        (1e9, 120.0),
    ],
)
def test_a_pace_that_no_film_has_is_not_taken(declared, rate):
    assert filmed(f"{HERE}:Drawn", kwargs={"pace": declared})[1] == rate


class Batch(gym.vector.VectorEnv):
    """Draws all its lanes into one array, and calls their number ``envs``."""

    metadata = {"autoreset_mode": gym.vector.AutoresetMode.NEXT_STEP}  # noqa: RUF012 - Gymnasium's

    def __init__(self, num_envs):
        self.num_envs = self.envs = num_envs
        self.single_observation_space = gym.spaces.Box(0, 1, (2,), np.float32)
        self.single_action_space = gym.spaces.Discrete(2)
        self.metadata = dict(self.metadata)

    def reset(self, *, seed=None, options=None):
        return np.zeros((self.num_envs, 2), np.float32), {}

    def step(self, actions):
        nothing = np.zeros(self.num_envs, np.bool_)
        return np.zeros((self.num_envs, 2), np.float32), np.zeros(self.num_envs), nothing, nothing, {}

    def render(self):
        return np.full((self.num_envs, 4, 6, 3), 9, np.uint8)


def test_a_vector_environment_may_draw_its_lanes_into_one_array():
    pictures, _ = filmed(f"{HERE}:Batch", vectorization="native")
    assert [picture.shape for picture in pictures] == [(4, 6, 3), (4, 6, 3)]


def test_the_terminal_of_nethack_is_filmed_though_its_view_asks_for_less():
    settings = EnvironmentSettings(id="MiniHack-Room-5x5-v0")
    camera = make_filmed_env(settings, ("chars", "colors", "blstats", "message"))
    camera.reset(seed=3)
    (first,) = camera.take_pictures()
    for action in range(4):
        camera.step(np.array([action]))
    pictures = camera.take_pictures()
    camera.close()
    assert len(pictures) == 4
    assert any((picture != first).any() for picture in pictures), "the agent moves"


def test_pygame_says_nothing_on_a_terminal_without_a_display():
    code = (
        "from onibi.actors.environments.factory import EnvironmentSettings\n"
        "from onibi.actors.filming.camera import make_filmed_env\n"
        "env = make_filmed_env(EnvironmentSettings(id='CartPole-v1'))\n"
        "env.reset(seed=1)\n"
        "print(len(env.take_pictures()))\n"
        "env.close()\n"
    )
    of_pygame = ("DISPLAY", "WAYLAND_DISPLAY", "XDG_RUNTIME_DIR", "SDL_VIDEODRIVER", "SDL_AUDIODRIVER", "PYGAME_HIDE")
    variables = {name: value for name, value in os.environ.items() if not name.startswith(of_pygame)}
    finished = subprocess.run([sys.executable, "-c", code], env=variables, capture_output=True, text=True, check=True)
    assert (finished.stdout, finished.stderr) == ("1\n", "")
