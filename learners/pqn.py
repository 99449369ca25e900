"""PQN: Q-learning on parallel environments with LayerNorm and λ-returns, without target network and without replay.

Gallici et al. 2024, "Simplifying Deep Temporal Difference Learning", arXiv 2407.04811. Slabs of T rows of B lanes are
learnt from once each: their λ-returns

    G_t = r_t + γ_t[(1 − λ) max_a Q(o_{t+1}, a) + λ G_{t+1}]      (Peng's Q(λ): not cut where a random action was taken)

are computed once by the network as it is, then several epochs of minibatches regress on them.

Differences from the paper: Adam instead of RAdam; a ladder of ε across lanes besides an ε that falls; the reward is the
mixed one of the slab, so late labels count; other value losses than ``mse`` (classification learns the same returns);
truncated episodes bootstrap from their last observation; the head starts at value 0; actors act by weights that may be
some slabs old, as the ring is a queue between them and the learner; a network without LayerNorm is not refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from onibi.learners.acceleration import AccelerationSettings
from onibi.learners.dqn_policy import q_policy_factory
from onibi.learners.exploration import ExplorationSettings
from onibi.learners.learner import ReplayNeeds, Update
from onibi.learners.learner_state import SavedGenerators
from onibi.learners.loss_program import Inputs, LossProgram
from onibi.learners.networks.build import NETWORKS, QNetwork, build_q_network
from onibi.learners.q_learner import QLearner
from onibi.learners.q_targets import bootstrap_value
from onibi.learners.returns import lambda_returns, sequence_discounts, sequence_traces
from onibi.learners.support import SupportSettings
from onibi.learners.value_losses import (
    LossTerms,
    ValueLossName,
    build_value_head,
    check_loss_options,
    check_scalar_loss,
    chosen_head_form,
)
from onibi.platform.config import Settings, selected
from onibi.platform.number_ranges import Count, NotNegative, Positive, Probability
from onibi.platform.policy import PolicyFactory
from onibi.platform.replay.samplers.draws import Batch, SlabDraws
from onibi.platform.replay.samplers.fifo_sampler import Slab
from onibi.platform.spec import ACTION_MASK, ReplaySpec

_ORDER = "rng.order"


@dataclass(frozen=True, kw_only=True)
class PqnSettings(Settings):
    """What can be chosen about a PQN learner."""

    kind: Literal["pqn"] = "pqn"
    discount: Probability = 0.99  # γ per step
    trace_decay: Probability = 0.65  # λ
    rows: Count = 32  # T of a slab
    batch_lanes: Count = 16  # B of a slab; at most the lanes of the run
    epochs: Count = 2  # how often each row is learnt from
    minibatches: Count = 4  # gradient steps of an epoch; rows x batch_lanes is a multiple of it
    value_loss: ValueLossName = "hl_gauss"  # of the scalar ones
    support: SupportSettings = field(default_factory=SupportSettings)  # hl_gauss and two_hot
    huber_delta: Positive | None = None  # value units; huber; 1 where unset
    learning_rate: NotNegative = 5e-4
    adam_epsilon: Positive = 1e-5
    gradient_norm: Positive = 10.0  # gradients of a larger norm are scaled down to it
    exploration: ExplorationSettings = field(default_factory=ExplorationSettings)
    network: Settings = selected(
        NETWORKS, "auto"
    )  # with layer_norm true, their default: it stands in for a target network
    publish_period_updates: Count = 1  # at most once a slab
    metrics_period_updates: Count = 50
    acceleration: AccelerationSettings = field(default_factory=AccelerationSettings)

    def __post_init__(self) -> None:
        """Refuse losses on distributions, options that would not be read, and minibatches of unequal size."""
        check_scalar_loss(self.value_loss, "pqn")
        check_loss_options(self.value_loss, self.support, self.huber_delta, None)
        self.acceleration.refuse_gather_threads()
        self.acceleration.refuse_accumulation(self.epochs * self.minibatches)
        if self.rows * self.batch_lanes % self.minibatches:
            raise ValueError(
                f"minibatches is {self.minibatches}, but {self.rows} rows x {self.batch_lanes} lanes do not part into "
                "so many equal ones: choose a divisor"
            )


class Learnt(NamedTuple):
    """What a minibatch's loss was made of: [M] each but ``outputs`` [M, A, K] and ``prediction`` [M, K]."""

    loss: Tensor
    floor: Tensor
    clipped: Tensor
    prediction: Tensor
    outputs: Tensor


