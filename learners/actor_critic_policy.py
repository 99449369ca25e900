"""Policies of actor-critic learners, with log-probabilities of what they chose. Most act in NumPy, without torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

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
from onibi.learners.input_tensors import input_tensors
from onibi.learners.networks.core_settings import STATE_COLUMN, CoreSettings, state_size
from onibi.learners.networks.numpy_core import NumpyCore
from onibi.learners.networks.numpy_encoder import NumpyForm
from onibi.learners.networks.numpy_trunk import linear_pair
from onibi.platform.forward_policy import Forward, ForwardPolicy, Rows
from onibi.platform.policy import LaneRange, Policy, PolicyStep
from onibi.platform.random_actions import random_actions
from onibi.platform.spec import ACTION_MASK, ReplaySpec

if TYPE_CHECKING:
    from onibi.learners.networks.actor_critic import ActorForm, ActorNetwork

EvaluationActions = Literal["mode", "sample"]
LOG_PROB_COLUMN = "action_log_prob"
"""Extra column of replay: log μ(a|x) of the action by the policy that chose it."""

Floats = NDArray[np.float32]


STATE = "core.state"
"""Input and output of a forward pass: [N, S] float32 of the memory; not there without one."""
OUTPUTS, LOG_STD = "outputs", "log_std"
"""Outputs of one: logits [N, A] or means [N, D], the caller's to write to; and of a Gaussian [N, D] log σ."""


