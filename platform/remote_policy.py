"""A policy whose forward pass is computed in another process, for many actors at once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np

from onibi.platform.errors import ConfigError
from onibi.platform.forward_policy import ForwardPolicy, ForwardPolicyFactory, Rows
from onibi.platform.policy import NO_WEIGHTS, LaneRange, Policy, PolicyFactory, PolicyStep, Weights, WeightsVersion
from onibi.platform.stacked_policy import StackedPolicy, StackedPolicyFactory


@dataclass(frozen=True)
class Answer:
    """What a forward pass gave for one caller's rows."""

    version: WeightsVersion
    """Of the weights that it was made with; ``NO_WEIGHTS`` while there are none."""
    outputs: Rows | None
    """[N, ...] by name; None while there are no weights."""


Ask = Callable[[Rows], Answer]
"""Sends inputs [N, ...] and waits for their outputs."""


class RemotePolicy:
    """Explores and samples here; the weights, and with them the version of its actions, are the other side's.

    Args:
        policy: made without a forward pass.
        ask: computes it.
    """

    def __init__(self, policy: ForwardPolicy, ask: Ask) -> None:
        self._policy, self._ask = policy, ask
        self.version: WeightsVersion = NO_WEIGHTS

    def initial_state(self, envs: int) -> Any:
        """See ``Policy``."""
        return self._policy.initial_state(envs)

    def act(self, observation: Rows, state: Any, rng: np.random.Generator) -> PolicyStep:
        """See ``Policy.act``; ``version`` is that of this step afterwards."""
        answer = self._ask(self._policy.inputs(observation, state, rng))
        if answer.version != self.version:
            self._policy.follow(answer.version)
            self.version = answer.version
        return self._policy.choose(answer.outputs, observation, state, rng)

    def load(self, weights: Weights) -> None:
        """Weights go to the process that computes the forward passes. Raises: RuntimeError."""
        raise RuntimeError(f"weights of version {weights.version} were given to a policy that computes elsewhere")


@runtime_checkable
class _TwoHalves(Protocol):
    def forward(self, device: str = "cpu") -> Any:
        """As ``ForwardPolicyFactory``."""

    def around(self, forward: None, lanes: LaneRange | None) -> ForwardPolicy:
        """As ``ForwardPolicyFactory``."""


def halves_of(factory: PolicyFactory) -> ForwardPolicyFactory:
    """What makes the two halves of a learner's policies, frame stacks apart.

    Raises: ConfigError where they come in one piece, or draw noise that has the shape of the weights.
    """
    inner = factory.inner if isinstance(factory, StackedPolicyFactory) else factory
    if not isinstance(inner, _TwoHalves):
        raise ConfigError(
            "placement.inference is set, but this learner's policies compute and choose in one piece "
            f"({type(inner).__name__} has no forward and around: see platform/forward_policy.py). Set it to null."
        )
    if getattr(inner, "noisy", None):
        raise ConfigError(
            "placement.inference is set, but learner.noisy draws noise on the weights for each environment, which "
            "actors would have to send along. Set one of them to null."
        )
    return inner  # type: ignore[return-value]


def remote_policy(factory: PolicyFactory, lanes: LaneRange | None, ask: Ask) -> Policy:
    """As ``factory(lanes)``, with the forward pass computed by ``ask``; frames are stacked here.

    Raises: ConfigError as ``halves_of``.
    """
    policy: Policy = RemotePolicy(halves_of(factory).around(None, lanes), ask)
    return StackedPolicy(policy, factory.stack) if isinstance(factory, StackedPolicyFactory) else policy