class PqnLearner(QLearner[QNetwork]):
    """One network and its optimizer.

    Args:
        settings: all choices.
        spec: row layout of the run.
        value_bounds: least and largest discounted return, from the reward mixer; read where the support is auto.
        seed: of the initial parameters and the order of the rows.
        device: "cpu", "cuda", "cuda:1".
    Raises: ConfigError where no support can be placed, SpecError where the network cannot read the observation.
    """

    Settings: ClassVar[type[PqnSettings]] = PqnSettings

    def __init__(
        self,
        settings: PqnSettings,
        spec: ReplaySpec,
        value_bounds: tuple[float, float] | None,
        seed: int,
        device: str,
    ) -> None:
        self.settings = settings
        head = build_value_head(settings.value_loss, settings.support, settings.huber_delta, None, value_bounds)
        network = build_q_network(settings.network, spec, head, dueling=False, seed=seed)
        super().__init__(
            settings,
            network,
            head,
            SavedGenerators({_ORDER: seed}),
            device,
            has_target=False,
            steps_per_batch=settings.epochs * settings.minibatches,
        )
        self._program = LossProgram(self._losses, self._gradient, settings.acceleration)

    @staticmethod
    def needs(settings: PqnSettings) -> ReplayNeeds:
        """Slabs, each row once; no extra columns."""
        return ReplayNeeds(draws=SlabDraws(rows=settings.rows, batch_lanes=settings.batch_lanes))

    @staticmethod
    def policy_factory(settings: PqnSettings, spec: ReplaySpec) -> PolicyFactory:
        """A picklable maker of ε-greedy policies that read this learner's weights."""
        form = chosen_head_form(settings.value_loss, settings.support, None)
        return q_policy_factory(settings.exploration, settings.network, form, spec, dueling=False, noisy=None)

    def update(self, batch: Batch, reward: NDArray[np.float32]) -> Update:
        """``epochs`` × ``minibatches`` gradient steps on a slab; see ``Learner.update``."""
        assert isinstance(batch, Slab), "PQN draws slabs"
        before, settings = self.updates, self.settings
        observation = self._tensors(batch.observation)
        target = self._returns(batch, reward, observation).flatten()
        rows = {name: leaf[:, :-1].flatten(0, 1) for name, leaf in observation.items()}
        action, used = self.copies.tensor(batch.action).flatten(), self.copies.tensor(batch.used).flatten()
        for _ in range(settings.epochs):
            order = torch.randperm(len(target), generator=self._generators[_ORDER]).to(self._device)
            for chosen in order.view(settings.minibatches, -1):
                part = {"action": action[chosen], "target": target[chosen], "used": used[chosen]}
                inputs = {"batch": part, "observation": {name: leaf[chosen] for name, leaf in rows.items()}}
                result, learnt = self._program.step(inputs)
        if batch.used.any():
            self._network.learn_statistics({name: leaf[used] for name, leaf in rows.items()})
        self._gradient.share_buffers(self._network)
        period = settings.metrics_period_updates
        if self.updates // period == before // period or not bool(part["used"].any()):
            return Update()
        # Of the slab's last minibatch.
        return Update(self._figures(learnt, part["target"], result.gradient_norm, part["used"]))

    @torch.no_grad()
    def _returns(self, slab: Slab, reward: NDArray[np.float32], observation: Mapping[str, Tensor]) -> Tensor:
        """[B, T] λ-returns; 0 for final rows. Row t bootstraps from observation t + 1, the final one where it ends."""
        following = {name: leaf[:, 1:].flatten(0, 1) for name, leaf in observation.items()}
        values = self._action_values(following)
        temperature = self.settings.exploration.temperature
        best = bootstrap_value(values, values, temperature, following.get(ACTION_MASK)).view(reward.shape)
        terminated, truncated, used = (
            self.copies.tensor(array).bool().T for array in (slab.terminated, slab.truncated, slab.used)
        )
        returns = lambda_returns(
            self.copies.tensor(reward).T,
            sequence_discounts(terminated, used, self.settings.discount),
            sequence_traces(terminated, truncated, used),
            best.T,
            self.settings.trace_decay,
        )
        return returns.T

    def _losses(self, inputs: Inputs) -> tuple[Tensor, Learnt]:
        """The loss [] of a minibatch, the mean over its step rows, and what it was made of."""
        batch = inputs["batch"]
        outputs = self._network.head(self._features(inputs["observation"]))
        prediction = outputs[torch.arange(len(outputs), device=self._device), batch["action"]]
        terms: LossTerms = self._value_head.terms(prediction, batch["target"])
        used = batch["used"].float()
        loss = (used * terms.loss).sum() / used.sum().clamp(min=1.0)
        return loss, Learnt(terms.loss, terms.floor, terms.clipped, prediction, outputs)

    def _features(self, observation: Mapping[str, Tensor]) -> Tensor:
        """[N, F] float32. Where bf16 is chosen the encoder runs in it; head, values and losses never do."""
        with self._gradient.autocast():
            features: Tensor = self._network.encoder(observation)
        return features.float()

    def _action_values(self, observation: Mapping[str, Tensor]) -> Tensor:
        """[N, A]"""
        return self._network.head.action_values(self._features(observation), self._network.centres)
