"""DQN with its usual companions: double, dueling, n-step, distributed ε ladder (the Ape-X shape), value loss by name.

Papers: Mnih et al. 2015 (DQN); van Hasselt et al. 2016, arXiv 1509.06461 (double); Wang et al. 2016, arXiv 1511.06581
(dueling); Horgan et al. 2018, arXiv 1803.00933 (Ape-X); Farebrother et al. 2024, arXiv 2403.03950 (HL-Gauss).

Differences from the papers: LayerNorm in the default networks; the target network follows by a moving average each
update (``target.rate`` 1 with ``target.period_updates`` gives the hard copy); window tails give shorter returns instead
of being dropped; truncated episodes bootstrap from their last observation; the reward is the mixed one of the batch, so
late labels count; uniform sampling; the head starts at value 0; a gradient longer than ``gradient_norm`` is shortened;
``exploration.temperature`` makes acting and bootstrap those of a softmax policy.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor, nn

from onibi.learners.distributional_losses import n_step_distribution
from onibi.learners.dqn_policy import NumpyQPolicyFactory, TorchQPolicyFactory
from onibi.learners.exploration import ExplorationSettings, Probability
from onibi.learners.learner import ReplayNeeds, Update
from onibi.learners.networks.build import (
    NETWORKS,
    acts_in_numpy,
    as_arrays,
    build_q_network,
    encoder_settings,
)
from onibi.learners.networks.leaves import flat_leaf
from onibi.learners.returns import n_step_return, window_discounts
from onibi.learners.support import SupportSettings, resolve_sigma, resolve_support
from onibi.learners.value_losses import (
    BINNED_LOSSES,
    LossTerms,
    ValueHead,
    ValueLossName,
    check_loss_options,
    head_form,
)
from onibi.platform.config import Settings, selected
from onibi.platform.errors import CheckpointError, TrainingError
from onibi.platform.policy import PolicyFactory, Weights, WeightsVersion
from onibi.platform.replay.windows import Windows
from onibi.platform.spec import ReplaySpec

log = logging.getLogger(__name__)

_SKIPS_IN_A_ROW = 10
"""Non-finite updates in a row after which learning is given up: one bad batch passes by, a broken network does not."""
_DEFAULT_HUBER_DELTA = 1.0
_DEFAULT_QUANTILES = 32
_ADAM_STATE = ("exp_avg", "exp_avg_sq", "step")
_COUNTERS = ("updates", "skipped_updates", "skips_in_a_row")

Count = Annotated[int, Field(ge=1)]
Positive = Annotated[float, Field(gt=0)]


@dataclass(frozen=True, kw_only=True)
class TargetSettings(Settings):
    """Every ``period_updates`` the target becomes (1 − rate) · target + rate · network.

    A hard copy is rate 1 with a long period.
    """

    rate: Annotated[float, Field(gt=0, le=1)] = 0.005
    period_updates: Count = 1


@dataclass(frozen=True, kw_only=True)
class DqnSettings(Settings):
    """What can be chosen about a DQN learner. The defaults learnt MiniHack's KeyRoom-S5 in every seed."""

    kind: Literal["dqn"] = "dqn"
    discount: Probability = 0.99  # γ per step
    n_steps: Annotated[int, Field(ge=1, le=64)] = 3
    double: bool = True
    dueling: bool = True
    value_loss: ValueLossName = "hl_gauss"
    support: SupportSettings = field(default_factory=SupportSettings)  # hl_gauss, two_hot and c51
    huber_delta: Positive | None = None  # value units; huber, quantile and iqn; 1 where unset
    quantiles: Annotated[int, Field(ge=2, le=1000)] | None = None  # quantile and iqn; 32 where unset
    learning_rate: Annotated[float, Field(ge=0)] = 5e-4
    adam_epsilon: Positive = 1.5e-4
    gradient_norm: Positive = 10.0  # gradients of a larger norm are scaled down to it
    batch_size: Count = 128
    target: TargetSettings = field(default_factory=TargetSettings)
    exploration: ExplorationSettings = field(default_factory=ExplorationSettings)
    network: Settings = selected(NETWORKS, "auto")
    publish_period_updates: Count = 10
    metrics_period_updates: Count = 50

    def __post_init__(self) -> None:
        """Refuse options that the chosen value loss would not read."""
        check_loss_options(self.value_loss, self.support, self.huber_delta, self.quantiles)


