"""Policies in two halves: a network's forward pass, which may run elsewhere, and what is made of its outputs here.

The halves are apart so that one process can compute the forward passes of many actors at once (``remote_policy.py``):
what is an actor's own — its exploration, its random numbers — stays with it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from onibi.platform.policy import (
    NO_WEIGHTS,
    LaneRange,
    PolicyFactory,
    PolicyStep,
    Weights,
    WeightsVersion,
)

Rows = Mapping[str, NDArray[Any]]
"""Arrays [N, ...] by name, with the same N."""


class Forward(Protocol):
    """A published network. What it gives for a row hangs on no other row: rows of several callers may come at once."""

    def load(self, arrays: Rows) -> None:
        """Take parameters and buffers by their names in the torch module."""

    def __call__(self, inputs: Rows) -> dict[str, NDArray[Any]]:
        """Outputs [N, ...] by name of inputs [N, ...]. Raises: RuntimeError before the first ``load``."""


class ForwardPolicy(ABC):
    """Acts at random without weights, else by what its forward pass gives.

    Args:
        forward: without weights yet; None where only ``inputs``, ``choose`` and ``follow`` are used.
    """

    def __init__(self, forward: Forward | None) -> None:
        self.version: WeightsVersion = NO_WEIGHTS
        self._forward = forward

    @abstractmethod
    def initial_state(self, envs: int) -> Any:
        """See ``Policy``."""

    @abstractmethod
    def inputs(self, observation: Rows, state: Any, rng: np.random.Generator) -> Rows:
        """What the forward pass reads of a step."""

    @abstractmethod
    def choose(self, outputs: Rows | None, observation: Rows, state: Any, rng: np.random.Generator) -> PolicyStep:
        """Actions by what the forward pass gave; at random for None: there are no weights yet."""

    def follow(self, version: WeightsVersion) -> None:
        """The outputs to come are of this version's weights."""
        self.version = version

    def act(self, observation: Rows, state: Any, rng: np.random.Generator) -> PolicyStep:
        """See ``Policy.act``."""
        if self.version == NO_WEIGHTS:
            return self.choose(None, observation, state, rng)
        assert self._forward is not None, "made without a forward pass of its own"
        return self.choose(self._forward(self.inputs(observation, state, rng)), observation, state, rng)

    def load(self, weights: Weights) -> None:
        """Take newer weights; states go on from those that the older ones made."""
        assert self._forward is not None, "made without a forward pass of its own"
        self._forward.load(weights.arrays)
        self.follow(weights.version)


class ForwardPolicyFactory(PolicyFactory, Protocol):
    """Picklable maker of both halves."""

    def forward(self, device: str = "cpu") -> Forward:
        """The network, without weights. Raises: RuntimeError where it is not made for this device."""

    def around(self, forward: Forward | None, lanes: LaneRange | None) -> ForwardPolicy:
        """A policy that explores for ``lanes``, or the greedy one for None."""
