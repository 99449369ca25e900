"""R2D2: a Q-learner with a memory, on stored sequences (Kapturowski, Ostrovski, Quan, Munos, Dabney 2019, ICLR).

    replay:   state s₀ | o o o o | o o o … o      burn-in, then the rows to learn from
    network:  s₀ ──LSTM──▶ s (no gradient) ──LSTM──▶ Q(o_t, ·)                    from s₀ with both networks' parameters
    target:   G_t = Σ_{i<m} γ^i r_{t+i} + γ^m Q̄(o_{t+m}, argmax Q(o_{t+m}, ·))    m = n, less before the sequence's end
    priority: η max |δ_t| + (1 − η) mean |δ_t|

The recurrent state that the actor had is kept at the steps where sequences can begin; it is where both networks start
from. It is as old as the weights that made it, which is what the burn-in mends.

Differences from the paper: the rows to learn from (``length``) do not contain the burn-in; the LSTM reads the previous
action, but not the previous reward, which labels change later; value losses by name over bins spaced by symlog instead
of h(x), which is a setting; windows that reach the sequence's end are shortened and not dropped; truncated episodes
bootstrap from their last observation; sequences near an episode's end are padded and masked; the target network follows
by a moving average (``target.rate`` 1 with a period of 2,500 is the paper's); priorities of new sequences are the
running maximum; uniform draws where ``priorities`` is null; LayerNorm in the default encoder.
"""

from __future__ import annotations

import math
from typing import ClassVar, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from onibi.learners.distributional_losses import n_step_distribution
from onibi.learners.learner import ReplayNeeds, Update
from onibi.learners.loss_program import Inputs, LossProgram
from onibi.learners.networks.core_settings import STATE_COLUMN
from onibi.learners.networks.recurrent_q import RecurrentQNetwork, build_recurrent_q_network
from onibi.learners.q_learner import QLearner, finite_or_none
from onibi.learners.q_targets import bootstrap_distribution, bootstrap_value
from onibi.learners.r2d2_settings import R2d2Settings
from onibi.learners.returns import n_step_return
from onibi.learners.sequence_windows import rows_from, sequence_priority, sequence_windows
from onibi.learners.target_network import TargetFollower
from onibi.learners.update_draws import UpdateDraws
from onibi.learners.value_rescaling import rescale_value, restore_value
from onibi.platform.policy import PolicyFactory
from onibi.platform.replay.samplers.draws import Batch, SequenceDraws
from onibi.platform.replay.samplers.sequences import Sequences
from onibi.platform.spec import ACTION_MASK, ReplaySpec, StateSpec

_LEAST_PRIORITY = 1e-6
"""Added to each priority, so that every sequence can be drawn again."""


class Learnt(NamedTuple):
    """What a batch's loss was made of. Rows [N] are those to learn from of all sequences, padding included.

    Args:
        loss: [N], and
        floor: [N], and
        clipped: [N], of ``LossTerms``.
        prediction: [N, K], of the actions taken.
        outputs: [N, A, K]
        target: [N] as the network emits it, its mean where it is a distribution.
        learned: [N] bool, False for padding.
        priorities: [B], one of each sequence.
    """

    loss: Tensor
    floor: Tensor
    clipped: Tensor
    prediction: Tensor
    outputs: Tensor
    target: Tensor
    learned: Tensor
    priorities: Tensor


