"""Losses that take a distribution of returns as target, for Q-learners with n-step windows: C51, QR-DQN, IQN.

A distribution is M values with their probabilities; that of the target is the bootstrap action's, moved by the n-step
return. ``c51`` (Bellemare et al. 2017, arXiv 1707.06887) projects it onto fixed atoms and takes the cross-entropy;
``quantile`` (Dabney et al. 2017, arXiv 1710.10044) and ``iqn`` (Dabney et al. 2018, arXiv 1806.06923) regress on its
quantiles, at fixed and at drawn fractions.

Differences from the papers: the projection takes atoms at any spacing, and a target of any atoms, such as the mixture
that a softmax policy bootstraps from; the quantile losses weight their targets likewise.
"""

from __future__ import annotations

import torch
from torch import Tensor

from onibi.learners.returns import n_step_return
from onibi.learners.shapes import check_shapes


def n_step_distribution(rewards: Tensor, discounts: Tensor, values: Tensor) -> Tensor:
    """Each value z of the bootstrap's distribution becomes r₁ + γ₁(r₂ + γ₂(… + γₙ z)).

    Args:
        rewards: [B, n] float32.
        discounts: [B, n] float32, of ``window_discounts``: 0 where the step terminated.
        values: [B, M] float32.
    Returns: [B, M] float32; gradients flow. Raises: ValueError where shapes disagree.
    """
    check_shapes("B M", values=values)
    total = n_step_return(rewards, discounts, torch.zeros_like(values[:, 0]))
    return total[:, None] + discounts.prod(dim=1)[:, None] * values


def categorical_projection(values: Tensor, probabilities: Tensor, atoms: Tensor) -> Tensor:
    """Share each value's probability between the two atoms around it, by nearness   (C51, eq. 7, at any spacing).

    The mean is kept wherever the values lie between the first and the last atom; values outside are clamped to them.

    Args:
        values: [B, M] float32.
        probabilities: [B, M] float32, rows sum to 1.
        atoms: [K] float32, rising, K ≥ 2.
    Returns: [B, K] float32 without gradient, rows sum to 1. Raises: ValueError where shapes disagree.
    """
    check_shapes("B M", values=values, probabilities=probabilities)
    check_shapes("K", atoms=atoms)
    clamped = values.detach().clamp(atoms[0], atoms[-1])
    above = torch.searchsorted(atoms, clamped, right=True).clamp(1, len(atoms) - 1)
    low, high = atoms[above - 1], atoms[above]
    # The quotient first: it is at most 1, so no rounding makes the lower share negative (and its logarithm NaN).
    upper = probabilities.detach() * ((clamped - low) / (high - low))
    projected = torch.zeros(len(values), len(atoms), dtype=values.dtype, device=values.device)
    projected.scatter_add_(1, above, upper)
    return projected.scatter_add_(1, above - 1, probabilities.detach() - upper)


def quantile_midpoints(quantiles: int) -> Tensor:
    """The fractions τ_i = (2i + 1) / 2N that N quantiles stand for   (QR-DQN, lemma 2).

    Args:
        quantiles: N.
    Returns: [N] float32. Raises: ValueError where N is below 1.
    """
    if quantiles < 1:
        raise ValueError(f"quantiles is {quantiles}; one at least is needed")
    return (torch.arange(quantiles, dtype=torch.float32) + 0.5) / quantiles


def quantile_huber(quantiles: Tensor, fractions: Tensor, values: Tensor, probabilities: Tensor, delta: float) -> Tensor:
    """Σ_i Σ_j p_j |τ_i − 1[u_ij < 0]| L_κ(u_ij)/κ  with u_ij = z_j − θ_i   (QR-DQN, eq. 10; IQN, eq. 3).

    L_κ(u) = ½u² for |u| ≤ κ, else κ(|u| − ½κ). Where returns differ by less than κ the θ tend to expectiles instead of
    quantiles.

    Args:
        quantiles: [B, N] float32 θ.
        fractions: [B, N] float32 τ.
        values: [B, M] float32 z, no gradient flows into them.
        probabilities: [B, M] float32 p, rows sum to 1.
        delta: κ ≥ 0 in value units; 0 gives |u|, plain quantile regression.
    Returns: [B] float32. Raises: ValueError where shapes disagree.
    """
    check_shapes("B N", quantiles=quantiles, fractions=fractions)
    check_shapes("B M", values=values, probabilities=probabilities)
    if len(values) != len(quantiles):
        raise ValueError(f"values has B = {len(values)}, but quantiles has {len(quantiles)}")
    error = values.detach()[:, None, :] - quantiles[:, :, None]  # [B, N, M]
    size = error.abs()
    if delta > 0:
        near = size.clamp(max=delta)
        size = near * (size - 0.5 * near) / delta  # ½u²/κ or |u| − ½κ, without a branch
    tilt = (fractions[:, :, None] - (error.detach() < 0).to(error.dtype)).abs()
    return (tilt * size * probabilities.detach()[:, None, :]).sum(dim=(1, 2))
