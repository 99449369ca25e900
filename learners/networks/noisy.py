"""Noisy linear layers: exploration by noise on the weights, whose size is learnt (Fortunato et al. 2018).

    y = (μ_w + σ_w ⊙ f(ε_out) f(ε_in)ᵀ) x + μ_b + σ_b ⊙ f(ε_out),   f(ε) = sign(ε) √|ε|    (arXiv 1706.10295, eq. 9–11)

The noise is factorised: p + q normals for a layer from p to q features. So y is computed without ever making the noisy
matrix, and each row of a batch may have noise of its own: y = μ_w x + μ_b + f(ε_out) ⊙ (σ_w (f(ε_in) ⊙ x) + σ_b).

Differences from the paper: the layers of the head alone are noisy, not those of the encoder; each environment of an
actor has noise of its own, drawn anew each step; the means start as the head does without noise, at the value 0;
evaluation acts by the means.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from onibi.learners.shapes import check_shapes
from onibi.platform.config import Settings
from onibi.platform.number_ranges import Positive


@dataclass(frozen=True, kw_only=True)
class NoisySettings(Settings):
    """Noise on the weights of the head's layers."""

    sigma: Positive = 0.5  # σ₀: the layers' deviations start at σ₀/√p, p being their input width


class NoisyLinear(nn.Linear):
    """A linear layer whose ``weight`` and ``bias`` are the means μ; the deviations σ are learnt beside them.

    Args:
        features: p, width of the input.
        outputs: q, width of the output.
        sigma: σ₀.
    """

    def __init__(self, features: int, outputs: int, sigma: float) -> None:
        super().__init__(features, outputs)  # uniform in ± 1/√p, the paper's start of the means
        deviation = sigma / math.sqrt(features)
        self.weight_deviation = nn.Parameter(torch.full((outputs, features), deviation))
        self.bias_deviation = nn.Parameter(torch.full((outputs,), deviation))

    @property
    def noise_size(self) -> int:
        """Standard normals of a row of noise: p + q."""
        return self.in_features + self.out_features

    def forward(self, features: Tensor, noise: Tensor | None = None) -> Tensor:
        """[B, p] → [B, q] float32.

        Args:
            features: [B, p] float32.
            noise: [B, p + q] standard normals, or [1, p + q] for all rows; None gives the means.
        Raises: ValueError where the shapes disagree.
        """
        means = functional.linear(features, self.weight, self.bias)
        if noise is None:
            return means
        check_shapes("B p+q", noise=noise)
        if noise.shape[1] != self.noise_size or len(noise) not in (1, len(features)):
            raise ValueError(
                f"noise has shape {tuple(noise.shape)}, wanted is [{len(features)} or 1, {self.noise_size}]"
            )
        shaped = torch.sign(noise) * torch.sqrt(noise.abs())
        into, out = shaped[:, : self.in_features], shaped[:, self.in_features :]
        return means + out * functional.linear(features * into, self.weight_deviation, self.bias_deviation)

    def mean_sigma(self) -> Tensor:
        """[] float32: mean |σ_w| in the unit of ``sigma``; says how much noise is left."""
        return self.weight_deviation.detach().abs().mean() * math.sqrt(self.in_features)


def build_linear(features: int, outputs: int, noisy: NoisySettings | None) -> nn.Linear:
    """A linear layer, noisy where there are settings for it."""
    return nn.Linear(features, outputs) if noisy is None else NoisyLinear(features, outputs, noisy.sigma)
