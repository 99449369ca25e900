"""Running normalisation of flat observations; its statistics are buffers: they travel with weights and checkpoints."""

from __future__ import annotations

import torch
from torch import Tensor, nn

VARIANCE_FLOOR = 1e-6
CLIP = 10.0
"""In standard deviations; the NumPy side uses the same."""


class RunningNormalizer(nn.Module):
    """(x − μ)/√(σ² + 1e-6), clipped to ±10, with μ and σ² over all that ``learn`` has seen (Chan et al. 1979).

    Args:
        features: F.
    """

    mean: Tensor
    variance: Tensor
    count: Tensor

    def __init__(self, features: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(features))
        self.register_buffer("variance", torch.ones(features))
        self.register_buffer("count", torch.zeros((), dtype=torch.float64))

    @torch.no_grad()
    def learn(self, batch: Tensor) -> None:
        """Merge a batch [B, F] into the statistics. A batch with a value that is not finite is left out."""
        if not len(batch):
            return
        sound = torch.isfinite(batch).all()
        rows = torch.where(sound, float(len(batch)), 0.0).to(self.count)
        clean = torch.nan_to_num(batch, nan=0.0, posinf=0.0, neginf=0.0)
        total = self.count + rows
        share = (rows / total.clamp(min=1.0)).to(self.mean)
        delta = clean.mean(dim=0) - self.mean
        spread = clean.var(dim=0, correction=0) - self.variance
        # With no row seen before (share 1) this is the batch's own variance: the initial ones have no weight.
        self.variance += share * spread + share * (1.0 - share) * delta**2
        self.mean += share * delta
        self.count.copy_(total)

    def forward(self, features: Tensor) -> Tensor:
        """[..., F] → [..., F] float32."""
        return ((features - self.mean) * torch.rsqrt(self.variance + VARIANCE_FLOOR)).clamp(-CLIP, CLIP)
