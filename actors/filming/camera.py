"""One environment, of which a picture is taken with each observation."""

from __future__ import annotations

import importlib
import inspect
import math
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from typing import Any, Literal

import gymnasium as gym
import numpy as np
from gymnasium.vector import SyncVectorEnv, VectorEnv, VectorWrapper
from numpy.typing import NDArray

from onibi.actors.environments.atari import is_atari
from onibi.actors.environments.factory import EnvironmentSettings, creator_of, environment_spec, make_vector_env
from onibi.actors.environments.nethack import is_nethack
from onibi.actors.environments.pygame_quiet import pygame_quiet
from onibi.actors.filming.terminal_picture import TERMINAL_KEYS, terminal_picture
from onibi.platform.errors import EnvironmentFault

_PICTURE_MODE = "rgb_array"
_TURNS_PER_SECOND = 6.0  # of a game that waits for its player, slow enough to read along
_FRAMES_PER_SECOND = 10.0  # where the environment declares none
_SLOWEST, _FASTEST = 1.0, 120.0  # frames a second; what is declared beyond is played at these
_MOST_PIXELS = 1_280  # of a picture's longer side: several are in memory at once, and each is compressed

Picture = NDArray[np.uint8]
"""[height, width, 3], RGB."""


class FilmedEnvironment(VectorWrapper):
    """A vector environment of one lane that keeps a picture of each observation it gives, resets included.

    All are of the first one's size: one of another is scaled into it.

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
        self._shape: tuple[int, ...] | None = None

    def reset(self, *, seed: Any = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """As the environment's."""
        given = self.env.reset(seed=seed, options=options)
        self._pictures.append(self._picture())
        return given

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        """As the environment's."""
        given = self.env.step(actions)
        self._pictures.append(self._picture())
        return given

    def take_pictures(self) -> list[Picture]:
        """Those since the last call, in order."""
        pictures, self._pictures = self._pictures, []
        return pictures

    def _picture(self) -> Picture:
        picture = self._take()
        self._shape = self._shape or picture.shape
        return picture if picture.shape == self._shape else _scaled_into(picture, self._shape)


def make_filmed_env(settings: EnvironmentSettings, observation_keys: tuple[str, ...] = ()) -> FilmedEnvironment:
    """One environment as ``make_vector_env`` makes it, asked for pictures; NetHack's are drawn of its terminal.

    Raises: EnvironmentFault for one that draws none.
    """
    if is_nethack(settings.id):
        env = make_vector_env(settings, 1, (*observation_keys, *TERMINAL_KEYS))
        return FilmedEnvironment(env, _terminal_camera(env), _TURNS_PER_SECOND)
    if settings.vectorization == "native" and is_atari(settings.id):  # its single form shows something else
        env = make_vector_env(settings, 1)
        return FilmedEnvironment(env, _renderer(env, settings.id), _pace(env.metadata))
    if settings.vectorization == "native" and _has_single_form(settings.id):
        settings = replace(settings, vectorization="sync")  # native forms of Gymnasium's draw all lanes or none
    with pygame_quiet(), suppress(ImportError):  # before the environment imports it
        importlib.import_module("pygame")
    env = _made_to_draw(settings)
    metadata = (env.envs[0] if isinstance(env, SyncVectorEnv) else env).metadata
    return FilmedEnvironment(env, _renderer(env, settings.id), _pace(metadata))


def _pace(metadata: Any) -> float:
    """Pictures a second as declared, where that is a pace at all."""
    declared = metadata.get("render_fps") if isinstance(metadata, Mapping) else None
    if isinstance(declared, bool) or not isinstance(declared, int | float | np.number):
        return _FRAMES_PER_SECOND
    if not math.isfinite(declared) or declared <= 0:
        return _FRAMES_PER_SECOND
    return min(max(float(declared), _SLOWEST), _FASTEST)


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
        is_batch = isinstance(rendered, tuple | list) or (isinstance(rendered, np.ndarray) and rendered.ndim == 4)
        picture = rendered[0] if is_batch and len(rendered) == 1 else rendered
        if not isinstance(picture, np.ndarray) or picture.dtype != np.uint8 or picture.shape[2:] != (3,):
            raise EnvironmentFault(_no_picture(env_id, f"render() gave {_described(picture)}"))
        if picture.size == 0:
            raise EnvironmentFault(_no_picture(env_id, f"render() gave an empty picture, {list(picture.shape)}"))
        return _no_larger_than_is_shown(picture)

    return take


def _no_larger_than_is_shown(picture: Picture) -> Picture:
    """A copy, shrunk in whole steps where a side is too long."""
    from PIL import Image

    factor = -(-max(picture.shape[:2]) // _MOST_PIXELS)
    if factor == 1:
        return picture.copy()
    # Pillow tells lines from pixels by the memory between them.
    return np.asarray(Image.fromarray(np.ascontiguousarray(picture)).reduce(factor))


def _scaled_into(picture: Picture, shape: tuple[int, ...]) -> Picture:
    """The whole picture in one of ``shape`` [H, W, 3], its sides in proportion, black beside it."""
    from PIL import Image, ImageOps

    return np.asarray(ImageOps.pad(Image.fromarray(picture), (shape[1], shape[0])))


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
