"""Distributions over actions in torch: log-probabilities, entropy and modes; ``action_sampling.py`` is the NumPy twin.

A Discrete space gets a categorical distribution, in which masked actions have the probability 0. A Box gets a Gaussian
with one deviation per dimension that does not hang on the state, over the *policy's* actions: how they become the
environment's (clipped, rescaled, squashed) is the rollout's business. A bijection as squashing changes every density by
the same factor whatever the policy, so ratios π/μ stay what they are; the entropy is that before squashing.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional

NEVER = -1e9
"""Log-probability of a masked action: exp of it is 0, and 0 · NEVER is 0 in the entropy, where −∞ would give NaN."""
LOG_STD_BOUNDS = (-5.0, 2.0)
"""Within which log σ of a Gaussian acts; the NumPy side uses the same."""
_HALF_LOG_TAU = 0.5 * math.log(2.0 * math.pi)


class ActionDistribution(Protocol):
    """What a policy gives for a batch of observations; leading axes [...] are free."""

    def log_prob(self, action: Tensor) -> Tensor:
        """Give log π(a) [...] of the actions taken; gradients flow to the distribution."""

    def entropy(self) -> Tensor:
        """[...] in nats; gradients flow."""

    def mode(self) -> Tensor:
        """The likeliest actions."""


@dataclass(frozen=True)
class Categorical:
    """Over A actions.

    Args:
        log_probs: [..., A] float32, normalised.
    """

    log_probs: Tensor

    def log_prob(self, action: Tensor) -> Tensor:
        """[...] int64 → [...] float32."""
        return self.log_probs.gather(-1, action.unsqueeze(-1)).squeeze(-1)

    def entropy(self) -> Tensor:
        """−Σ_a π(a) log π(a), [...] float32."""
        return -(self.log_probs.exp() * self.log_probs).sum(dim=-1)

    def mode(self) -> Tensor:
        """[...] int64."""
        return self.log_probs.argmax(dim=-1)


@dataclass(frozen=True)
class DiagonalGaussian:
    """Over vectors of D numbers, independent of each other.

    Args:
        mean: [..., D] float32.
        log_std: [D] float32, log σ.
    """

    mean: Tensor
    log_std: Tensor

    def log_prob(self, action: Tensor) -> Tensor:
        """[..., D] → [...] float32: Σ_d −½((a − μ)/σ)² − log σ − ½ log 2π."""
        standardised = (action - self.mean) * torch.exp(-self.log_std)
        return -(0.5 * standardised**2 + self.log_std + _HALF_LOG_TAU).sum(dim=-1)

    def entropy(self) -> Tensor:
        """Σ_d log σ + ½ log 2πe, [...] float32; the same for every observation."""
        each = (self.log_std + _HALF_LOG_TAU + 0.5).sum()
        return each.expand(self.mean.shape[:-1])

    def mode(self) -> Tensor:
        """[..., D]: the mean."""
        return self.mean


def categorical(logits: Tensor, mask: Tensor | None) -> Categorical:
    """The distribution of unnormalised logits.

    Args:
        logits: [..., A] float32.
        mask: [..., A] bool, uint8 or int8, 0 where an action is not allowed; None allows all. Where none is allowed (a
            final row) all count as allowed: nothing is learnt from it.
    """
    if mask is not None:
        allowed = mask.bool()
        allowed = allowed | ~allowed.any(dim=-1, keepdim=True)
        logits = logits.masked_fill(~allowed, NEVER)
    return Categorical(functional.log_softmax(logits, dim=-1))


def diagonal_gaussian(mean: Tensor, log_std: Tensor) -> DiagonalGaussian:
    """The Gaussian with its log σ held within ``LOG_STD_BOUNDS``; beyond one, gradients that lead back flow.

    Args:
        mean: [..., D] float32.
        log_std: [D] float32.
    """
    return DiagonalGaussian(mean, _Held.apply(log_std))  # type: ignore[no-untyped-call]


class _Held(torch.autograd.Function):
    """x within ``LOG_STD_BOUNDS``. The slope of a plain clamp is 0 beyond: one step too far, where an entropy bonus
    pushed it, and a deviation would never move again.
    """

    @staticmethod
    def forward(ctx: Any, log_std: Tensor) -> Tensor:
        ctx.save_for_backward(log_std)
        return log_std.clamp(*LOG_STD_BOUNDS)

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> Tensor:
        (log_std,) = ctx.saved_tensors
        low, high = LOG_STD_BOUNDS
        leads_out = ((log_std > high) & (slope < 0)) | ((log_std < low) & (slope > 0))  # descent goes against the slope
        return slope.masked_fill(leads_out, 0.0)