class NumpyActor:
    """An actor, with or without memory, in NumPy.

    Args:
        encoder: what its encoder is built of.
        core: the memory; None for none.
    """

    def __init__(self, encoder: NumpyForm, core: CoreSettings | None) -> None:
        self._encoder = encoder.make()
        self._core = None if core is None else NumpyCore(core, "core.")
        self._head: tuple[Floats, Floats] | None = None
        self._log_std: Floats | None = None

    def load(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Take the arrays of a published ``ActorNetwork``."""
        self._encoder.load(arrays)
        if self._core is not None:
            self._core.load(arrays)
        self._head = linear_pair(arrays, "head.linear.")
        self._log_std = _log_std_of(arrays)

    def __call__(self, inputs: Rows) -> dict[str, NDArray[Any]]:
        """See ``Forward``."""
        if self._head is None:
            raise RuntimeError("outputs before load")
        features, given = self._encoder(inputs), {}
        if self._core is not None:
            features, given[STATE] = self._core.step(features, inputs[STATE])
        weight, bias = self._head
        outputs: Floats = features @ weight
        outputs += bias
        return {OUTPUTS: outputs, **given, **_log_std_rows(self._log_std, len(outputs))}


class TorchActor:
    """Any actor, in torch.

    Args:
        network: its parameters count only after ``load``.
        device: "cpu", "cuda", "cuda:1".
    """

    def __init__(self, network: ActorNetwork, device: str = "cpu") -> None:
        self._network, self._device = network.eval().to(device), device
        self._log_std: Floats | None = None

    def load(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Take the arrays of a published ``ActorNetwork``."""
        import torch

        mine = self._network.state_dict().keys()
        self._network.load_state_dict({name: torch.from_numpy(arrays[name]) for name in mine})
        self._log_std = _log_std_of(arrays)

    def __call__(self, inputs: Rows) -> dict[str, NDArray[Any]]:
        """See ``Forward``."""
        import torch

        with torch.inference_mode():
            tensors = input_tensors(inputs, self._device)
            outputs, after = self._network.outputs(tensors, tensors.get(STATE))
        given = {OUTPUTS: outputs.cpu().numpy(), **_log_std_rows(self._log_std, len(outputs))}
        return given if after is None else {**given, STATE: after.cpu().numpy()}


def _log_std_of(arrays: Mapping[str, NDArray[Any]]) -> Floats | None:
    """[D] of a Gaussian; None for discrete actions."""
    return arrays["head.log_std"].copy() if "head.log_std" in arrays else None


def _log_std_rows(log_std: Floats | None, rows: int) -> dict[str, NDArray[Any]]:
    return {} if log_std is None else {LOG_STD: np.broadcast_to(log_std, (rows, len(log_std)))}


class ActorCriticPolicy(ForwardPolicy):
    """Samples actions, or takes the likeliest ones; before the first weights it acts at random.

    Args:
        forward: of an actor without weights yet; None where it is computed elsewhere.
        spec: row layout.
        state_size: S; 0 without memory.
        sampled: draw actions; False takes the mode.
    """

    def __init__(self, forward: Forward | None, spec: ReplaySpec, state_size: int, *, sampled: bool) -> None:
        super().__init__(forward)
        self._spec, self._state_size, self._sampled = spec, state_size, sampled

    def initial_state(self, envs: int) -> Floats | None:
        """[E, S] zeros; None without memory."""
        return np.zeros((envs, self._state_size), np.float32) if self._state_size else None

    def inputs(self, observation: Rows, state: Any, _rng: np.random.Generator) -> Rows:
        """The observation and the state."""
        return {**observation, STATE: state} if self._state_size else observation

    def choose(self, outputs: Rows | None, observation: Rows, state: Any, rng: np.random.Generator) -> PolicyStep:
        """See ``ForwardPolicy``. In ``extra``: log-probabilities, and the state before the observation was read."""
        if outputs is None:
            (action, log_prob), after = random_actions(self._spec, observation, rng), state
        else:
            action, log_prob = self._chosen(outputs, observation.get(ACTION_MASK), rng)
            after = outputs.get(STATE, state)
        extra = {LOG_PROB_COLUMN: log_prob}
        if state is not None:
            extra[STATE_COLUMN] = state
        return PolicyStep(action, after, extra)

    def _chosen(self, outputs: Rows, mask: NDArray[Any] | None, rng: np.random.Generator) -> Chosen:
        logits = outputs[OUTPUTS]
        if not logits.flags.writeable:  # what another process computed, as Ray hands it over
            logits = logits.copy()
        if LOG_STD in outputs:
            log_std = outputs[LOG_STD][0]  # the same for all rows
            return sample_gaussian(logits, log_std, rng) if self._sampled else likeliest_gaussian(logits, log_std)
        if mask is not None:
            mask_logits(logits, mask)
        return sample_categorical(logits, rng) if self._sampled else likeliest_categorical(logits)


@dataclass(frozen=True)
class NumpyActorCriticFactory:
    """Picklable maker of policies that act in NumPy; unpickling it needs no torch."""

    encoder: NumpyForm
    core: CoreSettings | None
    spec: ReplaySpec
    evaluation: EvaluationActions

    def __call__(self, lanes: LaneRange | None) -> Policy:
        """A policy that samples on ``lanes``, or the one for evaluations for None."""
        return self.around(self.forward(), lanes)

    def forward(self, _device: str = "cpu") -> NumpyActor:
        """The actor in NumPy, whatever the device."""
        return NumpyActor(self.encoder, self.core)

    def around(self, forward: Forward | None, lanes: LaneRange | None) -> ActorCriticPolicy:
        """A policy around a forward pass."""
        size = 0 if self.core is None else state_size(self.core)
        return ActorCriticPolicy(forward, self.spec, size, sampled=lanes is not None or self.evaluation == "sample")


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
        return self.around(self.forward(), lanes)

    def forward(self, device: str = "cpu") -> TorchActor:
        """The actor on a device."""
        import torch

        from onibi.learners.networks.actor_critic import ActorNetwork

        with torch.random.fork_rng(devices=[]):
            return TorchActor(ActorNetwork(self.form, self.spec), device)

    def around(self, forward: Forward | None, lanes: LaneRange | None) -> ActorCriticPolicy:
        """A policy around a forward pass."""
        size = 0 if self.form.core is None else state_size(self.form.core)
        return ActorCriticPolicy(forward, self.spec, size, sampled=lanes is not None or self.evaluation == "sample")
