"""What learners of action values have in common: a network, its gradient step, what is published and kept of them."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from onibi.learners.acceleration import AccelerationSettings
from onibi.learners.device_copies import DeviceCopies
from onibi.learners.gradient_step import GradientStep
from onibi.learners.learner_state import (
    TORCH_GENERATOR,
    SavedGenerators,
    check_bins,
    load_networks,
    saved_state,
)
from onibi.learners.networks.build import as_arrays
from onibi.learners.value_losses import ValueHead
from onibi.platform.policy import Weights, WeightsVersion


class GradientSettings(Protocol):
    """What a gradient step reads of a learner's settings."""

    @property
    def learning_rate(self) -> float:
        """Of Adam."""

    @property
    def adam_epsilon(self) -> float:
        """ε of Adam."""

    @property
    def gradient_norm(self) -> float:
        """Gradients of a larger norm are scaled down to it."""

    @property
    def acceleration(self) -> AccelerationSettings:
        """Precision, accumulation."""


class ValueTerms(Protocol):
    """What a loss on action values was made of."""

    @property
    def loss(self) -> Tensor:
        """[N]"""

    @property
    def floor(self) -> Tensor:
        """[N], what the loss cannot go below."""

    @property
    def clipped(self) -> Tensor:
        """[N], targets outside of the support."""

    @property
    def prediction(self) -> Tensor:
        """[N, K], of the actions taken."""

    @property
    def outputs(self) -> Tensor:
        """[N, A, K]"""


class Learnt(NamedTuple):
    """What a batch's loss was made of.

    Args:
        loss: [B], and
        floor: [B], and
        clipped: [B], of ``LossTerms``.
        prediction: [B, K], of the actions taken.
        outputs: [B, A, K]
        target: [B], its mean where it is a distribution.
    """

    loss: Tensor
    floor: Tensor
    clipped: Tensor
    prediction: Tensor
    outputs: Tensor
    target: Tensor


N = TypeVar("N", bound=nn.Module)


class QLearner(Generic[N]):
    """Base of learners whose network gives action values.

    Args:
        settings: of the gradient step.
        network: to learn with, on the CPU yet.
        value_head: the value loss.
        generators: of random numbers that belong into a checkpoint.
        device: "cpu", "cuda", "cuda:1".
        has_target: keep a copy of the network as ``_target``, in checkpoints too.
        steps_per_batch: gradient steps that an update makes.
    """

    def __init__(
        self,
        settings: GradientSettings,
        network: N,
        value_head: ValueHead,
        generators: SavedGenerators,
        device: str,
        *,
        has_target: bool,
        steps_per_batch: int,
    ) -> None:
        self._device = torch.device(device)
        self.copies = DeviceCopies(self._device)
        self._network: N = network.to(self._device)
        self._value_head = value_head.to(self._device)
        self._networks: dict[str, nn.Module] = {"network": self._network}
        if has_target:
            self._target: N = copy.deepcopy(self._network).requires_grad_(requires_grad=False)
            self._networks["target"] = self._target
        self._generators, self._learning_rate = generators, settings.learning_rate
        self._gradient = GradientStep(
            self._network,
            learning_rate=settings.learning_rate,
            adam_epsilon=settings.adam_epsilon,
            gradient_norm=settings.gradient_norm,
            acceleration=settings.acceleration,
            steps_per_batch=steps_per_batch,
        )

    @property
    def updates(self) -> int:
        """Gradient steps made, skipped and restored ones included."""
        return self._gradient.updates

    @property
    def skipped_updates(self) -> int:
        """Gradient steps left out because loss or gradient was not finite."""
        return self._gradient.skipped_updates

    @property
    def value_head(self) -> ValueHead:
        """The value loss with its resolved support."""
        return self._value_head

    def weights(self, version: WeightsVersion) -> Weights:
        """A copy of the network's parameters and buffers."""
        return Weights(version, as_arrays(self._network))

    def state_dict(self) -> dict[str, Tensor]:
        """Copies of the networks, Adam's moments, counters and generators, by flat name."""
        return saved_state(self._networks, {**self._gradient.state_dict(), **self._generators.state_dict()})

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take a state that ``state_dict`` gave. Raises: CheckpointError where it is of another network or support."""
        check_bins(state.get("network.centres"), self._value_head.centres)
        load_networks(self._networks, state)
        self._gradient.load_state_dict(state)
        self._generators.load_state_dict(state)
        torch.set_rng_state(state[TORCH_GENERATOR].cpu())

    def _tensors(self, arrays: Mapping[str, NDArray[Any]]) -> dict[str, Tensor]:
        """The arrays on the device."""
        return {name: self.copies.tensor(array) for name, array in arrays.items()}

    @torch.no_grad()
    def _figures(
        self,
        learnt: ValueTerms,
        target: Tensor,
        gradient_norm: Tensor,
        rows: Tensor | None = None,
        others: Mapping[str, Tensor] | None = None,
    ) -> dict[str, float]:
        """Metrics of one gradient step.

        Args:
            learnt: what its loss was made of.
            target: [N]
            gradient_norm: []
            rows: [N] bool, those that count; None: all.
            others: further figures [] by name.
        """
        kept = slice(None) if rows is None else rows
        values = self._value_head.decode(learnt.outputs.detach())[kept]
        td_error = (target - self._value_head.decode(learnt.prediction.detach()))[kept]
        figures = {
            "loss": learnt.loss[kept].mean(),
            "loss_above_floor": (learnt.loss - learnt.floor)[kept].mean(),
            "q_mean": values.mean(),
            "q_max": values.max() if len(values) else values.sum(),
            "target_mean": target[kept].mean(),
            "td_abs": td_error.abs().mean(),
            "gradient_norm": gradient_norm,
            "clipped_share": learnt.clipped[kept].float().mean(),
            **(others or {}),
        }
        numbers = torch.stack(list(figures.values())).tolist()  # one copy from the device for all
        return dict(zip(figures, numbers, strict=True)) | {
            "learning_rate": self._learning_rate,
            "skipped_updates": float(self.skipped_updates),
        }


def finite_or_none(priorities: NDArray[np.float32]) -> NDArray[np.float32] | None:
    """Priorities [B] for the sampler; None where one is not finite, as the update was then skipped: all keep theirs."""
    return priorities if np.isfinite(priorities).all() else None
