"""What NLE and MiniHack tell otherwise than Gymnasium, put right in one wrapper."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable
from typing import Any, cast

import gymnasium as gym
import numpy as np

log = logging.getLogger(__name__)

_ABORTED, _TASK_SUCCESSFUL = -1, 2  # nle's StepStatus; its import costs half a second
_BLSTATS_SCORE, _BLSTATS_DEPTH = 9, 12

MESSAGE_PAGES = "message_pages"
"""Key of the info that holds a step's messages, one page a line, where ``message`` shows only the last of them."""

_OPEN_ENDED = ("NetHack-v0", "NetHackScore", "NetHackChallenge", "NetHackGold", "NetHackEat", "NetHackScout")


def has_goal(env_id: str) -> bool:
    """Whether an episode of this NetHack task can succeed."""
    return not env_id.startswith(_OPEN_ENDED)


def is_nethack(env_id: str) -> bool:
    """Whether the id belongs to NLE or MiniHack."""
    return env_id.startswith(("NetHack", "MiniHack"))


def engine_options(env_id: str, creator: Callable[..., Any], observation_keys: tuple[str, ...]) -> dict[str, Any]:
    """Arguments that a NetHack task is made with where the user names none.

    The engine looks at the clock: at full moon all games are lucky, on a Friday the 13th all prayers fail, and the same
    seeds give other games than a week before. ``fix_moon_phase`` takes the date from a game's seeds instead, so every
    run meets all phases.

    Args:
        env_id: of the task.
        creator: its class or function; one that takes no ``fix_moon_phase`` keeps the clock.
        observation_keys: what of the observation is read; () for all.
    """
    options: dict[str, Any] = {}
    if observation_keys:
        # MiniHack's own key and door actions look the inventory up in the last two.
        own = ("inv_strs", "inv_letters") if env_id.startswith("MiniHack") else ()
        options["observation_keys"] = tuple(dict.fromkeys((*observation_keys, *own)))
    parameters = inspect.signature(creator).parameters
    if "fix_moon_phase" in parameters or any(each.kind is each.VAR_KEYWORD for each in parameters.values()):
        options["fix_moon_phase"] = True
    return options


