"""Policies of actor-critic learners, with log-probabilities of what they chose. Flat ones act in NumPy, not torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from onibi.learners.action_sampling import (
    Chosen,
    likeliest_categorical,
    likeliest_gaussian,
    mask_logits,
    sample_categorical,
    sample_gaussian,
)
from onibi.learners.networks.core_settings import STATE_COLUMN, CoreSettings
from onibi.learners.networks.leaves import FlatLeaf
from onibi.learners.networks.numpy_core import NumpyCore
from onibi.learners.networks.numpy_trunk import NumpyTrunk, linear_pair
from onibi.platform.policy import NO_WEIGHTS, LaneRange, Policy, PolicyStep, Weights, WeightsVersion
from onibi.platform.random_actions import random_actions
from onibi.platform.spec import ACTION_MASK, ReplaySpec

if TYPE_CHECKING:
    from onibi.learners.networks.actor_critic import ActorForm, ActorNetwork

EvaluationActions = Literal["mode", "sample"]
LOG_PROB_COLUMN = "action_log_prob"
"""Extra column of replay: log μ(a|x) of the action by the policy that chose it."""

Floats = NDArray[np.float32]


class Actor(Protocol):
    """A published actor network, whatever computes it."""

    @property
    def state_size(self) -> int:
        """S; 0 without memory."""

    @property
    def log_std(self) -> Floats | None:
        """[D] of a Gaussian; None for discrete actions."""

    def load(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Take newer parameters."""

    def outputs(self, observation: Mapping[str, NDArray[Any]], state: Floats | None) -> tuple[Floats, Floats | None]:
        """Logits [E, A] or means [E, D], the caller's to write to; and the next state [E, S]."""


class NumpyActor:
    """A flat actor, with or without memory, in NumPy.

    Args:
        leaves: as the encoder's.
        core: the memory; None for none.
    """

    def __init__(self, leaves: tuple[FlatLeaf, ...], core: CoreSettings | None) -> None:
        self._trunk = NumpyTrunk(leaves)
        self._core = None if core is None else NumpyCore(core, "core.")
        self._head: tuple[Floats, Floats] | None = None
        self.state_size = 0 if self._core is None else self._core.state_size
        self.log_std: Floats | None = None

    def load(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Take the arrays of a published ``ActorNetwork``."""
        self._trunk.load(arrays)
        if self._core is not None:
            self._core.load(arrays)
        self._head = linear_pair(arrays, "head.linear.")
        self.log_std = arrays["head.log_std"].copy() if "head.log_std" in arrays else None

    def outputs(self, observation: Mapping[str, NDArray[Any]], state: Floats | None) -> tuple[Floats, Floats | None]:
        """See ``Actor``. Raises: RuntimeError before the first ``load``."""
        if self._head is None:
            raise RuntimeError("outputs before load")
        features = self._trunk(observation)
        if self._core is not None:
            assert state is not None, "a policy with memory is given its state"
            features, state = self._core.step(features, state)
        weight, bias = self._head
        outputs: Floats = features @ weight
        outputs += bias
        return outputs, state


class TorchActor:
    """Any actor, in torch on the CPU.

    Args:
        network: its parameters count only after ``load``.
    """

    def __init__(self, network: ActorNetwork) -> None:
        self._network = network.eval()
        self.state_size = 0 if network.core is None else network.core.state_size
        self.log_std: Floats | None = None

    def load(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Take the arrays of a published ``ActorNetwork``."""
        import torch

        mine = self._network.state_dict().keys()
        self._network.load_state_dict({name: torch.from_numpy(arrays[name]) for name in mine})
        self.log_std = arrays["head.log_std"].copy() if "head.log_std" in arrays else None

    def outputs(self, observation: Mapping[str, NDArray[Any]], state: Floats | None) -> tuple[Floats, Floats | None]:
        """See ``Actor``."""
        import torch

        with torch.inference_mode():
            tensors = {name: torch.from_numpy(np.ascontiguousarray(values)) for name, values in observation.items()}
            before = None if state is None or not self.state_size else torch.from_numpy(state)
            outputs, after = self._network.outputs(tensors, before)
            return outputs.numpy(), None if after is None else after.numpy()


class ActorCriticPolicy:
    """Samples actions, or takes the likeliest ones; before the first weights it acts at random.

    Args:
        actor: without weights yet.
        spec: row layout.
        sampled: draw actions; False takes the mode.
    """

    def __init__(self, actor: Actor, spec: ReplaySpec, *, sampled: bool) -> None:
        self.version: WeightsVersion = NO_WEIGHTS
        self._actor, self._spec, self._sampled = actor, spec, sampled

    def initial_state(self, envs: int) -> Floats | None:
        """[E, S] zeros; None without memory."""
        return np.zeros((envs, self._actor.state_size), np.float32) if self._actor.state_size else None

    def act(self, observation: Mapping[str, NDArray[Any]], state: Any, rng: np.random.Generator) -> PolicyStep:
        """See ``Policy.act``. In ``extra``: log-probabilities, and the state before the observation was read."""
        if self.version == NO_WEIGHTS:
            (action, log_prob), after = random_actions(self._spec, observation, rng), state
        else:
            outputs, after = self._actor.outputs(observation, state)
            action, log_prob = self._choose(outputs, observation.get(ACTION_MASK), rng)
        extra = {LOG_PROB_COLUMN: log_prob}
        if state is not None:
            extra[STATE_COLUMN] = state
        return PolicyStep(action, after, extra)

    def load(self, weights: Weights) -> None:
        """Take newer weights."""
        self._actor.load(weights.arrays)
        self.version = weights.version

    def _choose(self, outputs: Floats, mask: NDArray[Any] | None, rng: np.random.Generator) -> Chosen:
        log_std = self._actor.log_std
        if log_std is not None:
            return sample_gaussian(outputs, log_std, rng) if self._sampled else likeliest_gaussian(outputs, log_std)
        if mask is not None:
            mask_logits(outputs, mask)
        return sample_categorical(outputs, rng) if self._sampled else likeliest_categorical(outputs)


@dataclass(frozen=True)
class NumpyActorCriticFactory:
    """Picklable maker of policies that act in NumPy; unpickling it needs no torch."""

    leaves: tuple[FlatLeaf, ...]
    core: CoreSettings | None
    spec: ReplaySpec
    evaluation: EvaluationActions

    def __call__(self, lanes: LaneRange | None) -> Policy:
        """A policy that samples on ``lanes``, or the one for evaluations for None."""
        actor = NumpyActor(self.leaves, self.core)
        return ActorCriticPolicy(actor, self.spec, sampled=lanes is not None or self.evaluation == "sample")


@dataclass(frozen=True)
class TorchActorCriticFactory:
    """Picklable maker of policies that act in torch.

    It holds what the network is built of rather than the module: the parameters come with the weights.
    """

    form: ActorForm
    spec: ReplaySpec
    evaluation: EvaluationActions

    def __call__(self, lanes: LaneRange | None) -> Policy:
        """A policy that samples on ``lanes``, or the one for evaluations for None."""
        import torch

        from onibi.learners.networks.actor_critic import ActorNetwork

        with torch.random.fork_rng(devices=[]):
            actor = TorchActor(ActorNetwork(self.form, self.spec))
        return ActorCriticPolicy(actor, self.spec, sampled=lanes is not None or self.evaluation == "sample")
