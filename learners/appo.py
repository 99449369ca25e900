"""APPO: the clipped surrogate of PPO on data that asynchronous actors bring, with V-trace or GAE. ONI's own learner.

Papers: Schulman et al. 2017, arXiv 1707.06347 (PPO); Petrenko et al. 2020, arXiv 2006.11751 (Sample Factory's APPO);
Espeholt et al. 2018, arXiv 1802.01561 (V-trace).

    loss = mean over steps of  −min(r A, clamp(r, 1 − ε, 1 + ε) A)  +  value_coefficient · value loss(V, target)
                               − entropy_coefficient · entropy of π(·|x)          r = π(a|x)/μ(a|x)

A slab gives ``epochs`` × ``minibatches`` gradient steps; a minibatch is some of its lanes, all their rows.

Differences from the papers: targets and advantages are computed anew for each minibatch from the network as it is then,
in the one pass that the loss needs anyway; with V-trace the advantage is r + γ v′ − V without ρ, for the surrogate has
the ratio; μ is the policy that acted, so the clip also bounds how far data may be off-policy; the value clip is around
the values before the slab's first step instead of those at the time of acting; the value loss is any scalar one by
name; truncated episodes bootstrap from their own last observation; final rows are masked; rewards are the mixed ones of
the batch, so late labels count.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor

from onibi.learners.actor_critic import (
    OLD_VALUES_COLUMN,
    ActorCritic,
    ActorCriticSettings,
    Evaluation,
    Learnt,
    actor_critic_needs,
    actor_critic_policy_factory,
    lanes_of,
)
from onibi.learners.actor_critic_targets import Targets, gae_targets, vtrace_targets
from onibi.learners.learner import ReplayNeeds, Update
from onibi.learners.loss_program import Inputs, LossProgram, changes_any_of
from onibi.learners.numpy_gradients.actor_critic_gradient import (
    clipped_surrogate_of,
    gae_of,
    gradient_by_hand,
    vtrace_of,
)
from onibi.learners.policy_losses import clipped_surrogate, masked_mean, normalised
from onibi.learners.value_losses import BINNED_LOSSES
from onibi.platform.errors import CheckpointError
from onibi.platform.number_ranges import Count, Positive
from onibi.platform.policy import PolicyFactory, Weights, WeightsVersion
from onibi.platform.replay.samplers.fifo_sampler import Slab
from onibi.platform.spec import ReplaySpec

_RNG = "rng.lanes"


@dataclass(frozen=True, kw_only=True)
class AppoSettings(ActorCriticSettings):
    """What can be chosen about an APPO learner."""

    kind: Literal["appo"] = "appo"
    returns: Literal["vtrace", "gae"] = "vtrace"
    clip: Annotated[float, Field(gt=0, lt=1)] = 0.2  # ε of the surrogate
    value_clip: Positive | None = None  # value units; mse and huber, where a slab gives several steps
    epochs: Count = 1  # times that a slab is learnt from
    minibatches: Count = 1  # parts that its lanes are dealt into
    normalize_advantages: bool = True  # to mean 0 and deviation 1, in each minibatch

    def __post_init__(self) -> None:
        """Refuse options that nothing would read, and minibatches of unequal size."""
        super().__post_init__()
        if self.batch_lanes % self.minibatches:
            raise ValueError(
                f"minibatches is {self.minibatches}, which does not divide batch_lanes {self.batch_lanes}: each "
                "minibatch is a number of whole lanes"
            )
        self.acceleration.refuse_accumulation(self.epochs * self.minibatches)
        if self.value_clip is not None and self.value_loss in BINNED_LOSSES:
            raise ValueError(f"value_clip is read by mse and huber, not by {self.value_loss}: leave it out")
        if self.value_clip is not None and self.epochs * self.minibatches == 1:
            raise ValueError(
                "value_clip acts from a slab's second step on: raise epochs or minibatches, or leave it out"
            )
        if self.returns == "gae" and (self.rho_bound, self.trace_bound) != (1.0, 1.0):
            raise ValueError("rho_bound and trace_bound are read by returns vtrace, not by gae: leave them out")


class AppoLearner:
    """One network and its optimizer.

    Args:
        settings: all choices.
        spec: row layout of the run.
        value_bounds: least and largest discounted return, from the reward mixer; read where the support is auto.
        seed: of the initial parameters, and of how lanes are dealt.
        device: "cpu", "cuda", "cuda:1".
    Raises: ConfigError where no support can be placed, SpecError where the network cannot read the observation.
    """

    Settings: ClassVar[type[AppoSettings]] = AppoSettings
    continuous_actions: ClassVar[bool] = True

    def __init__(
        self,
        settings: AppoSettings,
        spec: ReplaySpec,
        value_bounds: tuple[float, float] | None,
        seed: int,
        device: str,
    ) -> None:
        self.settings = settings
        steps = settings.epochs * settings.minibatches
        self._shared = ActorCritic(
            settings, spec, value_bounds, seed, device, settings.value_clip, steps_per_batch=steps
        )
        self.copies = self._shared.copies
        by_hand = None
        if not changes_any_of(self, AppoLearner, ("_losses", "_targets")):
            by_hand = gradient_by_hand(
                self._shared,
                gae_of(settings) if settings.returns == "gae" else vtrace_of(settings),
                clipped_surrogate_of(settings.clip, normalize_advantages=settings.normalize_advantages),
            )
        self._program = LossProgram(self._losses, self._shared.gradient, settings.acceleration, by_hand)
        self._generator = torch.Generator().manual_seed(seed)

    @staticmethod
    def needs(settings: AppoSettings) -> ReplayNeeds:
        """Slabs of ``rows`` rows of ``batch_lanes`` lanes, with log-probabilities."""
        return actor_critic_needs(settings)

    @staticmethod
    def policy_factory(settings: AppoSettings, spec: ReplaySpec) -> PolicyFactory:
        """A picklable maker of policies that read this learner's weights."""
        return actor_critic_policy_factory(settings, spec)

    @property
    def updates(self) -> int:
        """Gradient steps made, skipped and restored ones included."""
        return self._shared.updates

    def update(self, slab: Slab, reward: NDArray[np.float32]) -> Update:
        """``epochs`` × ``minibatches`` gradient steps on a slab; see ``Learner.update``.

        A loss or gradient that is not finite changes nothing but the counters. The metrics are those of the last step.
        """
        settings, shared = self.settings, self._shared
        inputs = shared.inputs(slab, reward)
        if settings.value_clip is not None:
            inputs = {**inputs, "rows": {**inputs["rows"], OLD_VALUES_COLUMN: self._values(inputs)}}
        before = self.updates
        for part in self._parts():
            result, learnt = self._program.step(inputs if part is None else lanes_of(inputs, part))
        if not result.skipped:
            shared.learn_statistics(inputs)
        period = settings.metrics_period_updates
        if self.updates // period == before // period:
            return Update()
        return Update(shared.metrics(learnt, result) | self._surrogate_figures(learnt))

    def weights(self, version: WeightsVersion) -> Weights:
        """A copy of what a policy needs."""
        return self._shared.weights(version)

    def state_dict(self) -> dict[str, Tensor]:
        """Copies of all state by flat name."""
        return {**self._shared.state_dict(), _RNG: self._generator.get_state()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take a state that ``state_dict`` gave. Raises: CheckpointError where it is of other settings."""
        if _RNG not in state:
            raise CheckpointError(f"the checkpoint lacks the learner's {_RNG}; take an older checkpoint.")
        self._shared.load_state_dict(state)
        self._generator.set_state(state[_RNG].cpu())

    def _parts(self) -> list[Tensor | None]:
        """The places of the lanes of each minibatch in turn, [b] int64; None for all of them."""
        settings = self.settings
        if settings.minibatches == 1:
            return [None] * settings.epochs
        parts: list[Tensor | None] = []
        for _ in range(settings.epochs):
            dealt = torch.randperm(settings.batch_lanes, generator=self._generator)
            # Ascending within a part: the sums of a step then do not hang on the order of its lanes.
            parts += [part.sort().values.to(self._shared.device) for part in dealt.chunk(settings.minibatches)]
        return parts

    def _losses(self, inputs: Inputs) -> tuple[Tensor, Learnt]:
        found = self._shared.evaluate(inputs)
        targets, used = self._targets(found), found.steps.used
        advantages = normalised(targets.advantages, used) if self.settings.normalize_advantages else targets.advantages
        policy_terms = clipped_surrogate(found.log_ratios, advantages, self.settings.clip)
        return self._shared.loss(found, targets, policy_terms, inputs["rows"].get(OLD_VALUES_COLUMN))

    def _targets(self, found: Evaluation) -> Targets:
        settings = self.settings
        if settings.returns == "gae":
            return gae_targets(found.steps, found.values, discount=settings.discount, trace_decay=settings.trace_decay)
        return vtrace_targets(
            found.steps,
            found.values,
            found.log_ratios,
            discount=settings.discount,
            trace_decay=settings.trace_decay,
            rho_bound=settings.rho_bound,
            trace_bound=settings.trace_bound,
        )

    @torch.no_grad()
    def _values(self, inputs: Inputs) -> Tensor:
        """[B, T] before the slab's first step."""
        return self._shared.evaluate(inputs).values[:, :-1].contiguous()

    @torch.no_grad()
    def _surrogate_figures(self, learnt: Learnt) -> dict[str, float]:
        outside = ((learnt.log_ratios.exp() - 1.0).abs() > self.settings.clip).float()
        return {"surrogate_clipped_share": float(masked_mean(outside, learnt.used))}
