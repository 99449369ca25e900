"""What can be chosen about an R2D2 learner, and which pairs of choices are refused."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal

from pydantic import Field

from onibi.learners.acceleration import AccelerationSettings
from onibi.learners.exploration import ExplorationSettings
from onibi.learners.networks.build import NETWORKS, encoder_settings, numpy_form
from onibi.learners.networks.core_settings import CoreSettings, state_size
from onibi.learners.r2d2_policy import NumpyRecurrentPolicyFactory, TorchRecurrentPolicyFactory
from onibi.learners.support import SupportSettings
from onibi.learners.target_network import TargetSettings
from onibi.learners.value_losses import (
    BINNED_LOSSES,
    ValueHead,
    ValueLossName,
    build_value_head,
    check_loss_options,
    chosen_head_form,
)
from onibi.platform.config import Settings, selected
from onibi.platform.number_ranges import Count, NotNegative, Positive, Probability
from onibi.platform.policy import PolicyFactory
from onibi.platform.replay.samplers.draws import PrioritySettings
from onibi.platform.spec import ReplaySpec

_SYMLOG = SupportSettings(spacing="symlog")


@dataclass(frozen=True, kw_only=True)
class R2d2Settings(Settings):
    """A Q-learner with a memory, on sequences.

    The default for returns of very different sizes are bins spaced by symlog: they are read in value units, so noisy
    returns are learnt at their mean. The paper's rescaling h serves the same end and is biased under noise; it is there
    as ``value_rescaling`` for ``mse`` and ``huber``.
    """

    kind: Literal["r2d2"] = "r2d2"
    discount: Probability = 0.997  # γ per step
    n_steps: Annotated[int, Field(ge=1, le=64)] = 5
    length: Count = 80  # rows of a sequence to learn from
    burn_in: Annotated[int, Field(ge=0)] = 40  # most rows before them, which only warm the memory up
    period: Count = 40  # rows between the starts of two sequences
    # The state that a sequence starts from: the actor's own, kept where one can begin, or 0. The further apart these
    # rows are (the greatest common divisor of period and burn_in), the less memory states take.
    state: Literal["stored", "zero"] = "stored"
    core: CoreSettings = field(default_factory=CoreSettings)
    previous_action: bool = True  # the core reads what was done before beside the encoder's features
    network: Settings = selected(NETWORKS, "auto")  # the encoder before the core
    double: bool = True
    dueling: bool = True
    value_loss: ValueLossName = "hl_gauss"
    support: SupportSettings = _SYMLOG  # hl_gauss, two_hot and c51
    huber_delta: Positive | None = None  # value units; huber, quantile and iqn; 1 where unset
    quantiles: Annotated[int, Field(ge=2, le=1000)] | None = None  # quantile and iqn; 32 where unset
    value_rescaling: Positive | None = None  # ε of h, 1e-3 in the paper; mse and huber alone; null: none
    priorities: PrioritySettings | None = field(
        default_factory=lambda: PrioritySettings(exponent=0.9, importance_exponent=0.6)
    )  # null: uniform draws
    priority_largest_share: Probability = 0.9  # η: priority = η · largest |TD error| + (1 − η) · mean
    learning_rate: NotNegative = 5e-4
    adam_epsilon: Positive = 1.5e-4
    gradient_norm: Positive = 40.0  # gradients of a larger norm are scaled down to it
    batch_size: Count = 64  # sequences
    target: TargetSettings = field(default_factory=TargetSettings)
    exploration: ExplorationSettings = field(default_factory=ExplorationSettings)
    acceleration: AccelerationSettings = field(default_factory=AccelerationSettings)
    publish_period_updates: Count = 10
    metrics_period_updates: Count = 50

    def __post_init__(self) -> None:
        """Refuse options that would not act."""
        support = SupportSettings() if self.support == _SYMLOG else self.support
        check_loss_options(self.value_loss, support, self.huber_delta, self.quantiles)
        if self.period > self.length:
            raise ValueError(
                f"period is {self.period}, above the length of {self.length}: the rows between two sequences would "
                "never be learned from. Set period to length or less"
            )
        if self.priorities is None and self.priority_largest_share != type(self).priority_largest_share:
            raise ValueError("priority_largest_share is read with priorities alone: leave it out, or set priorities")
        if self.value_rescaling is None:
            return
        if self.value_loss not in ("mse", "huber"):
            instead = ": space the bins by support.spacing symlog" if self.value_loss in BINNED_LOSSES else ""
            raise ValueError(
                f"value_rescaling is read by value_loss mse and huber alone, not by {self.value_loss}: leave it out"
                f"{instead}"
            )
        if self.exploration.temperature > 0:
            raise ValueError(
                "exploration.temperature is in value units, which the network does not emit with value_rescaling: "
                "set one of the two"
            )

    @property
    def state_size(self) -> int:
        """Numbers in a row's state: the core's, and with ``previous_action`` the number of that action + 1, or 0."""
        return state_size(self.core) + self.previous_action

    def value_head(self, value_bounds: tuple[float, float] | None) -> ValueHead:
        """The value loss with its support resolved.

        Args:
            value_bounds: least and largest discounted return; None where they are not known.
        Raises: ConfigError where no support can be placed.
        """
        return build_value_head(self.value_loss, self.support, self.huber_delta, self.quantiles, value_bounds)

    def policy_factory(self, spec: ReplaySpec) -> PolicyFactory:
        """A picklable maker of policies that read the weights of an ``R2d2Learner`` of these settings."""
        network, stores_state = encoder_settings(self.network, spec.observation), self.state == "stored"
        twin = numpy_form(network, spec.observation)
        if twin is not None:
            return NumpyRecurrentPolicyFactory(
                exploration=self.exploration,
                encoder=twin,
                core=self.core,
                actions=spec.actions,
                previous_action=self.previous_action,
                stores_state=stores_state,
            )
        return TorchRecurrentPolicyFactory(
            exploration=self.exploration,
            network=network,
            core=self.core,
            spec=spec,
            form=chosen_head_form(self.value_loss, self.support, self.quantiles),
            dueling=self.dueling,
            previous_action=self.previous_action,
            stores_state=stores_state,
        )
