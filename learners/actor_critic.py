"""What actor-critic learners share: settings, slabs as tensors, the network with its step, weights and state."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor

from onibi.learners.acceleration import AccelerationSettings
from onibi.learners.action_distributions import ActionDistribution
from onibi.learners.actor_critic_policy import (
    LOG_PROB_COLUMN,
    EvaluationActions,
    NumpyActorCriticFactory,
    TorchActorCriticFactory,
)
from onibi.learners.actor_critic_targets import SlabSteps, Targets
from onibi.learners.device_copies import DeviceCopies
from onibi.learners.gradient_step import GradientStep, StepResult
from onibi.learners.learner import ReplayNeeds
from onibi.learners.learner_state import check_bins
from onibi.learners.loss_program import Inputs
from onibi.learners.networks.actor_critic import ActorCriticNetwork, ActorForm, build_actor_critic
from onibi.learners.networks.build import NETWORKS, as_arrays, encoder_settings, numpy_form
from onibi.learners.networks.core_settings import STATE_COLUMN, CoreSettings, state_column
from onibi.learners.policy_losses import masked_mean
from onibi.learners.reward_normalizer import RewardNormalizer
from onibi.learners.support import SupportSettings
from onibi.learners.value_losses import BINNED_LOSSES, ScalarLossName, build_value_head, check_loss_options
from onibi.platform.config import Settings, selected
from onibi.platform.errors import CheckpointError, ConfigError
from onibi.platform.number_ranges import Count, NotNegative, Positive, Probability
from onibi.platform.policy import PolicyFactory, Weights, WeightsVersion
from onibi.platform.replay.samplers.draws import SlabDraws
from onibi.platform.replay.samplers.fifo_sampler import Slab
from onibi.platform.spec import ArraySpec, ReplaySpec

OLD_VALUES_COLUMN = "old_values"
"""[B, T] among a slab's rows: V(x) before the slab's first step."""
_LANE_RETURNS = "reward_normalizer.lane_returns"
_CENTRES = "value_head.centres"


@dataclass(frozen=True, kw_only=True)
class ActorCriticSettings(Settings):
    """What ``impala`` and ``appo`` have in common."""

    kind: Literal["impala", "appo"]
    discount: Probability = 0.99  # γ per step
    rows: Count = 32  # T: consecutive rows of a lane in a slab; with memory also the steps of back-propagation
    batch_lanes: Count = 32  # B: lanes of a slab; B × T rows make a batch
    trace_decay: Probability = 1.0  # λ
    rho_bound: Positive = 1.0  # ρ̄ of V-trace
    trace_bound: Positive = 1.0  # c̄ of V-trace
    value_loss: ScalarLossName = "hl_gauss"
    support: SupportSettings = field(default_factory=SupportSettings)  # hl_gauss and two_hot
    huber_delta: Positive | None = None  # value units; huber alone; 1 where unset
    value_coefficient: NotNegative = 0.5
    entropy_coefficient: NotNegative = 0.01
    learning_rate: NotNegative = 6e-4
    adam_epsilon: Positive = 1e-5
    gradient_norm: Positive = 1.0  # gradients of a larger norm are scaled down to it
    network: Settings = selected(NETWORKS, "auto")
    shared_encoder: bool = True  # whether the value reads the policy's features; False: an encoder of its own
    core: CoreSettings | None = None  # memory between encoder and heads
    initial_log_std: Annotated[float, Field(ge=-5, le=2)] = 0.0  # log σ to start with; continuous actions
    normalize_reward: bool = False  # divide by the running deviation of the discounted return
    evaluation_actions: EvaluationActions = "mode"  # the likeliest action, or one drawn as in training
    acceleration: AccelerationSettings = field(default_factory=AccelerationSettings)
    publish_period_updates: Count = 1
    metrics_period_updates: Count = 20

    def __post_init__(self) -> None:
        """Refuse options that nothing would read."""
        check_loss_options(self.value_loss, self.support, self.huber_delta, None)
        if self.core is not None and not self.shared_encoder:
            raise ValueError(
                "core is a memory that policy and value share: set shared_encoder to true, or core to null"
            )
        if self.normalize_reward and self.value_loss in BINNED_LOSSES and self.support.low is None:
            raise ValueError(
                f"normalize_reward changes the size of returns, so no support of {self.value_loss} follows from the "
                "reward's bounds: set support.low and support.high in units of the return's deviation (-10 and 10)"
            )
        if self.acceleration.compile == "graphs" and self.core is not None:
            raise ValueError("acceleration.compile is graphs, which cannot hold a core: set none or default")
        self.acceleration.refuse_gather_threads()


@dataclass(frozen=True)
class Evaluation:
    """What the network says of a slab; gradients flow.

    Args:
        steps: what the rows brought.
        policy: over the actions of the rows [B, T].
        log_probs: [B, T] float32 log π(a|x) of the actions taken; unspecified in final rows.
        log_ratios: [B, T] float32 log π(a|x) − log μ(a|x); 0 in final rows.
        outputs: [B, T + 1, K] float32 of the value head.
        values: [B, T + 1] float32 V(x) without gradient.
    """

    steps: SlabSteps
    policy: ActionDistribution
    log_probs: Tensor
    log_ratios: Tensor
    outputs: Tensor
    values: Tensor


class Learnt(NamedTuple):
    """What a slab's loss was made of.

    Args:
        policy, value, entropy: [B, T] float32, the terms of the loss before their coefficients.
        floor: [B, T] float32, what ``value`` cannot go below.
        clipped: [B, T] bool, targets outside of the support.
        values: [B, T] float32 V(x).
        targets: [B, T] float32.
        cut: [B, T] float32, 1 where V-trace cut the ratio.
        log_ratios: [B, T] float32.
        used: [B, T] float32.
    """

    policy: Tensor
    value: Tensor
    entropy: Tensor
    floor: Tensor
    clipped: Tensor
    values: Tensor
    targets: Tensor
    cut: Tensor
    log_ratios: Tensor
    used: Tensor


class ActorCritic:
    """Network, value head, reward scale and gradient step.

    Args:
        settings: all choices.
        spec: row layout of the run.
        value_bounds: least and largest discounted return, read where the support is auto.
        seed: of the initial parameters.
        device: "cpu", "cuda", "cuda:1".
        value_clip: how far from its old value a value is paid for moving, in value units; read with old values alone.
        steps_per_batch: gradient steps that an update makes.
    Raises: ConfigError where no support can be placed or a setting would not act, SpecError where the network cannot
        read the observation.
    """

    def __init__(
        self,
        settings: ActorCriticSettings,
        spec: ReplaySpec,
        value_bounds: tuple[float, float] | None,
        seed: int,
        device: str,
        value_clip: float | None = None,
        *,
        steps_per_batch: int,
    ) -> None:
        if spec.action is None and settings.initial_log_std != type(settings).initial_log_std:
            raise ConfigError(
                f"learner.initial_log_std is {settings.initial_log_std}, which continuous actions alone read; this "
                f"environment has {spec.actions} discrete ones. Leave it out."
            )
        self.settings = settings
        self.value_clip = value_clip
        self.device = torch.device(device)
        self.copies = DeviceCopies(self.device)
        head = build_value_head(settings.value_loss, settings.support, settings.huber_delta, None, value_bounds)
        self.value_head = head.to(self.device)
        self._network = build_actor_critic(
            actor_form(settings, spec), spec, self.value_head, shared_encoder=settings.shared_encoder, seed=seed
        ).to(self.device)
        self._rewards = RewardNormalizer(settings.discount) if settings.normalize_reward else None
        self.gradient = GradientStep(
            self._network,
            learning_rate=settings.learning_rate,
            adam_epsilon=settings.adam_epsilon,
            gradient_norm=settings.gradient_norm,
            acceleration=settings.acceleration,
            steps_per_batch=steps_per_batch,
        )

    @property
    def updates(self) -> int:
        """Gradient steps made, skipped ones included."""
        return self.gradient.updates

    @property
    def network(self) -> ActorCriticNetwork:
        """Actor and critic."""
        return self._network

    def inputs(self, slab: Slab, reward: NDArray[np.float32]) -> Inputs:
        """A slab with its mixed reward [B, T], on the device; the reward is scaled where that was asked for."""
        if self._rewards is not None:
            self._rewards.learn(reward, slab.used, slab.begins, slab.lane)
            self.gradient.share_buffers(self._rewards)
            reward = self._rewards.scale(reward)
        rows = {
            "action": slab.action,
            "reward": reward,
            "terminated": slab.terminated,
            "truncated": slab.truncated,
            "used": slab.used,
            "begins": slab.begins,
            LOG_PROB_COLUMN: slab.extra[LOG_PROB_COLUMN],
        }
        if STATE_COLUMN in slab.extra:
            rows[STATE_COLUMN] = slab.extra[STATE_COLUMN]
        return {"observation": self._tensors(slab.observation), "rows": self._tensors(rows)}

    def evaluate(self, inputs: Inputs) -> Evaluation:
        """One pass over all rows of a slab."""
        rows, states = inputs["rows"], inputs["rows"].get(STATE_COLUMN)
        begins = None if states is None else rows["begins"]
        outputs = self._network(inputs["observation"], states, begins, self.gradient.autocast())
        steps = SlabSteps(rows["reward"], rows["terminated"], rows["truncated"], rows["used"].float())
        log_probs = outputs.policy.log_prob(rows["action"])
        log_ratios = (log_probs - rows[LOG_PROB_COLUMN]) * steps.used
        values = self.value_head.decode(outputs.values.detach())
        return Evaluation(steps, outputs.policy, log_probs, log_ratios, outputs.values, values)

    def loss(
        self, found: Evaluation, targets: Targets, policy_terms: Tensor, old_values: Tensor | None
    ) -> tuple[Tensor, Learnt]:
        """Policy loss + c_v · value loss − c_e · entropy, means over the steps, and what it was made of.

        Args:
            found: of the slab.
            targets: of the value.
            policy_terms: [B, T] float32, the policy's loss of each row.
            old_values: [B, T] float32; the value pays for no more than ``value_clip`` away from them. None: no clip.
        """
        settings, used = self.settings, found.steps.used
        shape, target = targets.values.shape, targets.values.flatten()
        prediction = found.outputs[:, :-1].flatten(0, 1)
        terms = self.value_head.terms(prediction, target)
        losses = terms.loss
        if old_values is not None and self.value_clip is not None:
            old = old_values.reshape(-1, 1)
            held = old + (prediction - old).clamp(-self.value_clip, self.value_clip)
            losses = torch.maximum(losses, self.value_head.terms(held, target).loss)
        value_terms, entropy = losses.view(shape), found.policy.entropy()
        each = policy_terms + settings.value_coefficient * value_terms - settings.entropy_coefficient * entropy
        return masked_mean(each, used), Learnt(
            policy=policy_terms,
            value=value_terms,
            entropy=entropy,
            floor=terms.floor.view(shape),
            clipped=terms.clipped.view(shape),
            values=found.values[:, :-1],
            targets=targets.values,
            cut=targets.cut,
            log_ratios=found.log_ratios,
            used=used,
        )

    @torch.no_grad()
    def metrics(self, learnt: Learnt, result: StepResult) -> dict[str, float]:
        """Figures of one gradient step."""
        used, log_ratios = learnt.used, learnt.log_ratios
        target_mean = masked_mean(learnt.targets, used)
        unexplained = learnt.targets - learnt.values
        spread = masked_mean((learnt.targets - target_mean) ** 2, used)
        left = masked_mean((unexplained - masked_mean(unexplained, used)) ** 2, used)
        figures = {
            "policy_loss": masked_mean(learnt.policy, used),
            "value_loss": masked_mean(learnt.value, used),
            "value_loss_above_floor": masked_mean(learnt.value - learnt.floor, used),
            "entropy": masked_mean(learnt.entropy, used),
            "value_mean": masked_mean(learnt.values, used),
            "target_mean": target_mean,
            "td_abs": masked_mean(unexplained.abs(), used),
            "explained_variance": 1.0 - left / spread.clamp(min=1e-8),
            "kl_from_behaviour": masked_mean(log_ratios.exp() - 1.0 - log_ratios, used),  # of μ from π, from samples
            "ratio_cut_share": masked_mean(learnt.cut, used),
            "clipped_share": masked_mean(learnt.clipped.float(), used),
            "gradient_norm": result.gradient_norm,
        }
        numbers = torch.stack([figure.float() for figure in figures.values()]).tolist()  # one copy from the device
        return dict(zip(figures, numbers, strict=True)) | {
            "learning_rate": self.settings.learning_rate,
            "reward_deviation": 1.0 if self._rewards is None else self._rewards.deviation,
            "skipped_updates": float(self.gradient.skipped_updates),
        }

    def learn_statistics(self, inputs: Inputs) -> None:
        """Merge a slab's observations into the encoders' running statistics: each row once."""
        rows = {name: leaf[:, :-1].flatten(0, 1) for name, leaf in inputs["observation"].items()}
        self._network.learn_statistics(rows)
        self.gradient.share_buffers(self._network)

    def weights(self, version: WeightsVersion) -> Weights:
        """A copy of the actor's parameters and buffers, and what rewards are divided by at this version."""
        arrays = as_arrays(self._network.actor)
        if self._rewards is not None:
            arrays["reward_deviation"] = np.array(self._rewards.deviation)
        return Weights(version, arrays)

    def state_dict(self) -> dict[str, Tensor]:
        """Copies of network, Adam's moments, reward scale, counters and torch's generator, by flat name."""
        state = {f"network.{name}": tensor for name, tensor in self._network.state_dict().items()}
        state |= self.gradient.state_dict()
        if self._rewards is not None:
            state |= {f"reward_normalizer.{name}": tensor for name, tensor in self._rewards.state_dict().items()}
            state[_LANE_RETURNS] = self._rewards.lane_returns
        if self.value_head.centres is not None:
            state[_CENTRES] = self.value_head.centres
        # An update of ours draws nothing from the global generator; a user's network with dropout does.
        state["rng.torch"] = torch.get_rng_state()
        return {name: tensor.detach().cpu().clone().contiguous() for name, tensor in state.items()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take a state that ``state_dict`` gave. Raises: CheckpointError where it is of other settings."""
        check_bins(state.get(_CENTRES), self.value_head.centres)
        try:
            self._network.load_state_dict(_under("network.", state))
            if self._rewards is not None:
                rewards = _under("reward_normalizer.", state)
                self._rewards.lane_returns = rewards.pop(_LANE_RETURNS.partition(".")[2])
                self._rewards.load_state_dict(rewards)
        except (RuntimeError, KeyError) as error:
            raise CheckpointError(
                f"the checkpoint's network or reward scale does not fit these settings: {error}\n"
                "Resume with the settings it was saved under, or start a new run."
            ) from error
        if "rng.torch" not in state:
            raise CheckpointError("the checkpoint lacks the learner's rng.torch; take an older checkpoint.")
        self.gradient.load_state_dict(state)
        torch.set_rng_state(state["rng.torch"].cpu())

    def _tensors(self, arrays: Mapping[str, NDArray[Any]]) -> dict[str, Tensor]:
        return {name: self.copies.tensor(array) for name, array in arrays.items()}


def lanes_of(inputs: Inputs, index: Tensor) -> Inputs:
    """Some lanes of a slab, by their places [b] int64; copied."""
    return {group: {name: each[index] for name, each in members.items()} for group, members in inputs.items()}


def actor_critic_needs(settings: ActorCriticSettings) -> ReplayNeeds:
    """Slabs, each row once, with log-probabilities and, where there is a memory, its states."""
    extra = [ArraySpec(name=LOG_PROB_COLUMN, dtype="float32", unit="nats")]
    if settings.core is not None:
        extra.append(state_column(settings.core))
    return ReplayNeeds(draws=SlabDraws(rows=settings.rows, batch_lanes=settings.batch_lanes), extra=tuple(extra))


def actor_form(settings: ActorCriticSettings, spec: ReplaySpec) -> ActorForm:
    """What the actor is built of, on either side."""
    network = encoder_settings(settings.network, spec.observation)
    return ActorForm(network=network, core=settings.core, initial_log_std=settings.initial_log_std)


def actor_critic_policy_factory(settings: ActorCriticSettings, spec: ReplaySpec) -> PolicyFactory:
    """A picklable maker of policies that read an ``ActorCritic``'s weights."""
    form = actor_form(settings, spec)
    twin = numpy_form(form.network, spec.observation)
    if twin is not None:
        return NumpyActorCriticFactory(twin, settings.core, spec, settings.evaluation_actions)
    return TorchActorCriticFactory(form, spec, settings.evaluation_actions)


def _under(prefix: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}
