"""Atari 2600 games of the Arcade Learning Environment, played by its own vector environment.

Bellemare et al. 2013, "The Arcade Learning Environment", arXiv 1207.4708; sticky actions as in Machado et al. 2018,
arXiv 1709.06009. The package, which brings the games along, is an extra: ``pip install 'onibi[atari]'``; it is under
the GPL.
"""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np
from gymnasium.vector import VectorEnv, VectorWrapper
from numpy.typing import NDArray

from onibi.platform.errors import EnvironmentFault
from onibi.platform.shell_words import pip_install

_PREFIX = "ALE/"
_FRAMES_PER_SECOND = 60
_FRAMESKIP = 4  # of the ids of version 5
_SEEDS = 2**31 - 1  # ALE's are C integers
_PIXEL = 4  # side of a pixel in a picture
_DEFAULTS: dict[str, Any] = {"stack_num": 1, "reward_clipping": False, "num_threads": 1}


def is_atari(env_id: str) -> bool:
    """Whether ``environment.id`` is a game of the ALE: ``ALE/Pong-v5``, or ``ale_py:ALE/Pong-v5``."""
    return env_id.rpartition(":")[2].startswith(_PREFIX)


def register_atari() -> None:
    """Import the package, which registers its games.

    Raises: EnvironmentFault where it is missing.
    """
    try:
        importlib.import_module("ale_py")
    except ImportError as error:
        raise EnvironmentFault(
            f"Atari games need the package ale-py ({error}). Install it with: {pip_install('onibi[atari]')}"
        ) from error


def atari_options(options: dict[str, Any]) -> dict[str, Any]:
    """Arguments that a native Atari game is made with.

    Where they are not given, one frame is an observation, as frames are stacked when rows are drawn (``frame_stack``)
    and stored once; rewards come as the game counts them, as the mixer clips and returns are to be points; and one
    thread plays an actor's games. ``max_episode_steps`` is told in ALE's frames.

    Args:
        options: ``environment.kwargs`` with ``max_episode_steps``, where there is one.
    """
    given = {**_DEFAULTS, **options}
    steps = given.pop("max_episode_steps", None)
    if steps is not None:
        given["max_num_frames_per_episode"] = steps * frames_a_step(given)
    return given


def frames_a_step(options: dict[str, Any]) -> int:
    """How many of the console's frames an action lasts, by ``environment.kwargs``."""
    return int(options.get("frameskip", _FRAMESKIP))


class AtariGames(VectorWrapper):
    """Takes seeds of any size, and shows the first game's newest frame.

    Args:
        env: of ale-py; observations uint8 [E, stacked, H, W], or [E, stacked, H, W, 3].
        frames: of the console that an action lasts.
    """

    def __init__(self, env: VectorEnv[Any, Any, Any], frames: int) -> None:
        super().__init__(env)
        self.metadata = {**env.metadata, "render_fps": _FRAMES_PER_SECOND / frames}
        self._frame: NDArray[np.uint8] | None = None

    def reset(self, *, seed: Any = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """As ALE's, whose games have the seeds ``seed``, ``seed`` + 1, … below 2³¹."""
        if isinstance(seed, int | np.integer):
            seed = int(seed) % (_SEEDS - self.num_envs)
        observation, info = self.env.reset(seed=seed, options=options)
        self._frame = observation[0, -1]
        return observation, info

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        """As ALE's."""
        given = self.env.step(actions)
        self._frame = given[0][0, -1]
        return given

    def render(self) -> NDArray[np.uint8]:  # type: ignore[override]
        """What the first game's player sees, uint8 [4 H, 4 W, 3]."""
        if self._frame is None:
            raise EnvironmentFault("an Atari game shows nothing before its first reset.")
        frame = self._frame if self._frame.ndim == 3 else np.repeat(self._frame[..., None], 3, axis=-1)
        picture: NDArray[np.uint8] = frame.repeat(_PIXEL, axis=0).repeat(_PIXEL, axis=1)
        return picture
