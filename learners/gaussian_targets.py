"""Targets of ``hl_gauss``: a scalar as a Gaussian histogrammed over bins (Farebrother et al. 2024)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from onibi.learners.shapes import check_shapes
from onibi.learners.value_rescaling import symexp, symlog

_TAIL_END = 9.0
"""erfc of little more is a subnormal number: nothing beside 1, and several times slower to compute with."""
_CENTRING_STEPS = 3
"""Of the search for a Gaussian whose mean over symlog bins is the target: they leave less than 10⁻³ of a bin where
bins are as fine as by default. Over wide bins, or with a wide σ, it does not converge: ``build_value_head`` refuses."""
_END_BINS = 3
"""At either end of the support, where the read-out is biased in any case."""


def hl_gauss_target(value: Tensor, edges: Tensor, sigma: float) -> Tensor:
    """Probabilities of the bins  p_i = [Φ((e_i − y)/σ) − Φ((e_{i−1} − y)/σ)] / [Φ((e_m − y)/σ) − Φ((e_0 − y)/σ)].

    Args:
        value: [B] float32 y, clamped to [e_0, e_m] (outside, the quotient tends to 0/0).
        edges: [m + 1] float32, rising.
        sigma: σ > 0 in value units.
    Returns: [B, m] float32 without gradient, rows sum to 1. Raises: ValueError where shapes disagree.
    """
    check_shapes("B", value=value)
    check_shapes("edge", edges=edges)
    clamped = value.detach().clamp(edges[0], edges[-1])
    distance = ((edges - clamped[:, None]) / (sigma * math.sqrt(2.0))).clamp(-_TAIL_END, _TAIL_END)
    # Φ(b) − Φ(a) cancels in float32 where both are near 1: erfc(|x|) takes the difference between small numbers. With
    # the sign of x that difference is right in each tail, and 2 short in the bin that y lies in, where alone it is < 0.
    tail = torch.erfc(distance.abs()).copysign(distance)
    mass = tail[:, :-1] - tail[:, 1:]
    mass = mass - 2.0 * (0.5 * mass).floor()
    return mass / mass.sum(dim=1, keepdim=True)


def centred_hl_gauss_target(value: Tensor, edges: Tensor, centres: Tensor, sigma: float) -> Tensor:
    """HL-Gauss over symlog bins, with Σ_i p_i z_i = y in value units.

    A Gaussian around symlog(y) would read too high, as bins grow outwards: its place is moved until the mean is y. So
    the mean over noisy targets is read as it is, without the bias of transforming the targets and inverting the mean.

    Args:
        value: [B] float32 y in value units, clamped to the support.
        edges: [m + 1] float32 in symlog units, rising.
        centres: [m] float32 z in value units.
        sigma: σ > 0 in symlog units.
    Returns: [B, m] float32 without gradient, rows sum to 1. Raises: ValueError where shapes disagree.
    """
    wanted = symlog(value.detach()).clamp(edges[0], edges[-1])
    place = wanted
    for _ in range(_CENTRING_STEPS):
        read = symlog(hl_gauss_target(place, edges, sigma) @ centres)
        place = (place + wanted - read).clamp(edges[0], edges[-1])
    return hl_gauss_target(place, edges, sigma)


def readout_error(edges: Tensor, centres: Tensor, sigma: float) -> float:
    """How many bins the mean of ``hl_gauss_target`` is away from its target at most, in the middle half of the support.

    Half a bin where σ is far below one; more where σ is so wide that the ends of the support cut the Gaussian.

    Args:
        edges: [m + 1] float32 in value units, rising, at equal distances.
        centres: [m] float32 in value units.
        sigma: σ > 0 in value units.
    """
    value = torch.lerp(edges[0], edges[-1], torch.linspace(0.25, 0.75, 5 * len(centres)))
    read = hl_gauss_target(value, edges, sigma) @ centres
    return float((read - value).abs().max() / (edges[1] - edges[0]))


def centring_error(edges: Tensor, centres: Tensor, sigma: float) -> float:
    """By how much of a bin ``centred_hl_gauss_target`` misses at most what a Gaussian within the support can reach.

    Args:
        edges: [m + 1] float32 in symlog units, rising, at equal distances.
        centres: [m] float32 in value units.
        sigma: σ > 0 in symlog units.
    """
    bins = len(centres)
    ends = min(_END_BINS, (bins - 1) // 2)
    reached = symlog(hl_gauss_target(edges[[0, -1]], edges, sigma) @ centres)
    low, high = torch.maximum(edges[ends], reached[0]), torch.minimum(edges[-1 - ends], reached[1])
    wanted = torch.lerp(low, high, torch.linspace(0.0, 1.0, 5 * bins))
    read = symlog(centred_hl_gauss_target(symexp(wanted), edges, centres, sigma) @ centres)
    return float((read - wanted).abs().max() / (edges[1] - edges[0]))