class NetHackEpisodes(gym.Wrapper[Any, Any, Any, Any]):
    """Seeds every reset, tells time limits as ``truncated``, and gives each episode's figures.

    * NLE ignores ``reset(seed=…)``; its own ``seed()`` holds for the next reset only. Here a seeded reset starts a
      stream from which each later reset of this environment takes its game seeds, so a seeded run repeats.
    * NLE quits the game where a task is over or its step limit reached, and shows what is left then: a blank map, from
      which truncated episodes would be bootstrapped. Here what the agent saw last stays, and the game is quit at the
      next reset: the engine would never free it otherwise.
    * NLE's step limit, or that it gives up (NetHackChallenge: no progress), comes as ``terminated`` with ``end_status``
      ABORTED; value targets would take it for death. A goal that is met in the last permitted step counts here.
    * A step that shows several pages ("--More--", answered by NLE itself; MiniHack's macro actions) leaves only the
      last one in ``message``. ``info["message_pages"]`` holds all, one a line, where more was said than is seen.
    * At an episode's end ``info["episode_figures"]`` holds ``score``, ``depth`` (deepest level reached) and
      ``success`` (1 where the task's goal was met; absent in open-ended games, whose goal nobody meets).

    Args:
        env: as Gymnasium makes it.
        has_goal: whether an episode can succeed.
        limit: steps after which an episode is aborted; None leaves NLE's own.
    """

    def __init__(self, env: gym.Env[Any, Any], *, has_goal: bool = True, limit: int | None = None) -> None:
        super().__init__(env)
        self._has_goal = has_goal
        self._engine = engine = cast(Any, env.unwrapped)
        if limit is not None:
            engine._max_episode_steps = limit  # noqa: SLF001 - NLE takes it at construction alone, here as below
        self._quit_game = engine._quit_game  # noqa: SLF001
        engine._quit_game = _stay  # noqa: SLF001
        engine._get_end_status = self._end_status  # noqa: SLF001
        self._pages = MessagePages(engine)
        self._game_seeds: np.random.Generator | None = None
        self._deepest = 0.0
        self._score = 0.0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Start a game; with ``seed``, restart the stream of game seeds as well."""
        if self._pages.game_goes_on:
            self._quit_game(self._engine.last_observation, False)  # noqa: FBT003 - NLE's "done"
        if seed is not None:
            self._game_seeds = np.random.default_rng(seed)
        if self._game_seeds is not None:
            core, display = (int(number) for number in self._game_seeds.integers(0, 2**31 - 1, size=2))
            self._seed(core, display)
        observation, _ = self.env.reset(options=options)
        self._pages.game_goes_on = True
        self._deepest = self._score = 0.0
        self._note(observation)
        return observation, {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """One step; ABORTED becomes ``truncated``."""
        self._pages.forget()
        observation, reward, terminated, truncated, info = self.env.step(action)
        self._note(observation)
        pages = self._pages.unseen()
        told = {} if pages is None else {MESSAGE_PAGES: pages}
        if not (terminated or truncated):
            return observation, float(reward), False, False, told
        status = int(info["end_status"])
        if status == _ABORTED:
            terminated, truncated = False, True
        figures = {"score": self._score, "depth": self._deepest}
        if self._has_goal:
            figures["success"] = float(status == _TASK_SUCCESSFUL)
        return observation, float(reward), terminated, truncated, {"episode_figures": figures, **told}

    def _seed(self, core: int, display: int) -> None:
        try:
            self._engine.seed(core, display, reseed=False)
        except RuntimeError as error:  # NetHackChallenge's rule
            log.warning("games will not repeat under the run's seed: %s", error)
            self._game_seeds = None

    def _end_status(self, observation: Any, ended: bool) -> Any:
        """As NLE's, which does not look for the goal in the last permitted step."""
        engine = self._engine
        goal = engine._is_episode_end(observation)  # noqa: SLF001 - reward managers of MiniHack count on this call
        status = ended or goal
        if not status and engine._check_abort(observation):  # noqa: SLF001
            return engine.StepStatus.ABORTED
        return engine.StepStatus(status)

    def _note(self, observation: Any) -> None:
        blstats = observation.get("blstats")
        if blstats is not None:
            # A game that ended shows zeros; the last living figures are the episode's.
            self._score = max(self._score, float(blstats[_BLSTATS_SCORE]))
            self._deepest = max(self._deepest, float(blstats[_BLSTATS_DEPTH]))


def _stay(_observation: Any, _ended: bool) -> None:
    """In place of NLE's keys that quit a game; they are sent later."""


class MessagePages:
    """What the game said between two actions: the message behind each key that NLE or MiniHack sent to the engine.

    NLE answers "--More--" with a blank and leaves questions with Escape, so a fight's kill, or "You die...", is not in
    the observation that the action brings. About one step of random play in a hundred says more than it shows
    (16,000 steps each: NetHackScore 0.8%, Quest-Easy 1.3%); of KeyRoom-S5's 13 keys 5 are heard in no other way.

    Args:
        env: the unwrapped environment; its engine's ``step`` is listened to.
    """

    def __init__(self, env: Any) -> None:
        self._engine_step = env.nethack.step
        self._message_at = env._message_index  # noqa: SLF001 - NLE's observation tuple has no names
        self._pages: list[bytes] = []
        self.game_goes_on = False
        """Whether the engine has a game that has not ended; whoever begins one says so."""
        env.nethack.step = self._step

    def forget(self) -> None:
        """An action begins."""
        self._pages.clear()

    def unseen(self) -> str | None:
        """All pages of the action, one a line; None where the last message tells it all."""
        pages = self._pages
        if len(pages) < 2:
            return None
        said: list[bytes] = []
        for page in pages:
            if page and (not said or page != said[-1]):
                said.append(page)
        if not said or said == pages[-1:]:
            return None
        return b"\n".join(said).decode("latin-1")

    def _step(self, key: int) -> Any:
        observation, ended = self._engine_step(key)
        self.game_goes_on = not ended
        message = observation[self._message_at]
        # A message that the engine itself breaks into lines is one page.
        self._pages.append(message.tobytes().partition(b"\0")[0].replace(b"\n", b" ") if message[0] else b"")
        return observation, ended