class DqnLearner:
    """One network, its target and its optimizer.

    Args:
        settings: all choices.
        spec: row layout of the run.
        value_bounds: least and largest discounted return, from the reward mixer; read where the support is auto.
        seed: of the initial parameters.
        device: "cpu", "cuda", "cuda:1".
    Raises: ConfigError where no support can be placed, SpecError where the network cannot read the observation.
    """

    Settings: ClassVar[type[DqnSettings]] = DqnSettings

    def __init__(
        self,
        settings: DqnSettings,
        spec: ReplaySpec,
        value_bounds: tuple[float, float] | None,
        seed: int,
        device: str,
    ) -> None:
        self.settings = settings
        self.updates = 0
        self.skipped_updates = 0
        self._skips_in_a_row = 0
        self._device = torch.device(device)
        self._value_head = _value_head(settings, value_bounds)
        network = build_q_network(settings.network, spec, self._value_head, dueling=settings.dueling, seed=seed)
        self._network = network.to(self._device)
        self._target = copy.deepcopy(self._network).requires_grad_(requires_grad=False)
        self._value_head.to(self._device)
        self._generator = torch.Generator().manual_seed(seed)  # of iqn's fractions; on the CPU, the same on any device
        self._parameters: list[Tensor] = list(self._network.parameters())
        self._target_parameters: list[Tensor] = list(self._target.parameters())
        self._buffers = list(zip(self._target.buffers(), self._network.buffers(), strict=True))
        self._optimizer = torch.optim.Adam(
            self._parameters, lr=settings.learning_rate, eps=settings.adam_epsilon, fused=True
        )

    @staticmethod
    def needs(settings: DqnSettings) -> ReplayNeeds:
        """Uniform windows of ``n_steps``; no extra columns."""
        return ReplayNeeds(sampling="uniform", n_steps=settings.n_steps, batch_size=settings.batch_size)

    @staticmethod
    def policy_factory(settings: DqnSettings, spec: ReplaySpec) -> PolicyFactory:
        """See the function of this name."""
        return policy_factory(settings, spec)

    @property
    def value_head(self) -> ValueHead:
        """The value loss with its resolved support."""
        return self._value_head

    def update(self, windows: Windows, reward: NDArray[np.float32]) -> Update:
        """One gradient step on a drawn batch; see ``Learner.update``.

        A loss or gradient that is not finite changes nothing but the counters.
        """
        observation = self._tensors(windows.observation)
        action = self._tensor(windows.action)
        weight = self._tensor(windows.weight)
        fractions = self._fractions(len(action))
        outputs = self._network(observation, fractions)
        prediction = outputs[torch.arange(len(action), device=self._device), action]
        if self._value_head.takes_distributions:
            values, probabilities = self._target_distribution(windows, reward)
            target = (values * probabilities).sum(dim=1)
            terms = self._value_head.distribution_terms(prediction, fractions, values, probabilities)
        else:
            target = self._target_values(windows, reward)
            terms = self._value_head.terms(prediction, target)
        loss = (weight * terms.loss).mean()
        self._optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        gradient_norm = nn.utils.clip_grad_norm_(self._parameters, self.settings.gradient_norm)
        self.updates += 1
        if self._step(loss, gradient_norm):
            self._network.learn_statistics(observation)
            self._follow()
        if self.updates % self.settings.metrics_period_updates:
            return Update()
        return Update(self._metrics(terms, prediction.detach(), outputs.detach(), target, gradient_norm))

    def weights(self, version: WeightsVersion) -> Weights:
        """A copy of the network's parameters and buffers."""
        return Weights(version, as_arrays(self._network))

    def state_dict(self) -> dict[str, Tensor]:
        """Copies of network, target, Adam's moments, counters and torch's generator, by flat name."""
        state = {f"network.{name}": tensor for name, tensor in self._network.state_dict().items()}
        state |= {f"target.{name}": tensor for name, tensor in self._target.state_dict().items()}
        for name, parameter in self._network.named_parameters():
            for key, value in self._optimizer.state.get(parameter, {}).items():
                state[f"optimizer.{key}.{name}"] = value
        counters = (self.updates, self.skipped_updates, self._skips_in_a_row)
        for name, count in zip(_COUNTERS, counters, strict=True):
            state[f"counters.{name}"] = torch.tensor(count, dtype=torch.int64)
        # An update of ours draws nothing from the global generator; a user's network with dropout does.
        state["rng.torch"] = torch.get_rng_state()
        if self._value_head.form.implicit:
            state["rng.fractions"] = self._generator.get_state()
        return {name: tensor.detach().cpu().clone().contiguous() for name, tensor in state.items()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take a state that ``state_dict`` gave. Raises: CheckpointError where it is of another network."""
        try:
            self._network.load_state_dict(_under("network.", state))
            self._target.load_state_dict(_under("target.", state))
        except RuntimeError as error:
            raise CheckpointError(
                f"the checkpoint's network does not fit these settings: {error}\n"
                "Resume with the settings it was saved under, or start a new run."
            ) from error
        implicit = self._value_head.form.implicit
        names = [*(f"counters.{name}" for name in _COUNTERS), "rng.torch", *["rng.fractions"] * implicit]
        missing = [name for name in names if name not in state]
        if missing:
            raise CheckpointError(f"the checkpoint lacks the learner's {missing}; take an older checkpoint.")
        for name, parameter in self._network.named_parameters():
            moments = {key: state.get(f"optimizer.{key}.{name}") for key in _ADAM_STATE}
            self._optimizer.state[parameter] = {
                key: value.clone().to(torch.float32 if key == "step" else parameter.dtype).to(self._device)
                for key, value in moments.items()
                if value is not None
            }
        counters = (int(state[f"counters.{name}"]) for name in _COUNTERS)
        self.updates, self.skipped_updates, self._skips_in_a_row = counters
        torch.set_rng_state(state["rng.torch"].cpu())
        if implicit:
            self._generator.set_state(state["rng.fractions"].cpu())

    @torch.no_grad()
    def _target_values(self, windows: Windows, reward: NDArray[np.float32]) -> Tensor:
        """[B] n-step targets: the bootstrap action is the network's where double, else the target's.

        With a temperature the bootstrap is the softmax policy's expected value Σₐ π(a) Q(a) (Expected SARSA, van Seijen
        et al. 2009), as it is that policy which acts.
        """
        observation = self._tensors(windows.bootstrap_observation)
        values = self._target.action_values(observation)
        chooser = self._network.action_values(observation) if self.settings.double else values
        temperature = self.settings.exploration.temperature
        if temperature > 0:
            bootstrap = (torch.softmax(chooser / temperature, dim=1) * values).sum(dim=1)
        else:
            bootstrap = values.gather(1, chooser.argmax(dim=1, keepdim=True)).squeeze(1)
        return n_step_return(self._tensor(reward), self._discounts(windows), bootstrap)

    @torch.no_grad()
    def _target_distribution(self, windows: Windows, reward: NDArray[np.float32]) -> tuple[Tensor, Tensor]:
        """Values and probabilities, both [B, M], of the n-step target: the same policy's as in ``_target_values``."""
        observation = self._tensors(windows.bootstrap_observation)
        outputs = self._target(observation, self._fractions(len(reward)))
        chooser = (self._network if self.settings.double else self._target).action_values(observation)
        temperature = self.settings.exploration.temperature
        if temperature > 0:
            policy = torch.softmax(chooser / temperature, dim=1)
        else:
            outputs = outputs[torch.arange(len(outputs), device=self._device), chooser.argmax(dim=1)][:, None]
            policy = torch.ones_like(chooser[:, :1])
        values, probabilities = self._value_head.mixture(outputs, policy)
        return n_step_distribution(self._tensor(reward), self._discounts(windows), values), probabilities

    def _fractions(self, rows: int) -> Tensor | None:
        """[B, N] fractions drawn for ``iqn``; None for the other losses."""
        if not self._value_head.form.implicit:
            return None
        drawn = torch.rand(rows, self._value_head.outputs, generator=self._generator)
        return drawn.to(self._device, non_blocking=True)

    def _discounts(self, windows: Windows) -> Tensor:
        return window_discounts(self._tensor(windows.continues), self._tensor(windows.used), self.settings.discount)

    def _step(self, loss: Tensor, gradient_norm: Tensor) -> bool:
        """Move the parameters, where loss and gradient are finite; whether they were."""
        if bool(torch.isfinite(loss) & torch.isfinite(gradient_norm)):
            self._optimizer.step()
            self._skips_in_a_row = 0
            return True
        self.skipped_updates += 1
        self._skips_in_a_row += 1
        if self._skips_in_a_row == 1:
            log.warning("update %d: loss or gradient is not finite; the batch was skipped", self.updates)
        if self._skips_in_a_row >= _SKIPS_IN_A_ROW:
            raise TrainingError(
                f"update {self.updates}: loss or gradient was not finite {_SKIPS_IN_A_ROW} times in a row. Look "
                "for NaN in the observations or rewards, or lower learner.learning_rate; then resume from the last "
                "checkpoint."
            )
        return False

    @torch.no_grad()
    def _follow(self) -> None:
        """Move the target; its buffers (normalisation) are always the network's, for both must read alike."""
        target = self.settings.target
        if self.updates % target.period_updates == 0:
            torch._foreach_lerp_(self._target_parameters, self._parameters, target.rate)
        for of_target, of_network in self._buffers:
            of_target.copy_(of_network)

    @torch.no_grad()
    def _metrics(
        self, terms: LossTerms, prediction: Tensor, outputs: Tensor, target: Tensor, gradient_norm: Tensor
    ) -> dict[str, float]:
        values = self._value_head.decode(outputs)
        td_error = target - self._value_head.decode(prediction)
        metrics = {
            "loss": terms.loss.mean(),
            "loss_above_floor": (terms.loss - terms.floor).mean(),
            "q_mean": values.mean(),
            "q_max": values.max(),
            "target_mean": target.mean(),
            "td_abs": td_error.abs().mean(),
            "gradient_norm": gradient_norm,
            "clipped_share": terms.clipped.float().mean(),
        }
        numbers = torch.stack(list(metrics.values())).tolist()  # one copy from the device for all
        return dict(zip(metrics, numbers, strict=True)) | {
            "learning_rate": self.settings.learning_rate,
            "skipped_updates": float(self.skipped_updates),
        }

    def _tensor(self, array: NDArray[Any]) -> Tensor:
        return torch.from_numpy(array).to(self._device, non_blocking=True)

    def _tensors(self, arrays: Mapping[str, NDArray[Any]]) -> dict[str, Tensor]:
        return {name: self._tensor(array) for name, array in arrays.items()}


