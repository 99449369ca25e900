"""The random numbers that one update of a Q-network reads: fractions of implicit quantiles, noise on weights."""

from __future__ import annotations

import torch
from torch import Tensor

from onibi.learners.learner_state import SavedGenerators
from onibi.learners.value_losses import HeadForm


class UpdateDraws(SavedGenerators):
    """Draws on the CPU, so that they are the same on any device.

    Args:
        form: of the head; fractions are drawn where it is implicit.
        noise_size: normals of a row of noise; 0 where the head is not noisy.
        seed: of both generators.
        device: where the draws go.
    """

    def __init__(self, form: HeadForm, noise_size: int, seed: int, device: torch.device) -> None:
        read = {"rng.fractions": form.implicit, "rng.noise": noise_size > 0}
        super().__init__({name: seed for name, is_read in read.items() if is_read})
        self._outputs, self._noise_size, self._device = form.outputs, noise_size, device

    def draw(self, rows: int) -> dict[str, Tensor]:
        """What one update reads.

        Args:
            rows: B.
        Returns: where they are read, ``fractions`` and ``target_fractions`` [B, K] of prediction and target, and as in
            the paper one sample of noise [1, noise_size] for all rows of each pass: ``noise`` of the prediction,
            ``target_noise``, and ``chooser_noise`` of the network that chooses the bootstrap action.
        """
        drawn: dict[str, Tensor] = {}
        if "rng.fractions" in self:
            generator = self["rng.fractions"]
            for name in ("fractions", "target_fractions"):
                drawn[name] = torch.rand(rows, self._outputs, generator=generator)
        if "rng.noise" in self:
            generator = self["rng.noise"]
            for name in ("noise", "target_noise", "chooser_noise"):
                drawn[name] = torch.randn(1, self._noise_size, generator=generator)
        return {name: numbers.to(self._device, non_blocking=True) for name, numbers in drawn.items()}
