"""DQN with its usual companions: double, dueling, n-step, distributed ε ladder (the Ape-X shape), value loss by name.

Papers: Mnih et al. 2015 (DQN); van Hasselt et al. 2016, arXiv 1509.06461 (double); Wang et al. 2016, arXiv 1511.06581
(dueling); Horgan et al. 2018, arXiv 1803.00933 (Ape-X); Farebrother et al. 2024, arXiv 2403.03950 (HL-Gauss);
Schaul et al. 2016, arXiv 1511.05952 (prioritized); Fortunato et al. 2018, arXiv 1706.10295 (noisy); all together with
C51: Hessel et al. 2018, arXiv 1710.02298 (Rainbow).

Differences from the papers: LayerNorm in the default networks; the target network follows by a moving average each
update (``target.rate`` 1 with ``target.period_updates`` gives the hard copy); window tails give shorter returns instead
of being dropped; truncated episodes bootstrap from their last observation; the reward is the mixed one of the batch, so
late labels count; the head starts at value 0; a gradient longer than ``gradient_norm`` is shortened;
``exploration.temperature`` makes acting and bootstrap those of a softmax policy. Of priorities and noise:
``q_targets.py``, ``networks/noisy.py``, ``platform/replay/samplers/prioritized_sampler.py``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, ClassVar, Literal, cast

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor

from onibi.learners.acceleration import AccelerationSettings
from onibi.learners.component_heads import (
    SCALAR_LOSSES,
    ComponentHeadSettings,
    ComponentValueHead,
    component_form,
)
from onibi.learners.distributional_losses import n_step_distribution
from onibi.learners.dqn_policy import q_policy_factory
from onibi.learners.exploration import ExplorationSettings
from onibi.learners.learner import ReplayNeeds, Update
from onibi.learners.loss_program import Inputs, LossProgram, changes_any_of
from onibi.learners.networks.build import NETWORKS, QNetwork, build_q_network
from onibi.learners.networks.noisy import NoisySettings
from onibi.learners.numpy_gradients.q_gradient import QGradient
from onibi.learners.numpy_gradients.q_network import is_small_q_network
from onibi.learners.q_learner import Learnt, QLearner, finite_or_none
from onibi.learners.q_targets import bootstrap_distribution, bootstrap_value, replay_priorities
from onibi.learners.returns import n_step_return, window_discounts
from onibi.learners.support import SupportSettings
from onibi.learners.target_network import TargetFollower, TargetSettings
from onibi.learners.update_draws import UpdateDraws
from onibi.learners.value_losses import ValueLossName, build_value_head, check_loss_options, chosen_head_form
from onibi.platform.config import Settings, selected
from onibi.platform.number_ranges import Count, NotNegative, Positive, Probability
from onibi.platform.policy import PolicyFactory
from onibi.platform.replay.samplers.draws import SAMPLING, PrioritySettings, Sampling, WindowDraws
from onibi.platform.replay.samplers.uniform_sampler import UniformSettings
from onibi.platform.replay.samplers.windows import Windows
from onibi.platform.spec import ACTION_MASK, ReplaySpec

_COMPUTED_BY_HAND = ("_losses", "_target_values", "_chooser", "_features", "_outputs", "_action_values", "_discounts")


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
    learning_rate: NotNegative = 5e-4
    adam_epsilon: Positive = 1.5e-4
    gradient_norm: Positive = 10.0  # gradients of a larger norm are scaled down to it
    batch_size: Count = 128
    priorities: PrioritySettings | None = None  # draws by how much there is to learn; null: as sampling says
    sampling: Settings = selected(SAMPLING, "uniform")  # which windows are drawn: newest_first, trajectory_weighted
    # One head for each term of the reward, by its name (a product's: those joined by "-"); null: one for their sum.
    heads: dict[str, ComponentHeadSettings] | None = None
    target: TargetSettings = field(default_factory=TargetSettings)
    noisy: NoisySettings | None = (
        None  # explores by noise on the head's weights, best with exploration.base 0; null: none
    )
    exploration: ExplorationSettings = field(default_factory=ExplorationSettings)
    network: Settings = selected(NETWORKS, "auto")
    publish_period_updates: Count = 10
    metrics_period_updates: Count = 50
    acceleration: AccelerationSettings = field(default_factory=AccelerationSettings)

    def __post_init__(self) -> None:
        """Refuse options that the chosen value loss would not read."""
        check_loss_options(self.value_loss, self.support, self.huber_delta, self.quantiles)
        if self.priorities is not None and not isinstance(self.sampling, UniformSettings):
            raise ValueError(
                "sampling is given beside priorities, which choose windows themselves: leave one out, or set "
                "priorities to null"
            )
        if self.heads is not None and (not self.heads or self.value_loss not in SCALAR_LOSSES):
            raise ValueError(
                f"heads has {len(self.heads)} names and value_loss is {self.value_loss}; heads need one name at least "
                "and value_loss mse or huber: set one of those, or heads to null"
            )


class DqnLearner(QLearner[QNetwork]):
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
        head = build_value_head(
            settings.value_loss, settings.support, settings.huber_delta, settings.quantiles, value_bounds
        )
        self._components: ComponentValueHead | None = None
        if settings.heads is not None:
            head = self._components = ComponentValueHead(
                settings.value_loss, head.huber_delta, settings.heads, settings.discount
            )
        network = build_q_network(
            settings.network, spec, head, dueling=settings.dueling, seed=seed, noisy=settings.noisy
        )
        self._draws = UpdateDraws(head.form, network.noise_size, seed, torch.device(device))
        super().__init__(settings, network, head, self._draws, device, has_target=True, steps_per_batch=1)
        self._follower = TargetFollower(self._target, self._network, settings.target)
        self._program = LossProgram(self._losses, self._gradient, settings.acceleration, self._by_hand())

    @staticmethod
    def needs(settings: DqnSettings) -> ReplayNeeds:
        """Windows of ``n_steps``, uniform or prioritized; no extra columns."""
        draws = WindowDraws(
            n_steps=settings.n_steps,
            batch_size=settings.batch_size,
            priorities=settings.priorities,
            sampling=cast(Sampling, settings.sampling),
        )
        return ReplayNeeds(draws=draws)

    @staticmethod
    def policy_factory(settings: DqnSettings, spec: ReplaySpec) -> PolicyFactory:
        """See the function of this name."""
        return policy_factory(settings, spec)

    @property
    def reads_terms(self) -> bool:
        """Whether ``update`` wants the terms of the reward apart."""
        return self._components is not None

    def update(
        self,
        windows: Windows,
        reward: NDArray[np.float32],
        terms: Mapping[str, NDArray[np.float32]] | None = None,
    ) -> Update:
        """One gradient step on a drawn batch; see ``Learner.update``.

        A loss or gradient that is not finite changes nothing but the counters. ``terms`` [B, n] each, which add up to
        ``reward``, are read where there is a head for each.
        """
        inputs = self._inputs(windows, reward, terms)
        result, learnt = self._program.step(inputs)
        if not result.skipped:
            self._network.learn_statistics(inputs["observation"])
            self._gradient.share_buffers(self._network)
        self._follower.follow(self.updates, moved=result.applied)
        priorities = None if self.settings.priorities is None else self._priorities(learnt)
        if not result.completed or self.updates % self.settings.metrics_period_updates:
            return Update(priorities=priorities)
        figures = self._figures(learnt, learnt.target, result.gradient_norm, others=self._others(learnt))
        return Update(figures, priorities)

    def _inputs(
        self, windows: Windows, reward: NDArray[np.float32], terms: Mapping[str, NDArray[np.float32]] | None = None
    ) -> dict[str, dict[str, Tensor]]:
        """All that the loss reads, on the device. What is random is drawn here: fractions of ``iqn``, noise."""
        batch = {"reward": self.copies.tensor(reward)}
        if self._components is not None:
            assert terms is not None, "LearnerLoop hands the terms in where reads_terms says so"
            stacked = np.stack([terms[name] for name in self._components.names], axis=-1)
            batch["terms"] = self.copies.tensor(stacked)
        batch |= self._tensors({name: getattr(windows, name) for name in ("action", "weight", "continues", "used")})
        batch |= self._draws.draw(len(reward))
        return {
            "batch": batch,
            "observation": self._tensors(windows.observation),
            "bootstrap": self._tensors(windows.bootstrap_observation),
        }

    def _by_hand(self) -> QGradient | None:
        """The gradient in NumPy where it can be had: a small network, a scalar loss, plain steps on the CPU."""
        settings, head = self.settings, self._value_head
        if head.takes_distributions or self._components is not None or not settings.acceleration.is_plain(self._device):
            return None
        if changes_any_of(self, DqnLearner, _COMPUTED_BY_HAND):
            return None
        if not is_small_q_network(self._network):
            return None
        self._gradient.lay_flat()
        return QGradient(
            self._network,
            self._target,
            head,
            discount=settings.discount,
            double=settings.double,
            temperature=settings.exploration.temperature,
        )

    def _losses(self, inputs: Inputs) -> tuple[Tensor, Learnt]:
        """The loss [] of a batch, and what it was made of."""
        batch = inputs["batch"]
        fractions = batch.get("fractions")
        outputs = self._outputs(self._network, inputs["observation"], fractions, batch.get("noise"))
        prediction = outputs[torch.arange(len(outputs), device=self._device), batch["action"]]
        if self._value_head.takes_distributions:
            values, probabilities = self._target_distribution(inputs)
            target = (values * probabilities).sum(dim=1)
            terms = self._value_head.distribution_terms(prediction, fractions, values, probabilities)
        elif self._components is not None:
            targets = self._component_targets(inputs, self._components)
            target = targets.sum(dim=1)
            terms = self._components.component_terms(prediction, targets)
        else:
            target = self._target_values(inputs)
            terms = self._value_head.terms(prediction, target)
        loss = (batch["weight"] * terms.loss).mean()
        return loss, Learnt(terms.loss, terms.floor, terms.clipped, prediction, outputs, target)

    @torch.no_grad()
    def _target_values(self, inputs: Inputs) -> Tensor:
        """[B] n-step targets: the bootstrap action is the network's where double, else the target's."""
        observation, batch = inputs["bootstrap"], inputs["batch"]
        values = self._action_values(self._target, observation, batch.get("target_noise"))
        chooser = self._chooser(inputs) if self.settings.double else values
        temperature = self.settings.exploration.temperature
        bootstrap = bootstrap_value(values, chooser, temperature, observation.get(ACTION_MASK))
        return n_step_return(batch["reward"], self._discounts(inputs), bootstrap)

    @torch.no_grad()
    def _component_targets(self, inputs: Inputs, head: ComponentValueHead) -> Tensor:
        """[B, C] n-step targets of all heads, each with its own discount; one action for all."""
        observation, batch = inputs["bootstrap"], inputs["batch"]
        outputs = self._outputs(self._target, observation, None, batch.get("target_noise"))
        chooser = self._chooser(inputs) if self.settings.double else head.decode(outputs)
        temperature, mask = self.settings.exploration.temperature, observation.get(ACTION_MASK)
        return head.targets(batch["terms"], batch["continues"], batch["used"], outputs, chooser, temperature, mask)

    @torch.no_grad()
    def _target_distribution(self, inputs: Inputs) -> tuple[Tensor, Tensor]:
        """Values and probabilities, both [B, M], of the n-step target: the same policy's as in ``_target_values``."""
        observation, batch = inputs["bootstrap"], inputs["batch"]
        noise = batch.get("target_noise")
        outputs = self._outputs(self._target, observation, batch.get("target_fractions"), noise)
        double = self.settings.double
        chooser = self._chooser(inputs) if double else self._action_values(self._target, observation, noise)
        temperature, mask = self.settings.exploration.temperature, observation.get(ACTION_MASK)
        values, probabilities = bootstrap_distribution(self._value_head, outputs, chooser, temperature, mask)
        return n_step_distribution(batch["reward"], self._discounts(inputs), values), probabilities

    def _chooser(self, inputs: Inputs) -> Tensor:
        """[B, A] the network's values of the bootstrap observation."""
        return self._action_values(self._network, inputs["bootstrap"], inputs["batch"].get("chooser_noise"))

    def _features(self, network: QNetwork, observation: Mapping[str, Tensor]) -> Tensor:
        """[B, F] float32. Where bf16 is chosen encoders run in it; heads, values and losses never do."""
        with self._gradient.autocast():
            features: Tensor = network.encoder(observation)
        return features.float()

    def _outputs(
        self, network: QNetwork, observation: Mapping[str, Tensor], fractions: Tensor | None, noise: Tensor | None
    ) -> Tensor:
        """[B, A, K]"""
        return network.outputs(self._features(network, observation), fractions, noise)

    def _action_values(self, network: QNetwork, observation: Mapping[str, Tensor], noise: Tensor | None) -> Tensor:
        """[B, A]"""
        return network.head.action_values(self._features(network, observation), network.centres, noise)

    def _discounts(self, inputs: Inputs) -> Tensor:
        return window_discounts(inputs["batch"]["continues"], inputs["batch"]["used"], self.settings.discount)

    def _priorities(self, learnt: Learnt) -> NDArray[np.float32] | None:
        """[B] for the sampler; see ``finite_or_none``."""
        told = replay_priorities(self._value_head, learnt.loss, learnt.floor, learnt.prediction, learnt.target)
        return finite_or_none(told.cpu().numpy())

    def _others(self, learnt: Learnt) -> dict[str, Tensor]:
        """Figures [] that not every network has."""
        others: dict[str, Tensor] = {}
        if self._components is not None:
            each = self._components.components(learnt.outputs.detach()).mean(dim=(0, 1))
            others |= {f"q_mean/{name}": each[at] for at, name in enumerate(self._components.names)}
        sigma = self._network.head.mean_sigma()
        return others if sigma is None else {**others, "noise_sigma": sigma}


def policy_factory(settings: DqnSettings, spec: ReplaySpec) -> PolicyFactory:
    """A picklable maker of ε-greedy policies that read a ``DqnLearner``'s weights.

    Args:
        settings: exploration, network and form of the head.
        spec: row layout.
    """
    form = chosen_head_form(settings.value_loss, settings.support, settings.quantiles)
    if settings.heads is not None:
        form = component_form(form, len(settings.heads))
    return q_policy_factory(
        settings.exploration, settings.network, form, spec, dueling=settings.dueling, noisy=settings.noisy
    )
