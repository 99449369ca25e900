"""Losses of policies: pure functions of log-probabilities and advantages. No gradient flows into advantages."""

from __future__ import annotations

import torch
from torch import Tensor

from onibi.learners.shapes import check_shapes


def policy_gradient(log_probs: Tensor, advantages: Tensor) -> Tensor:
    """−A log π(a|x), whose gradient is that of REINFORCE with a baseline.

    Args:
        log_probs: [B, T] float32 log π(a|x).
        advantages: [B, T] float32; V-trace's hold ρ already.
    Returns: [B, T] float32. Raises: ValueError where shapes disagree.
    """
    check_shapes("B T", log_probs=log_probs, advantages=advantages)
    return -advantages.detach() * log_probs


def clipped_surrogate(log_ratios: Tensor, advantages: Tensor, clip: float) -> Tensor:
    """−min(r A, clamp(r, 1 − ε, 1 + ε) A) with r = π(a|x)/μ(a|x)  (PPO, Schulman et al. 2017, arXiv 1707.06347, eq. 7).

    Args:
        log_ratios: [B, T] float32 log π(a|x) − log μ(a|x), gradient into π.
        advantages: [B, T] float32.
        clip: ε > 0.
    Returns: [B, T] float32; no gradient where the ratio has left the interval on the side that A points to.
    Raises: ValueError where shapes disagree.
    """
    check_shapes("B T", log_ratios=log_ratios, advantages=advantages)
    ratios, constant = log_ratios.exp(), advantages.detach()
    return -torch.minimum(ratios * constant, ratios.clamp(1.0 - clip, 1.0 + clip) * constant)


def masked_mean(terms: Tensor, used: Tensor) -> Tensor:
    """Mean over the rows used, Σ u x / max(Σ u, 1).

    Args:
        terms: [B, T] float32, finite everywhere.
        used: [B, T] float32, 0 or 1.
    Returns: [] float32. Raises: ValueError where shapes disagree.
    """
    check_shapes("B T", terms=terms, used=used)
    return (terms * used).sum() / used.sum().clamp(min=1.0)


def normalised(advantages: Tensor, used: Tensor) -> Tensor:
    """(A − mean)/(standard deviation + 10⁻⁸), both over the rows used; 0 in the others.

    Args:
        advantages: [B, T] float32, finite everywhere.
        used: [B, T] float32, 0 or 1.
    Returns: [B, T] float32 without gradient. Raises: ValueError where shapes disagree.
    """
    advantages = advantages.detach()
    centred = (advantages - masked_mean(advantages, used)) * used
    variance = masked_mean(centred**2, used)
    return centred / (variance.sqrt() + 1e-8)
