"""MinAtar's games as environments: 10 × 10 cells with a channel of 0s and 1s for each kind of object.

Young and Tian 2019, "MinAtar: An Atari-Inspired Testbed", arXiv 1903.03176. The package is an extra of its own
(``pip install 'onibi[minatar]'``); it is under the GPL.
"""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from onibi.platform.errors import EnvironmentFault
from onibi.platform.shell_words import pip_install

_CELL_PIXELS = 32
# One for each kind of object, told apart by all eyes; the games have 4 to 10.
_COLORS = np.array(
    [
        (255, 255, 255), (230, 159, 0), (86, 180, 233), (0, 158, 115), (240, 228, 66),
        (0, 114, 178), (213, 94, 0), (204, 121, 167), (150, 150, 150), (120, 94, 240),
    ],
    np.uint8,
)  # fmt: skip

GAMES = ("asterix", "breakout", "freeway", "seaquest", "space_invaders")


class MinAtar(gym.Env[NDArray[np.uint8], np.int64]):
    """One game. Observation uint8 [10, 10, C] of 0 and 1; terminates as the game does, never truncates by itself.

    Args:
        game: one of ``GAMES``.
        sticky_actions: probability that the last action is repeated instead of the one given.
        difficulty_ramping: whether the games that can grow harder do.
        minimal_actions: the actions that do something in this game, instead of all 6 of MinAtar.
    Raises: EnvironmentFault where the package is missing or the game unknown.
    """

    metadata: dict[str, Any] = {"render_modes": ["rgb_array"], "render_fps": 10}  # noqa: RUF012 - as Gymnasium's
    render_mode = "rgb_array"

    def __init__(self, game: str, sticky_actions: float, *, difficulty_ramping: bool, minimal_actions: bool) -> None:
        if game not in GAMES:
            raise EnvironmentFault(f"environment.kwargs.game is {game!r}; allowed: {', '.join(GAMES)}.")
        try:
            from minatar import Environment
        except ImportError as error:
            raise EnvironmentFault(
                f"MinAtar's games need the package minatar ({error}). Install it with: {pip_install('onibi[minatar]')}"
            ) from error
        self._game = Environment(game, sticky_action_prob=sticky_actions, difficulty_ramping=difficulty_ramping)
        moves = self._game.minimal_action_set() if minimal_actions else range(self._game.num_actions())
        self._moves = tuple(int(move) for move in moves)
        self.observation_space = gym.spaces.Box(0, 1, tuple(self._game.state_shape()), np.uint8)
        self.action_space = gym.spaces.Discrete(len(self._moves))
        self._seeded = False

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.uint8], dict[str, Any]]:
        """A new episode; the game's own generator is seeded with ``seed``, or at the first reset by chance."""
        super().reset(seed=seed, options=options)
        if seed is not None or not self._seeded:
            self._game.seed(int(self.np_random.integers(2**31)))
            self._seeded = True
        self._game.reset()
        self._game.last_action = 0  # MinAtar would stick to the last episode's last action
        return self._observe(), {}

    def step(self, action: np.int64) -> tuple[NDArray[np.uint8], float, bool, bool, dict[str, Any]]:
        """One frame."""
        reward, terminated = self._game.act(self._moves[int(action)])
        return self._observe(), float(reward), bool(terminated), False, {}

    def render(self) -> NDArray[np.uint8]:  # type: ignore[override]
        """The field, uint8 [320, 320, 3]: each cell in the colour of its first channel that is set."""
        state = self._observe()
        colors = _COLORS[state.argmax(axis=2)]
        colors[state.max(axis=2) == 0] = 0
        picture: NDArray[np.uint8] = colors.repeat(_CELL_PIXELS, axis=0).repeat(_CELL_PIXELS, axis=1)
        return picture

    def _observe(self) -> NDArray[np.uint8]:
        state: NDArray[np.uint8] = np.asarray(self._game.state()).astype(np.uint8)
        return state


def make(
    game: str, sticky_actions: float = 0.1, difficulty_ramping: bool = True, minimal_actions: bool = False
) -> MinAtar:
    """A game, for ``environment.id: onibi.actors.environments.minatar:make``; the defaults are MinAtar's."""
    return MinAtar(game, sticky_actions, difficulty_ramping=difficulty_ramping, minimal_actions=minimal_actions)
