"""A policy that sees frame stacks, around one that takes them as its observation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onibi.platform.policy import LaneRange, Policy, PolicyFactory, PolicyStep, Weights, WeightsVersion
from onibi.platform.replay.samplers.frame_stack import FrameStack


class StackedPolicy:
    """Keeps the last frames of each lane and hands them to ``policy`` as they are drawn from replay.

    Its state is [E, S + 1] float32: that of ``policy`` (S = 0 where it has none), and 1 where frames were seen. A
    rollout sets a lane's state to the initial one when an episode begins, and its 0 there tells.
    """

    def __init__(self, policy: Policy, stack: FrameStack) -> None:
        self._policy, self._stack = policy, stack
        self.version: WeightsVersion = policy.version
        self._frames: dict[str, NDArray[Any]] = {}
        self._remembers = False  # the policy has a state of its own

    def initial_state(self, envs: int) -> Any:
        """[envs, S + 1] float32, 0 in the last place."""
        inner = self._policy.initial_state(envs)
        self._remembers = inner is not None
        seen = np.zeros((envs, 1), np.float32)
        return seen if inner is None else np.concatenate([np.asarray(inner, np.float32), seen], axis=1)

    def act(self, observation: Mapping[str, NDArray[Any]], state: Any, rng: np.random.Generator) -> PolicyStep:
        """Push the newest frames, then as the policy within."""
        fresh = state[:, -1] == 0
        stacked = {name: self._pushed(name, leaf, fresh) for name, leaf in observation.items()}
        step = self._policy.act(stacked, state[:, :-1] if self._remembers else None, rng)
        self.version = self._policy.version  # one that computes elsewhere learns it with its outputs
        seen = np.ones((len(fresh), 1), np.float32)
        after = np.concatenate([step.state, seen], axis=1) if self._remembers else seen
        return PolicyStep(step.action, after, step.extra)

    def load(self, weights: Weights) -> None:
        """Of the policy within; frames stay."""
        self._policy.load(weights)
        self.version = self._policy.version

    def _pushed(self, name: str, leaf: NDArray[Any], fresh: NDArray[np.bool_]) -> NDArray[Any]:
        """[E, k, ...] frames up to ``leaf`` [E, ...]; its first frame k times in fresh lanes."""
        if name not in self._stack.leaves:
            return leaf
        frames = self._frames.get(name)
        if frames is None or len(frames) != len(leaf):
            frames = np.zeros((len(leaf), self._stack.frames, *leaf.shape[1:]), leaf.dtype)
        else:
            frames = np.roll(frames, -1, axis=1)  # a new array: the last one may still be looked at
        frames[:, -1] = leaf
        frames[fresh] = leaf[fresh, None]
        self._frames[name] = frames
        return frames


@dataclass(frozen=True)
class StackedPolicyFactory:
    """Makes policies that see frame stacks."""

    inner: PolicyFactory
    stack: FrameStack

    def __call__(self, lanes: LaneRange | None) -> Policy:
        """See ``PolicyFactory``."""
        return StackedPolicy(self.inner(lanes), self.stack)
