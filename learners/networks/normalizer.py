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
        """Merge a batch [B, F] into the statistics.

        A batch that they would not be finite with is left out: one with a value that is not finite itself, or so large
        (about 1e19) that its square is not.
        """
        if not len(batch):
            return
        total = self.count + len(batch)
        share = (len(batch) / total).to(self.mean)
        # About its first row: the rounded mean of a large constant misses it by thousands of such small deviations.
        about = batch - batch[0]
        delta = about.mean(dim=0) + (batch[0] - self.mean)
        spread = about.var(dim=0, correction=0) - self.variance
        # With no row seen before (share 1) this is the batch's own variance: the initial ones have no weight.
        variance = self.variance + (share * spread + share * (1.0 - share) * delta**2)
        mean = self.mean + share * delta
        sound = torch.isfinite(mean).all() & torch.isfinite(variance).all()  # decided on the device
        for kept, found in ((self.variance, variance), (self.mean, mean), (self.count, total)):
            kept.copy_(torch.where(sound, found, kept))

    def forward(self, features: Tensor) -> Tensor:
        """[..., F] → [..., F] float32."""
        return ((features - self.mean) * torch.rsqrt(self.variance + VARIANCE_FLOOR)).clamp(-CLIP, CLIP)
