"""What every learner is: a plain class that turns drawn batches and mixed rewards into updates of a network."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray

from onibi.platform.config import Settings
from onibi.platform.policy import PolicyFactory, Weights, WeightsVersion
from onibi.platform.replay.samplers.draws import Draws
from onibi.platform.spec import ArraySpec, StateSpec

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class ReplayNeeds:
    """How a learner wants to be fed.

    ``extra`` are columns that its policy writes beside the fixed ones (``PolicyStep.extra``); they are 0 in final rows.
    ``states`` are written by the policy likewise, at every step, and kept at some.
    """

    draws: Draws
    extra: tuple[ArraySpec, ...] = ()
    states: tuple[StateSpec, ...] = ()


@dataclass(frozen=True)
class Update:
    """What one update tells. ``metrics`` is empty but for every ``metrics_period_updates``-th update."""

    metrics: dict[str, float] = field(default_factory=dict)
    priorities: NDArray[np.float32] | None = None  # [B], of the batch drawn; None where nothing is prioritized


class Learner(Protocol):
    """A learner: made as ``cls(settings, spec, value_bounds, seed, device)``, see ``DqnLearner`` for the arguments.

    A class variable ``continuous_actions = True`` says that it takes Box actions as well.
    Its settings have at least ``kind``, ``discount``, ``publish_period_updates``, ``metrics_period_updates`` and
    ``acceleration``. A learner that has ``copies`` (``DeviceCopies``) takes its tensors from there: batches are then on
    their way to its device before it asks for them.
    """

    Settings: ClassVar[type[Settings]]

    @property
    def updates(self) -> int:
        """Gradient steps made so far, restored ones included."""

    @staticmethod
    def needs(settings: Any) -> ReplayNeeds:
        """What replay has to provide under these settings."""

    @staticmethod
    def policy_factory(settings: Any, spec: Any) -> PolicyFactory:
        """A picklable maker of the policies that read this learner's weights."""

    def update(self, batch: Any, reward: NDArray[np.float32]) -> Update:
        """Learn from a batch: one gradient step, or several.

        Args:
            batch: ``Windows``, ``Sequences`` or ``Slab``, as ``needs`` asked for; read only, not kept.
            reward: float32, the mixed reward; in place of ``batch.reward`` and of its shape.
        Raises: TrainingError where learning cannot go on.
        """

    def weights(self, version: WeightsVersion) -> Weights:
        """A copy of what a policy needs, stamped with ``version``."""

    def state_dict(self) -> dict[str, Tensor]:
        """Copies of everything that resuming needs, by flat name; fit for safetensors."""

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take a state that ``state_dict`` gave. Raises: CheckpointError where it is of another network."""
