"""IMPALA: a policy gradient with V-trace, one gradient step for each slab of rows.

Paper: Espeholt et al. 2018, arXiv 1802.01561.

    loss = mean over steps of  −ρ (r + γ v′ − V) log π(a|x)  +  value_coefficient · value loss(V, v)
                               − entropy_coefficient · entropy of π(·|x)

Differences from the paper: the value loss is any scalar one by name; means over the steps of a batch, not sums, so
coefficients and learning rate do not hang on its size; Adam instead of RMSProp; truncated episodes bootstrap from their
own last observation; λ may be below 1; final rows are masked; rewards are the mixed ones of the batch, so late labels
count; ``normalize_reward`` divides them by the running deviation of the return.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from onibi.learners.actor_critic import (
    ActorCritic,
    ActorCriticSettings,
    Learnt,
    actor_critic_needs,
    actor_critic_policy_factory,
)
from onibi.learners.actor_critic_targets import vtrace_targets
from onibi.learners.learner import ReplayNeeds, Update
from onibi.learners.loss_program import Inputs, LossProgram, changes_any_of
from onibi.learners.numpy_gradients.actor_critic_gradient import (
    gradient_by_hand,
    vtrace_of,
    weighted_policy_gradient,
)
from onibi.learners.policy_losses import policy_gradient
from onibi.platform.policy import PolicyFactory, Weights, WeightsVersion
from onibi.platform.replay.samplers.fifo_sampler import Slab
from onibi.platform.spec import ReplaySpec


@dataclass(frozen=True, kw_only=True)
class ImpalaSettings(ActorCriticSettings):
    """What can be chosen about an IMPALA learner."""

    kind: Literal["impala"] = "impala"


class ImpalaLearner:
    """One network and its optimizer.

    Args:
        settings: all choices.
        spec: row layout of the run.
        value_bounds: least and largest discounted return, from the reward mixer; read where the support is auto.
        seed: of the initial parameters.
        device: "cpu", "cuda", "cuda:1".
    Raises: ConfigError where no support can be placed, SpecError where the network cannot read the observation.
    """

    Settings: ClassVar[type[ImpalaSettings]] = ImpalaSettings
    continuous_actions: ClassVar[bool] = True

    def __init__(
        self,
        settings: ImpalaSettings,
        spec: ReplaySpec,
        value_bounds: tuple[float, float] | None,
        seed: int,
        device: str,
    ) -> None:
        self.settings = settings
        self._shared = ActorCritic(settings, spec, value_bounds, seed, device, steps_per_batch=1)
        self.copies = self._shared.copies
        by_hand = None
        if not changes_any_of(self, ImpalaLearner, ("_losses",)):
            by_hand = gradient_by_hand(self._shared, vtrace_of(settings), weighted_policy_gradient)
        self._program = LossProgram(self._losses, self._shared.gradient, settings.acceleration, by_hand)

    @staticmethod
    def needs(settings: ImpalaSettings) -> ReplayNeeds:
        """Slabs of ``rows`` rows of ``batch_lanes`` lanes, with log-probabilities."""
        return actor_critic_needs(settings)

    @staticmethod
    def policy_factory(settings: ImpalaSettings, spec: ReplaySpec) -> PolicyFactory:
        """A picklable maker of policies that read this learner's weights."""
        return actor_critic_policy_factory(settings, spec)

    @property
    def updates(self) -> int:
        """Gradient steps made, skipped and restored ones included."""
        return self._shared.updates

    def update(self, slab: Slab, reward: NDArray[np.float32]) -> Update:
        """One gradient step on a slab; see ``Learner.update``.

        A loss or gradient that is not finite changes nothing but the counters.
        """
        inputs = self._shared.inputs(slab, reward)
        result, learnt = self._program.step(inputs)
        if not result.skipped:
            self._shared.learn_statistics(inputs)
        if not result.completed or self.updates % self.settings.metrics_period_updates:
            return Update()
        return Update(self._shared.metrics(learnt, result))

    def weights(self, version: WeightsVersion) -> Weights:
        """A copy of what a policy needs."""
        return self._shared.weights(version)

    def state_dict(self) -> dict[str, Tensor]:
        """Copies of all state by flat name."""
        return self._shared.state_dict()

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take a state that ``state_dict`` gave. Raises: CheckpointError where it is of other settings."""
        self._shared.load_state_dict(state)

    def _losses(self, inputs: Inputs) -> tuple[Tensor, Learnt]:
        settings, found = self.settings, self._shared.evaluate(inputs)
        targets = vtrace_targets(
            found.steps,
            found.values,
            found.log_ratios,
            discount=settings.discount,
            trace_decay=settings.trace_decay,
            rho_bound=settings.rho_bound,
            trace_bound=settings.trace_bound,
        )
        return self._shared.loss(found, targets, policy_gradient(found.log_probs, targets.weighted), None)
