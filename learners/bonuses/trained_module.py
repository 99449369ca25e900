"""What bonuses with a network share: a gradient step for every so many new rows, leaves as tensors, state."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from onibi.learners.acceleration import AccelerationSettings
from onibi.learners.bonuses.bonus_module import ModulePlace, State, part_of, prefixed
from onibi.learners.gradient_step import GradientStep
from onibi.platform.errors import CheckpointError, NonFiniteError
from onibi.platform.replay.transition_intake import TransitionIntake, Transitions

_ADAM_EPSILON, _GRADIENT_NORM = 1e-8, 10.0


class TrainedModule:
    """A network that sees each new row in one gradient step.

    Args:
        network: all of its tensors are kept in checkpoints; those that take gradients are moved.
        place: the ring, the leaves and the device.
        learning_rate: of Adam.
        train_rows: rows of a step.
        loss: [] of so many rows, whose statistics it takes in, too.
        columns: read besides the leaves.
        follow: whether ``loss`` reads what followed.
    """

    def __init__(
        self,
        network: nn.Module,
        place: ModulePlace,
        *,
        learning_rate: float,
        train_rows: int,
        loss: Callable[[Transitions], Tensor | None],
        columns: tuple[str, ...] = (),
        follow: bool = False,
    ) -> None:
        self.network, self._loss, self._train_rows, self._name = network, loss, train_rows, place.name
        self._device = torch.device(place.device)
        network.to(self._device)
        self._leaves = tuple(leaf.name for leaf in place.leaves)
        self._intake = TransitionIntake(place.reader, lanes=None, leaves=self._leaves, columns=columns, follow=follow)
        self._gradient = GradientStep(
            network,
            learning_rate=learning_rate,
            adam_epsilon=_ADAM_EPSILON,
            gradient_norm=_GRADIENT_NORM,
            acceleration=AccelerationSettings(),
        )
        self.newest_loss = float("nan")

    def learn(self) -> None:
        """One step for every ``train_rows`` new rows; fewer wait for the next call.

        Raises: NonFiniteError where the tenth step in a row is not finite.
        """
        while (rows := self._intake.take(self._train_rows, self._train_rows)) is not None:
            loss = self._loss(rows)
            if loss is not None:
                self._step(loss)
                self.newest_loss = float(loss.detach())

    def _step(self, loss: Tensor) -> None:
        try:
            self._gradient.step(loss)
        except NonFiniteError as error:  # its words name the learner's settings
            raise NonFiniteError(
                f"rewards.bonuses.{self._name}, step {self._gradient.updates}: loss or gradient was not finite "
                f"{self._gradient.skips_in_a_row} times in a row. Look for NaN in the observations, or lower its "
                "learning_rate; then resume from the last checkpoint."
            ) from error

    def tensors(self, leaves: Mapping[str, NDArray[Any]]) -> dict[str, Tensor]:
        """Leaves on the device."""
        return {name: torch.from_numpy(np.ascontiguousarray(each)).to(self._device) for name, each in leaves.items()}

    def metrics(self) -> dict[str, float]:
        """Loss of the newest step, steps made and skipped, rows lost."""
        figures = {
            "steps": float(self._gradient.updates),
            "skipped_steps": float(self._gradient.skipped_updates),
            "lost_rows": float(self._intake.lost_rows),
        }
        return figures if np.isnan(self.newest_loss) else {"loss": self.newest_loss, **figures}

    def state(self) -> dict[str, NDArray[Any]]:
        """Network, Adam's moments, counters, and which rows were seen."""
        network = {name: _array(each) for name, each in self.network.state_dict().items()}
        gradient = {name: _array(each) for name, each in self._gradient.state_dict().items()}
        return {
            **prefixed("network", network),
            **prefixed("gradient", gradient),
            **prefixed("intake", self._intake.state()),
        }

    def restore(self, state: State) -> None:
        """Go on from ``state``. Raises: CheckpointError where it is of another network."""
        try:
            self.network.load_state_dict(_tensors(part_of("network", state)))
        except RuntimeError as error:
            raise CheckpointError(
                f"the checkpoint's bonus does not fit these settings: {error}\nResume with the settings it was saved "
                "under, or start a new run."
            ) from error
        self._gradient.load_state_dict(_tensors(part_of("gradient", state)))
        self._intake.restore(part_of("intake", state))


def _array(tensor: Tensor) -> NDArray[Any]:
    array: NDArray[Any] = tensor.detach().cpu().numpy().copy()
    return array


def _tensors(arrays: State) -> dict[str, Tensor]:
    return {name: torch.from_numpy(np.array(each)) for name, each in arrays.items()}
