"""The random numbers that one update of a Q-network reads: fractions of implicit quantiles, noise on weights."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from onibi.learners.value_losses import HeadForm
from onibi.platform.errors import CheckpointError


class UpdateDraws:
    """Draws on the CPU, so that they are the same on any device.

    Args:
        form: of the head; fractions are drawn where it is implicit.
        noise_size: normals of a row of noise; 0 where the head is not noisy.
        seed: of both generators.
        device: where the draws go.
    """

    def __init__(self, form: HeadForm, noise_size: int, seed: int, device: torch.device) -> None:
        self._outputs, self._noise_size, self._device = form.outputs, noise_size, device
        self._generators: dict[str, torch.Generator] = {}
        for name, is_read in (("rng.fractions", form.implicit), ("rng.noise", noise_size > 0)):
            if is_read:
                self._generators[name] = torch.Generator().manual_seed(seed)

    def draw(self, rows: int) -> dict[str, Tensor]:
        """What one update reads.

        Args:
            rows: B.
        Returns: where they are read, ``fractions`` and ``target_fractions`` [B, K] of prediction and target, and as in
            the paper one sample of noise [1, noise_size] for all rows of each pass: ``noise`` of the prediction,
            ``target_noise``, and ``chooser_noise`` of the network that chooses the bootstrap action.
        """
        drawn: dict[str, Tensor] = {}
        if "rng.fractions" in self._generators:
            generator = self._generators["rng.fractions"]
            for name in ("fractions", "target_fractions"):
                drawn[name] = torch.rand(rows, self._outputs, generator=generator)
        if "rng.noise" in self._generators:
            generator = self._generators["rng.noise"]
            for name in ("noise", "target_noise", "chooser_noise"):
                drawn[name] = torch.randn(1, self._noise_size, generator=generator)
        return {name: numbers.to(self._device, non_blocking=True) for name, numbers in drawn.items()}

    def state_dict(self) -> dict[str, Tensor]:
        """The generators' states by flat name; none where nothing is drawn."""
        return {name: generator.get_state() for name, generator in self._generators.items()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Go on from a state, other names in which are not looked at. Raises: CheckpointError where it lacks one."""
        missing = [name for name in self._generators if name not in state]
        if missing:
            raise CheckpointError(f"the checkpoint lacks the learner's {missing}; take an older checkpoint.")
        for name, generator in self._generators.items():
            generator.set_state(state[name].cpu())
