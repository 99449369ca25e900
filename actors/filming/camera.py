"""One environment, of which a picture is taken with each observation."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Literal

import gymnasium as gym
import numpy as np
from gymnasium.vector import VectorEnv, VectorWrapper
from numpy.typing import NDArray

from onibi.actors.environments.factory import EnvironmentSettings, creator_of, environment_spec, make_vector_env
from onibi.actors.environments.nethack import is_nethack
from onibi.actors.filming.terminal_picture import TERMINAL_KEYS, terminal_picture
from onibi.platform.errors import EnvironmentFault

_PICTURE_MODE = "rgb_array"
_TURNS_PER_SECOND = 6.0  # of a game that waits for its player, slow enough to read along
_FRAMES_PER_SECOND = 10.0  # where the environment declares none

Picture = NDArray[np.uint8]
"""[height, width, 3], RGB."""


class FilmedEnvironment(VectorWrapper):
    """A vector environment of one lane that keeps a picture of each observation it gives, resets included.

    Args:
        env: of one lane.
        take: a picture of what it is like now.
        frames_per_second: at which its pictures look alive.
    """

    def __init__(self, env: VectorEnv[Any, Any, Any], take: Callable[[], Picture], frames_per_second: float) -> None:
        super().__init__(env)
        self.frames_per_second = frames_per_second
        self._take = take
        self._pictures: list[Picture] = []

    def reset(self, *, seed: Any = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """As the environment's."""
        given = self.env.reset(seed=seed, options=options)
        self._pictures.append(self._take())
        return given

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        """As the environment's."""
        given = self.env.step(actions)
        self._pictures.append(self._take())
        return given

    def take_pictures(self) -> list[Picture]:
        """Those since the last call, in order."""
        pictures, self._pictures = self._pictures, []
        return pictures


def make_filmed_env(settings: EnvironmentSettings, observation_keys: tuple[str, ...] = ()) -> FilmedEnvironment:
    """One environment as ``make_vector_env`` makes it, asked for pictures; NetHack's are drawn of its terminal.

    Raises: EnvironmentFault for one that draws none.
    """
    if is_nethack(settings.id):
        env = make_vector_env(settings, 1, (*observation_keys, *TERMINAL_KEYS))
        return FilmedEnvironment(env, _terminal_camera(env), _TURNS_PER_SECOND)
    if settings.vectorization == "native" and _has_single_form(settings.id):
        settings = replace(settings, vectorization="sync")  # native forms of Gymnasium's draw all lanes or none
    os.environ.setdefault("SDL_AUDIODRIVER", "dummy")  # pygame's; without a sound card it writes errors to the terminal
    env = _made_to_draw(settings)
    metadata = (env.envs[0] if hasattr(env, "envs") else env).metadata
    declared = metadata.get("render_fps")
    return FilmedEnvironment(env, _renderer(env, settings.id), float(declared or _FRAMES_PER_SECOND))


def _terminal_camera(env: Any) -> Callable[[], Picture]:
    engine = env.envs[0].unwrapped
    places = [engine._observation_keys.index(key) for key in TERMINAL_KEYS]  # noqa: SLF001 - NLE's tuple has no names
    return lambda: terminal_picture(*(engine.last_observation[place] for place in places))


def _renderer(env: VectorEnv[Any, Any, Any], env_id: str) -> Callable[[], Picture]:
    def take() -> Picture:
        try:
            rendered: Any = env.render()
        except gym.error.DependencyNotInstalled as error:
            raise EnvironmentFault(f"{env_id} cannot be filmed: {error}") from error
        except (NotImplementedError, gym.error.Error, AttributeError) as error:
            raise EnvironmentFault(_no_picture(env_id, f"render() raised {type(error).__name__}: {error}")) from error
        picture = rendered[0] if isinstance(rendered, tuple | list) and len(rendered) == 1 else rendered
        if not isinstance(picture, np.ndarray) or picture.dtype != np.uint8 or picture.shape[2:] != (3,):
            raise EnvironmentFault(_no_picture(env_id, f"render() gave {_described(picture)}"))
        return picture.copy()

    return take


def _no_picture(env_id: str, told: str) -> str:
    return (
        f"{env_id} cannot be filmed: {told}. It needs a render() that returns a picture, uint8 [height, width, 3], "
        f'with render_mode="{_PICTURE_MODE}".'
    )


def _described(rendered: Any) -> str:
    if isinstance(rendered, np.ndarray):
        return f"an array of {rendered.dtype} {list(rendered.shape)}"
    return "nothing" if rendered is None else f"a {type(rendered).__name__}"


def _has_single_form(env_id: str) -> bool:
    spec = environment_spec(env_id)
    return spec is not None and spec.entry_point is not None


def _made_to_draw(settings: EnvironmentSettings) -> VectorEnv[Any, Any, Any]:
    takes = None if "render_mode" in settings.kwargs else _takes_render_mode(settings)
    if takes is not None:
        drawing = replace(settings, kwargs={**settings.kwargs, "render_mode": _PICTURE_MODE})
        try:
            return make_vector_env(drawing, 1)
        except EnvironmentFault:
            if takes == "surely":
                raise
    return make_vector_env(settings, 1)


def _takes_render_mode(settings: EnvironmentSettings) -> Literal["surely", "perhaps"] | None:
    """Whether it can be told to draw pictures when it is made; perhaps, where it takes any name and may hand it on."""
    creator = creator_of(settings.id)
    modes = getattr(creator, "metadata", {}).get("render_modes") or [_PICTURE_MODE]  # empty where a class declares none
    if _PICTURE_MODE not in modes:
        return None
    try:
        parameters = inspect.signature(creator).parameters
    except (TypeError, ValueError):  # of compiled code
        return "perhaps"
    if "render_mode" in parameters:
        return "surely"
    return "perhaps" if any(each.kind is inspect.Parameter.VAR_KEYWORD for each in parameters.values()) else None