def policy_factory(settings: DqnSettings, spec: ReplaySpec) -> PolicyFactory:
    """A picklable maker of ε-greedy policies that read a ``DqnLearner``'s weights.

    Args:
        settings: exploration and network.
        spec: row layout.
    """
    network = encoder_settings(settings.network, spec.observation)
    if acts_in_numpy(network, spec.observation):
        leaves = tuple(flat_leaf(leaf) for leaf in spec.observation)
        return NumpyQPolicyFactory(settings.exploration, leaves, spec.actions)
    form = head_form(settings.value_loss, settings.support.bins, _quantiles(settings))
    return TorchQPolicyFactory(settings.exploration, network, spec, form, settings.dueling)


def _value_head(settings: DqnSettings, value_bounds: tuple[float, float] | None) -> ValueHead:
    delta = settings.huber_delta or _DEFAULT_HUBER_DELTA
    if settings.value_loss not in BINNED_LOSSES:
        return ValueHead(settings.value_loss, None, 0.0, delta, _quantiles(settings))
    support = resolve_support(settings.support, value_bounds)
    return ValueHead(settings.value_loss, support, resolve_sigma(settings.support, support), delta)


def _quantiles(settings: DqnSettings) -> int:
    return _DEFAULT_QUANTILES if settings.quantiles is None else settings.quantiles


def _under(prefix: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}
