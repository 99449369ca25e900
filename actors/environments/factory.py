"""Vector environments by Gymnasium id or import path, with episode ends told as they are."""

from __future__ import annotations

import importlib
import os
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import gymnasium as gym
from gymnasium.vector import AutoresetMode, SyncVectorEnv, VectorEnv

from onibi.actors.environments.minigrid import MiniGridEpisodes, is_minigrid, register_minigrid
from onibi.actors.environments.nethack import NetHackEpisodes, has_goal, is_nethack
from onibi.platform.config import Settings
from onibi.platform.errors import EnvironmentFault
from onibi.platform.redaction import text_without_secrets, without_secrets
from onibi.platform.user_code import raised_at


@dataclass(frozen=True, kw_only=True)
class EnvironmentSettings(Settings):
    """Which environment, and how many of it step together.

    ``id`` is a Gymnasium id (``CartPole-v1``) or an import path (``my_pkg.envs:make``) of a callable that returns a
    ``gymnasium.Env``, or with ``vectorization: native`` takes ``num_envs`` and returns a ``VectorEnv``.
    """

    id: str
    kwargs: dict[str, Any] = field(default_factory=dict)  # handed to the environment
    vectorization: Literal["sync", "native"] = "sync"  # native: the environment's own vector_entry_point
    max_episode_steps: int | None = None  # env steps; arrives as truncated

    def __post_init__(self) -> None:
        if self.max_episode_steps is not None and self.max_episode_steps < 1:
            raise ValueError(f"max_episode_steps is {self.max_episode_steps}; allowed: 1 or more, or null for none")


def make_vector_env(
    settings: EnvironmentSettings, envs: int, observation_keys: tuple[str, ...] = ()
) -> VectorEnv[Any, Any, Any]:
    """E = ``envs`` environments stepping together.

    Args:
        settings: which environment.
        envs: number of environments E.
        observation_keys: raw NetHack observation keys that view and captioner read. NLE fills only what is asked
            for, and fewer keys step up to twice as fast; other environments ignore it.

    Raises:
        EnvironmentFault: unknown id or import path, the maker raised, or no autoreset mode is declared.
    """
    if settings.vectorization == "native":
        vector_env = _make_native(settings, envs)
    else:
        maker = _single_maker(settings, observation_keys)
        # One compiled level a time: MiniHack runs a shell script at construction (shared files in its folder).
        vector_env = SyncVectorEnv([maker] * envs, copy=False, autoreset_mode=AutoresetMode.NEXT_STEP)
    autoreset_mode(vector_env, settings.id)
    return vector_env


def autoreset_mode(vector_env: VectorEnv[Any, Any, Any], env_id: str) -> AutoresetMode:
    """The declared autoreset mode.

    Raises:
        EnvironmentFault: ``metadata["autoreset_mode"]`` is missing or not one of Gymnasium's: guessing it would
            turn final observations into first ones.
    """
    declared = vector_env.metadata.get("autoreset_mode")
    try:
        return AutoresetMode(declared)
    except ValueError:
        allowed = ", ".join(mode.value for mode in AutoresetMode)
        raise EnvironmentFault(
            f"{env_id}: metadata['autoreset_mode'] of its vector environment is {declared!r}; allowed: {allowed}. "
            "Declare it in the environment's metadata, or set environment.vectorization=sync."
        ) from None


def _make_native(settings: EnvironmentSettings, envs: int) -> VectorEnv[Any, Any, Any]:
    options: dict[str, Any] = dict(settings.kwargs)
    if settings.max_episode_steps is not None:
        options["max_episode_steps"] = settings.max_episode_steps
    if ":" in settings.id and settings.id not in gym.registry:
        made = _call_maker(settings.id, _import_maker(settings.id), {**options, "num_envs": envs})
    else:
        _require_registered(settings.id)
        if gym.spec(settings.id).vector_entry_point is None:
            raise EnvironmentFault(
                f"{settings.id} has no vector_entry_point of its own; set environment.vectorization=sync."
            )
        made = _call_maker(
            settings.id,
            lambda **given: gym.make_vec(settings.id, num_envs=envs, vectorization_mode="vector_entry_point", **given),
            options,
        )
    if not isinstance(made, VectorEnv):
        raise EnvironmentFault(
            f"{settings.id} returned {type(made).__name__}; environment.vectorization=native needs a "
            "gymnasium.vector.VectorEnv. Return one, or set environment.vectorization=sync."
        )
    return made


