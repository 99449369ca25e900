"""A scripted environment and policy whose every row can be told beforehand, and rollouts around them."""

from __future__ import annotations

import itertools

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from onibi.actors.captioners.info import InfoCaptioner, InfoCaptionerSettings
from onibi.actors.rollout import Rollout, RolloutIdentity, RolloutSettings
from onibi.actors.views.leaves import LeavesSettings, LeavesView
from onibi.platform.policy import NO_WEIGHTS, PolicyStep
from onibi.platform.spec import ArraySpec, ReplaySpec

ACTIONS = 3


class Scripted(gym.Env):
    """Observation (lane, episode, step, sum of actions); the script below says the rest.

    With ``reuse`` it gives one array again and again, as NLE does.
    """

    def __init__(self, lane: int, reuse: bool = True) -> None:
        self.observation_space = gym.spaces.Box(-np.inf, np.inf, (4,), np.float32)
        self.action_space = gym.spaces.Discrete(ACTIONS)
        self._lane, self._episode = lane, -1
        self._array, self._reuse = np.zeros(4, np.float32), reuse

    def reset(self, *, seed=None, options=None):
        self._episode += 1
        self._step = self._sum = 0
        # Every third episode begins with words that must be counted and never be paid.
        info = {"caption": "It rains."} if self._episode % 3 == 0 else {}
        return self._observe(), info

    def step(self, action):
        self._step += 1
        self._sum += int(action)
        step, episode, lane = self._step, self._episode, self._lane
        length = 2 + (episode * 3 + lane * 2) % 5
        terminated = step == length and episode % 2 == 0
        truncated = step == length and episode % 4 != 2  # both at once in every fourth
        info = {}
        if terminated:
            info["caption"] = "You fall."
        elif step % 3 != 2:
            info["caption"] = "It rains." if step % 2 else f"You find {action} coins."
        if terminated or truncated:
            info["episode_figures"] = {"success": float(terminated)}
        return self._observe(), float(step + 10 * action), terminated, truncated, info

    def _observe(self):
        self._array[:] = (self._lane, self._episode, self._step, self._sum)
        return self._array if self._reuse else self._array.copy()


class ScriptedPolicy:
    """Acts by what it sees alone, so a reference can act alike."""

    def __init__(self) -> None:
        self.version = NO_WEIGHTS
        self.loaded = []

    def initial_state(self, envs):
        return np.zeros((envs, 1), np.float32)

    def act(self, observation, state, rng):
        return PolicyStep(action=choose(observation["observation"]), state=state + 1)

    def load(self, weights):
        self.version = weights.version
        self.loaded.append(int(weights.version))


def choose(observation):
    """[..., 4] → [...]."""
    return ((observation[..., 0] + 2 * observation[..., 2] + observation[..., 3]) % ACTIONS).astype(np.int64)


def spec_of(counts: bool) -> ReplaySpec:
    leaves = [ArraySpec(name="observation", dtype="float32", shape=(4,))]
    if counts:
        leaves.append(ArraySpec(name="observation.caption_counts", dtype="float32", shape=(65,)))
    return ReplaySpec(observation=tuple(leaves), actions=ACTIONS, keys_per_caption=1)


def rollout_of(env, *, policy=None, identity=None, counts=True, clock=None, **settings) -> Rollout:
    """A rollout around a vector environment with the scripted spaces."""
    settings = {"envs_per_actor": env.num_envs, "fragment_seconds": 0.0, **settings}
    return Rollout(
        env,
        LeavesView(LeavesSettings(), env.single_observation_space),
        InfoCaptioner(InfoCaptionerSettings()),
        policy or ScriptedPolicy(),
        spec_of(counts),
        RolloutSettings(**settings),
        identity or RolloutIdentity(actor=3, incarnation=2, next_sequence=5, seed=9),
        "scripted",
        **({} if clock is None else {"clock": clock}),
    )


@pytest.fixture
def scripted():
    """The environment class, the policy class, and how that policy chooses."""
    return Scripted, ScriptedPolicy, choose


@pytest.fixture
def make_scripted_env():
    def make(mode: AutoresetMode, envs: int):
        numbers = itertools.count()
        # Gymnasium's SyncVectorEnv itself loses final observations of such environments in SAME_STEP.
        reuse = mode is not AutoresetMode.SAME_STEP
        return SyncVectorEnv([lambda: Scripted(next(numbers), reuse)] * envs, copy=False, autoreset_mode=mode)

    return make


@pytest.fixture
def make_rollout():
    return rollout_of
