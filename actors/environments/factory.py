"""Vector environments by Gymnasium id or import path, with episode ends told as they are."""

from __future__ import annotations

import importlib
import os
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import gymnasium as gym
from gymnasium.envs.registration import EnvSpec, load_env_creator
from gymnasium.vector import AutoresetMode, VectorEnv

from onibi.actors.environments.atari import AtariGames, atari_options, frames_a_step, is_atari, register_atari
from onibi.actors.environments.minigrid import MiniGridEpisodes, is_minigrid, register_minigrid
from onibi.actors.environments.nethack import NetHackEpisodes, engine_options, has_goal, is_nethack
from onibi.actors.environments.process_exit import is_by_signal
from onibi.actors.environments.sync_environments import SyncEnvironments
from onibi.platform.config import Settings
from onibi.platform.errors import EnvironmentFault
from onibi.platform.redaction import text_without_secrets, without_secrets
from onibi.platform.shell_words import pip_install
from onibi.platform.user_code import raised_at


@dataclass(frozen=True, kw_only=True)
class EnvironmentSettings(Settings):
    """Which environment, and how many of it step together.

    ``id`` is a Gymnasium id (``CartPole-v1``), one that importing a module registers (``my_pkg:Mine-v0``), or an import
    path (``my_pkg.envs:make``) of a callable that returns a ``gymnasium.Env``, or with ``vectorization: native`` takes
    ``num_envs`` and returns a ``VectorEnv``.
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
        try:
            # One compiled level a time: MiniHack runs a shell script at construction (shared files in its folder).
            vector_env = SyncEnvironments([maker] * envs, copy=False, autoreset_mode=AutoresetMode.NEXT_STEP)
        except (Exception, SystemExit) as error:  # spaces that are missing, that differ, or that make no batch
            if isinstance(error, EnvironmentFault) or is_by_signal(error):
                raise
            raise EnvironmentFault(
                f"{settings.id}: its environments cannot step together, {envs} of them: {error}"
            ) from error
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
    env_id = _registered_id(settings.id)
    if env_id is None:
        made = _call_maker(settings.id, _import_maker(settings.id), {**options, "num_envs": envs})
    else:
        if gym.spec(env_id).vector_entry_point is None:
            raise EnvironmentFault(
                f"{settings.id} has no vector_entry_point of its own; set environment.vectorization=sync."
            )
        made = _call_maker(
            settings.id,
            lambda **given: gym.make_vec(env_id, num_envs=envs, vectorization_mode="vector_entry_point", **given),
            atari_options(options) if is_atari(env_id) else options,
        )
        if is_atari(env_id):
            made = AtariGames(made, frames_a_step(options))
    if not isinstance(made, VectorEnv):
        raise EnvironmentFault(
            f"{settings.id} returned {type(made).__name__}; environment.vectorization=native needs a "
            "gymnasium.vector.VectorEnv. Return one, or set environment.vectorization=sync."
        )
    return made


def _single_maker(settings: EnvironmentSettings, observation_keys: tuple[str, ...]) -> Callable[[], gym.Env[Any, Any]]:
    env_id = _registered_id(settings.id)
    name = env_id or ""  # a callable's environment is taken as it is
    if env_id is None:
        maker: Callable[..., Any] = _import_maker(settings.id)
    else:

        def maker(**given: Any) -> Any:
            return gym.make(env_id, disable_env_checker=True, **given)

    def make() -> gym.Env[Any, Any]:
        options = dict(settings.kwargs)
        if is_nethack(name):
            options = {**engine_options(name, creator_of(name), observation_keys), **options}
        if settings.max_episode_steps is not None and env_id is not None:
            options["max_episode_steps"] = settings.max_episode_steps
        made = _call_maker(settings.id, maker, options)
        if not isinstance(made, gym.Env):
            raise EnvironmentFault(f"{settings.id} returned {type(made).__name__}, not a gymnasium.Env.")
        if settings.max_episode_steps is not None and env_id is None:
            made = gym.wrappers.TimeLimit(made, settings.max_episode_steps)
        if is_nethack(name) and hasattr(made.unwrapped, "nethack"):
            made = NetHackEpisodes(made, has_goal=has_goal(name), limit=options.get("max_episode_steps"))
        elif is_minigrid(name):
            made = MiniGridEpisodes(made)
        return made  # type: ignore[no-any-return]

    return make


def environment_spec(given: str) -> EnvSpec | None:
    """What Gymnasium knows of the environment with this id; None for the import path of a callable.

    Raises: EnvironmentFault for one that it does not know.
    """
    env_id = _registered_id(given)
    return None if env_id is None else gym.spec(env_id)


def creator_of(given: str) -> Callable[..., Any]:
    """The class or function that makes an environment of this id or import path.

    Raises: EnvironmentFault where it is not there, or makes no single environment.
    """
    spec = environment_spec(given)
    if spec is None:
        return _import_maker(given)
    if spec.entry_point is None:
        raise EnvironmentFault(f"{given} has no entry_point, only a vector_entry_point.")
    return load_env_creator(spec.entry_point) if isinstance(spec.entry_point, str) else spec.entry_point


def _call_maker(env_id: str, maker: Callable[..., Any], options: Mapping[str, Any]) -> Any:
    try:
        return maker(**options)
    except (Exception, SystemExit) as error:
        if isinstance(error, EnvironmentFault) or is_by_signal(error):
            raise
        given = ", ".join(f"{key}={value!r}" for key, value in without_secrets(options).items()) or "no arguments"
        said = text_without_secrets(f"{given}: {type(error).__name__}: {error}{raised_at(error)}", options)
        if isinstance(error, gym.error.DependencyNotInstalled) and "box2d" in str(error).lower():
            raise EnvironmentFault(
                f"{env_id} needs the package Box2D. Install it with: {pip_install('onibi[box2d]')}"
            ) from error
        raise EnvironmentFault(f"{env_id} cannot be made with {said}. Check environment.kwargs.") from error


def _registered_id(given: str) -> str | None:
    """The id under which Gymnasium knows an environment; None for the import path of a callable.

    "my_pkg:Mine-v0" is no path, as no attribute has such a name: importing my_pkg registers Mine-v0, as in Gymnasium.
    """
    module, colon, name = given.partition(":")
    if not colon or given in gym.registry:
        _require_registered(given)
        return given
    if not name or name.isidentifier():
        return None
    _import_module(module, given)
    _require_registered(name)
    return name


def _require_registered(env_id: str) -> None:
    if is_nethack(env_id):
        _register_nethack(env_id)
    elif is_minigrid(env_id):
        register_minigrid()
    elif is_atari(env_id):
        register_atari()
    try:
        gym.spec(env_id)
    except (gym.error.Error, ModuleNotFoundError) as error:
        import difflib

        near = difflib.get_close_matches(env_id, list(gym.registry), n=3)
        hint = f" Nearest: {', '.join(near)}." if near else ""
        raise EnvironmentFault(
            f"environment.id: {env_id!r} is not a registered Gymnasium id ({error}).{hint} Where importing a module of "
            "yours registers it, give both, as my_pkg:Mine-v0; an import path looks like my_pkg.envs:make."
        ) from error


def _register_nethack(env_id: str) -> None:
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "pkg_resources is deprecated", UserWarning)  # minihack's business
            importlib.import_module("minihack" if env_id.startswith("MiniHack") else "nle")
    except ImportError as error:
        raise EnvironmentFault(
            f"environment.id: {env_id} needs the packages nle and minihack ({error}). "
            f"Install them with: {pip_install('onibi[nethack]')}"
        ) from error


def _import_maker(path: str) -> Callable[..., Any]:
    module_name, _, attribute = path.partition(":")
    try:
        maker = getattr(_import_module(module_name, path), attribute)
    except AttributeError as error:
        registered = next((env_id for env_id, spec in gym.registry.items() if spec.name == attribute), None)
        if registered is not None:
            raise EnvironmentFault(
                f"environment.id: {path!r}: {module_name} has no {attribute!r} that could be called, and Gymnasium "
                f"knows an id {registered}. Give it with its version: {module_name}:{registered}."
            ) from error
        raise EnvironmentFault(_not_imported(path, error)) from error
    if not callable(maker):
        raise EnvironmentFault(f"environment.id: {path!r} is a {type(maker).__name__}, not a callable.")
    return maker  # type: ignore[no-any-return]


def _import_module(name: str, path: str) -> ModuleType:
    """The module of ``path``, the whole ``environment.id``."""
    try:
        return importlib.import_module(name)
    except (Exception, SystemExit) as error:  # whatever the user's module does when it is imported
        if is_by_signal(error):
            raise
        absent = error.name if isinstance(error, ModuleNotFoundError) else None
        if absent is not None and f"{name}.".startswith(f"{absent}."):
            raise EnvironmentFault(_not_found(path, absent)) from error
        raise EnvironmentFault(_not_imported(path, error)) from error


def _not_imported(path: str, error: BaseException) -> str:
    return (
        f"environment.id: {path!r} cannot be imported: {type(error).__name__}: {error}{raised_at(error)}. It must name "
        "a callable as module:callable, or a module that registers an id as module:Id-v0."
    )


def _not_found(path: str, module: str) -> str:
    """That a module is on none of the places where Python looks."""
    given = [entry for entry in os.environ.get("PYTHONPATH", "").split(os.pathsep) if entry]
    places = ", ".join([str(Path.cwd()), *given])
    return (
        f"environment.id: {path!r}: the module {module} cannot be found (looked in {places} and among the installed "
        "packages). Start onibi in the folder where it lies, or set PYTHONPATH to it; on a cluster on every node, or "
        f"send it along: onibi submit … --module {module.partition('.')[0]}, or ray job submit --working-dir."
    )