def _single_maker(settings: EnvironmentSettings, observation_keys: tuple[str, ...]) -> Callable[[], gym.Env[Any, Any]]:
    by_path = ":" in settings.id and settings.id not in gym.registry
    if by_path:
        maker: Callable[..., Any] = _import_maker(settings.id)
    else:
        _require_registered(settings.id)

        def maker(**given: Any) -> Any:
            return gym.make(settings.id, disable_env_checker=True, **given)

    def make() -> gym.Env[Any, Any]:
        options = dict(settings.kwargs)
        if is_nethack(settings.id) and observation_keys:
            options.setdefault("observation_keys", observation_keys)
        if settings.max_episode_steps is not None and not by_path:
            options["max_episode_steps"] = settings.max_episode_steps
        made = _call_maker(settings.id, maker, options)
        if not isinstance(made, gym.Env):
            raise EnvironmentFault(f"{settings.id} returned {type(made).__name__}, not a gymnasium.Env.")
        if settings.max_episode_steps is not None and by_path:
            made = gym.wrappers.TimeLimit(made, settings.max_episode_steps)
        if is_nethack(settings.id):
            made = NetHackEpisodes(made, has_goal=has_goal(settings.id))
        elif is_minigrid(settings.id):
            made = MiniGridEpisodes(made)
        return made  # type: ignore[no-any-return]

    return make


def _call_maker(env_id: str, maker: Callable[..., Any], options: Mapping[str, Any]) -> Any:
    try:
        return maker(**options)
    except EnvironmentFault:
        raise
    except Exception as error:
        given = ", ".join(f"{key}={value!r}" for key, value in without_secrets(options).items()) or "no arguments"
        said = text_without_secrets(f"{given}: {type(error).__name__}: {error}{raised_at(error)}", options)
        if isinstance(error, gym.error.DependencyNotInstalled) and "box2d" in str(error).lower():
            raise EnvironmentFault(
                f"{env_id} needs the package Box2D. Install it with: pip install 'onibi[box2d]'"
            ) from error
        raise EnvironmentFault(f"{env_id} cannot be made with {said}. Check environment.kwargs.") from error


def _require_registered(env_id: str) -> None:
    if is_nethack(env_id):
        _register_nethack(env_id)
    elif is_minigrid(env_id):
        register_minigrid()
    try:
        gym.spec(env_id)
    except (gym.error.Error, ModuleNotFoundError) as error:
        import difflib

        near = difflib.get_close_matches(env_id, list(gym.registry), n=3)
        hint = f" Nearest: {', '.join(near)}." if near else ""
        raise EnvironmentFault(
            f"environment.id: {env_id!r} is not a registered Gymnasium id ({error}).{hint} "
            "An import path looks like my_pkg.envs:make."
        ) from error


def _register_nethack(env_id: str) -> None:
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "pkg_resources is deprecated", UserWarning)  # minihack's business
            importlib.import_module("minihack" if env_id.startswith("MiniHack") else "nle")
    except ImportError as error:
        raise EnvironmentFault(
            f"environment.id: {env_id} needs the packages nle and minihack ({error}). "
            "Install them with: pip install 'onibi[nethack]'"
        ) from error


def _import_maker(path: str) -> Callable[..., Any]:
    module_name, _, attribute = path.partition(":")
    try:
        maker = getattr(importlib.import_module(module_name), attribute)
    except Exception as error:  # whatever the user's module does when it is imported
        absent = isinstance(error, ModuleNotFoundError) and error.name is not None
        if absent and f"{module_name}.".startswith(f"{error.name}."):  # type: ignore[attr-defined]
            raise EnvironmentFault(_not_found(path, str(error.name))) from error  # type: ignore[attr-defined]
        raise EnvironmentFault(
            f"environment.id: {path!r} cannot be imported: {type(error).__name__}: {error}{raised_at(error)}. It must "
            "name a callable as module:callable."
        ) from error
    if not callable(maker):
        raise EnvironmentFault(f"environment.id: {path!r} is a {type(maker).__name__}, not a callable.")
    return maker  # type: ignore[no-any-return]


def _not_found(path: str, module: str) -> str:
    """That a module is on none of the places where Python looks."""
    given = [entry for entry in os.environ.get("PYTHONPATH", "").split(os.pathsep) if entry]
    places = ", ".join([str(Path.cwd()), *given])
    return (
        f"environment.id: {path!r}: the module {module} cannot be found (looked in {places} and among the installed "
        "packages). Start onibi in the folder where it lies, or set PYTHONPATH to it, on a cluster on every node."
    )
