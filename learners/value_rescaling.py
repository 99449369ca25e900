"""Invertible rescalings of values: R2D2's h with its inverse, and symlog with symexp.

h(x) = sign(x)(√(|x| + 1) − 1) + εx (Pohlen et al. 2018, arXiv 1805.11593; R2D2: Kapturowski et al. 2019) lets a network
emit h(value), and learn from h(r + γ h⁻¹(·)), so that returns of 10 and of 10,000 both fit.

**Biased under noise.** What is learnt tends to the mean of h(return), and h⁻¹ of it is not the mean of the return: for
normal returns of mean 2 and standard deviation 5 it is 1.30, with symlog 0.80. Bins that are spaced by symlog and read
in value units (``support.spacing``) have no such bias.

Differences from the papers: both directions are written without differences of nearly equal numbers, so float32 keeps
its relative precision down to 0; the papers' inverse loses all digits below |x| ≈ 10⁻⁴.
"""

from __future__ import annotations

import torch
from torch import Tensor


def rescale_value(value: Tensor, epsilon: float) -> Tensor:
    """h(x) = sign(x)(√(|x| + 1) − 1) + εx.

    Args:
        value: any shape, float32.
        epsilon: ε ≥ 0; 10⁻³ in R2D2. Above 0 the inverse has a bounded slope.
    Returns: like ``value``; gradients flow. Raises: ValueError where ε is negative.
    """
    _check_epsilon(epsilon)
    # √(1 + a) − 1 = a / (√(1 + a) + 1)
    return value / (torch.sqrt(value.abs() + 1.0) + 1.0) + epsilon * value


def restore_value(rescaled: Tensor, epsilon: float) -> Tensor:
    """The inverse h⁻¹(y) = sign(y)(q² − 1) with q = (√(1 + 4ε(|y| + 1 + ε)) − 1) / 2ε.

    Args:
        rescaled: any shape, float32.
        epsilon: the ε of ``rescale_value``; 0 gives sign(y)((|y| + 1)² − 1).
    Returns: like ``rescaled``; gradients flow. Raises: ValueError where ε is negative.
    """
    _check_epsilon(epsilon)
    size = rescaled.abs()
    root = torch.sqrt(1.0 + 4.0 * epsilon * (size + 1.0 + epsilon))
    # q − 1 = |y| (2 − 4ε/(1 + 2ε + √…)) / (√… + 1): each difference times its sum. q² − 1 = (q − 1)(q + 1).
    slope = (2.0 - 4.0 * epsilon / (1.0 + 2.0 * epsilon + root)) / (root + 1.0)
    return rescaled * slope * (size * slope + 2.0)


def symlog(value: Tensor) -> Tensor:
    """sign(x) · ln(1 + |x|)   (Hafner et al. 2023, arXiv 2301.04104).

    Args:
        value: any shape, float32.
    Returns: like ``value``; gradients flow.
    """
    # sign(x) · log1p|x| would have the slope 0 at 0, where every head starts.
    return torch.where(value >= 0, torch.log1p(value.clamp(min=0.0)), -torch.log1p(-value.clamp(max=0.0)))


def symexp(value: Tensor) -> Tensor:
    """sign(x) · (exp|x| − 1), the inverse of ``symlog``.

    Args:
        value: any shape, float32.
    Returns: like ``value``; gradients flow.
    """
    return torch.where(value >= 0, torch.expm1(value.clamp(min=0.0)), -torch.expm1(-value.clamp(max=0.0)))


def _check_epsilon(epsilon: float) -> None:
    if epsilon < 0:
        raise ValueError(f"epsilon is {epsilon}; h is invertible for ε of 0 or more")