class R2d2Learner(QLearner[RecurrentQNetwork]):
    """One recurrent network, its target and its optimizer.

    Args:
        settings: all choices.
        spec: row layout of the run.
        value_bounds: least and largest discounted return, from the reward mixer; read where the support is auto.
        seed: of the initial parameters.
        device: "cpu", "cuda", "cuda:1".
    Raises: ConfigError where no support can be placed or the device lacks something, SpecError where the network cannot
        read the observation.
    """

    Settings: ClassVar[type[R2d2Settings]] = R2d2Settings

    def __init__(
        self,
        settings: R2d2Settings,
        spec: ReplaySpec,
        value_bounds: tuple[float, float] | None,
        seed: int,
        device: str,
    ) -> None:
        self.settings = settings
        head = settings.value_head(value_bounds)
        network = build_recurrent_q_network(
            settings.network,
            settings.core,
            spec,
            head.form,
            head.initial_bias(),
            head.centres,
            dueling=settings.dueling,
            previous_action=settings.previous_action,
            seed=seed,
        )
        self._draws = UpdateDraws(head.form, 0, seed, torch.device(device))
        super().__init__(settings, network, head, self._draws, device, has_target=True, steps_per_batch=1)
        self._target.core.cell.flatten_parameters()  # a copy's matrices lie apart, which cuDNN is slow with
        self._follower = TargetFollower(self._target, self._network, settings.target)
        self._packs = settings.acceleration.compile != "graphs"  # a graph must not look back at the host
        self._program = LossProgram(self._losses, self._gradient, settings.acceleration)

    @staticmethod
    def needs(settings: R2d2Settings) -> ReplayNeeds:
        """Sequences, and the recurrent state where it is stored: of the rows that can be a sequence's first."""
        stored = settings.state == "stored"
        state = StateSpec(
            name=STATE_COLUMN,
            dtype="float32",
            shape=(settings.state_size,),
            period=math.gcd(settings.period, settings.burn_in),
        )
        return ReplayNeeds(
            draws=SequenceDraws(
                length=settings.length,
                burn_in=settings.burn_in,
                period=settings.period,
                batch_size=settings.batch_size,
                priorities=settings.priorities,
                first_row_columns=(STATE_COLUMN,) if stored else (),
            ),
            states=(state,) if stored else (),
        )

    @staticmethod
    def policy_factory(settings: R2d2Settings, spec: ReplaySpec) -> PolicyFactory:
        """See ``R2d2Settings.policy_factory``."""
        return settings.policy_factory(spec)

    def update(self, batch: Batch, reward: NDArray[np.float32]) -> Update:
        """One gradient step on drawn sequences; see ``Learner.update``.

        A loss or gradient that is not finite changes nothing but the counters.
        """
        assert isinstance(batch, Sequences), f"drawn as needs() asks, not {type(batch).__name__}"
        inputs = self._inputs(batch, reward)
        result, learnt = self._program.step(inputs)
        if not result.skipped:
            self._learn_statistics(batch)
            self._gradient.share_buffers(self._network)
        self._follower.follow(self.updates, moved=result.applied)
        priorities = None if self.settings.priorities is None else self._priorities(learnt)
        if not result.completed or self.updates % self.settings.metrics_period_updates:
            return Update(priorities=priorities)
        others = {"learned_share": learnt.learned.float().mean(), "priority_mean": learnt.priorities.mean()}
        figures = self._figures(learnt, learnt.target, result.gradient_norm, learnt.learned, others)
        return Update(figures, priorities)

    def _inputs(self, batch: Sequences, reward: NDArray[np.float32]) -> Inputs:
        """All that an update reads, as tensors on the device; observations [T + 1, B, ...], columns [T, B]."""
        if self.settings.state == "stored":
            start = batch.first_extra[STATE_COLUMN]
        else:
            start = np.zeros((batch.batch_size, self.settings.state_size), np.float32)
        rows = {
            "action": self.copies.tensor(batch.action),
            "reward": self.copies.tensor(reward),
            "continues": self.copies.tensor(batch.continues),
            "used": self.copies.tensor(batch.used),
        }
        lanes = {"weight": self.copies.tensor(batch.weight), "start": self.copies.tensor(start)}
        burn_in = torch.from_numpy(batch.burn_in.astype(np.int64))
        lanes["burn_in"] = burn_in.to(self._device, non_blocking=True)
        if self._packs and (batch.burn_in < self.settings.burn_in).any():
            lanes["packed_burn_in"] = burn_in  # on the host, which arranges the rows by it
        return {
            "observation": self._tensors(batch.observation),
            "rows": rows,
            "lanes": lanes,
            "draws": self._draws.draw((self.settings.length + 1) * batch.batch_size),
        }

    def _losses(self, inputs: Inputs) -> tuple[Tensor, Learnt]:
        """The loss [] of the rows to learn from, weighted by sequence, Σ w ℓ / rows; and what it was made of."""
        settings, head = self.settings, self._value_head
        lanes, draws, length = inputs["lanes"], inputs["draws"], self.settings.length
        burn_in, previous = lanes["burn_in"], self._previous(inputs)
        observation = {name: rows_from(leaf, burn_in, length + 1) for name, leaf in inputs["observation"].items()}
        rows = {name: rows_from(column, burn_in, length) for name, column in inputs["rows"].items()}
        learned = rows["used"]
        action = torch.where(learned, rows["action"], 0).flatten()
        # Encoders and cores run in bf16 where that is chosen; heads, values and losses never do. Each pass has its own
        # context, which keeps the weights that it made in bf16: those of the burn-in, made without gradient, may pass
        # none on to a pass that comes after it (pytorch issue 158232).
        with self._gradient.autocast():
            start, target_start = self._warmed_up(inputs, previous)
        previous = rows_from(previous, burn_in, length + 1)
        with self._gradient.autocast():
            features = self._network.unroll(observation, previous, start).flatten(0, 1)
        with torch.no_grad(), self._gradient.autocast():
            target_features = self._target.unroll(observation, previous, target_start).flatten(0, 1)
        fractions = draws["fractions"][: len(action)] if "fractions" in draws else None
        outputs = self._network.outputs(features[: len(action)], fractions)
        prediction = outputs[torch.arange(len(action), device=action.device), action]
        with torch.no_grad():
            values = self._target.action_values(target_features)
            chooser = self._network.action_values(features) if settings.double else values
            windows = sequence_windows(rows["reward"], rows["continues"], learned, settings.discount, settings.n_steps)
            allowed = observation.get(ACTION_MASK)
            allowed = None if allowed is None else allowed.flatten(0, 1)
            if head.takes_distributions:
                target_outputs = self._target.outputs(target_features, draws.get("target_fractions"))
                returns, shares = self._target_distribution(target_outputs, chooser, allowed, windows)
                target = (returns * shares).sum(dim=1)
            else:
                target = self._target_values(values, chooser, allowed, windows)
        if head.takes_distributions:
            terms = head.distribution_terms(prediction, fractions, returns, shares)
        else:
            terms = head.terms(prediction, target)
        loss = ((learned * lanes["weight"]).flatten() * terms.loss).sum() / learned.sum()
        with torch.no_grad():
            errors = (target - head.decode(prediction)).view_as(learned)
            priorities = sequence_priority(errors, learned, settings.priority_largest_share)
        return loss, Learnt(
            terms.loss, terms.floor, terms.clipped, prediction, outputs, target, learned.flatten(), priorities
        )

    def _previous(self, inputs: Inputs) -> Tensor:
        """[T + 1, B] number of the action before each observation + 1; 0 for none, or where it was not stored."""
        action, start = inputs["rows"]["action"], inputs["lanes"]["start"]
        first = start[:, -1].long() if self.settings.previous_action else torch.zeros_like(action[0])
        behind = torch.where(inputs["rows"]["used"], action + 1, 0)
        return torch.cat((first[None], behind))

    def _warmed_up(self, inputs: Inputs, previous: Tensor) -> tuple[Tensor, Tensor]:
        """States [B, S] of network and target before the first row to learn from; no gradient flows into them."""
        observation = {name: leaf[: self.settings.burn_in] for name, leaf in inputs["observation"].items()}
        lanes, packs = inputs["lanes"], self._packs
        steps = lanes.get("packed_burn_in") if packs else lanes["burn_in"]
        start, previous = lanes["start"][:, : self._network.core.state_size], previous[: self.settings.burn_in]
        if self.settings.burn_in == 0:
            return start, start
        with torch.no_grad():
            return (
                self._network.warmed_up(observation, previous, start, steps, packed=packs),
                self._target.warmed_up(observation, previous, start, steps, packed=packs),
            )

    def _target_values(
        self, values: Tensor, chooser: Tensor, allowed: Tensor | None, windows: tuple[Tensor, Tensor, Tensor]
    ) -> Tensor:
        """[N] targets on the scale that the network emits: h(n-step return of h⁻¹) with value rescaling."""
        rewards, discounts, at = windows
        epsilon = self.settings.value_rescaling
        bootstrap = bootstrap_value(values, chooser, self.settings.exploration.temperature, allowed)
        if epsilon is not None:
            bootstrap = restore_value(bootstrap, epsilon)
        bootstrap = bootstrap.view(-1, at.shape[1]).gather(0, at)
        returns = n_step_return(rewards.flatten(0, 1), discounts.flatten(0, 1), bootstrap.flatten())
        return returns if epsilon is None else rescale_value(returns, epsilon)

    def _target_distribution(
        self, outputs: Tensor, chooser: Tensor, allowed: Tensor | None, windows: tuple[Tensor, Tensor, Tensor]
    ) -> tuple[Tensor, Tensor]:
        """Values and probabilities, both [N, M], of the n-step targets."""
        rewards, discounts, at = windows
        temperature = self.settings.exploration.temperature
        lanes = torch.arange(at.shape[1], device=at.device)
        values, probabilities = (
            each.reshape(-1, at.shape[1], each.shape[1])[at, lanes].flatten(0, 1)
            for each in bootstrap_distribution(self._value_head, outputs, chooser, temperature, allowed)
        )
        return n_step_distribution(rewards.flatten(0, 1), discounts.flatten(0, 1), values), probabilities

    def _priorities(self, learnt: Learnt) -> NDArray[np.float32] | None:
        """[B] for the sampler; see ``finite_or_none``."""
        return finite_or_none(learnt.priorities.cpu().numpy() + np.float32(_LEAST_PRIORITY))

    def _learn_statistics(self, batch: Sequences) -> None:
        """Show the encoder one row of each sequence, another one at each update: all rows would be read twice."""
        learned = batch.steps - batch.burn_in
        at = batch.burn_in + self.updates % np.maximum(learned, 1)
        rows = {name: leaf[at, np.arange(len(at))] for name, leaf in batch.observation.items()}
        self._network.learn_statistics(self._tensors(rows))
