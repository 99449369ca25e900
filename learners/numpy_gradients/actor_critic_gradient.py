"""The loss of actor-critic learners and its gradient by hand, in NumPy: for small networks on the CPU.

With p = π(·|x), H its entropy, w the row's weight in the mean over the slab and s = d term/d log π(a|x) of its policy
term, the slope of the loss by the logits z is

    dL/dz_i = w [ s (1[i = a] − p_i) + c_e p_i (log p_i + H) ]

and by the value head's outputs w · c_v times the value loss's own slope. Behind that come the layers (``layers.py``).
The definition of all of it is the torch side (``actor_critic.py`` and the learners' ``_losses``), which every other
network, device and precision takes; tests hold gradients, loss and figures of the two against each other.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from onibi.learners.action_distributions import NEVER
from onibi.learners.actor_critic import OLD_VALUES_COLUMN, ActorCritic, ActorCriticSettings, Learnt
from onibi.learners.actor_critic_policy import LOG_PROB_COLUMN
from onibi.learners.loss_program import Inputs
from onibi.learners.numpy_gradients.actor_critic_network import SmallActorCritic, is_small_actor_critic
from onibi.learners.numpy_gradients.layers import Rows, array_of
from onibi.learners.numpy_gradients.slab_targets import SlabFlow, SlabTargets, gae, slab_flow, vtrace
from onibi.learners.numpy_gradients.value_terms import regression, value_terms
from onibi.platform.spec import ACTION_MASK

TargetsOf: TypeAlias = Callable[[SlabFlow, Rows, Rows], SlabTargets]
"""(rows, V(x) [B, T + 1], log ratios [B, T]) → targets."""
PolicyTermsOf: TypeAlias = Callable[[SlabTargets, Rows, Rows, Rows], tuple[Rows, Rows]]
"""(targets, log π(a|x), log ratios, used; all [B, T]) → the policy's loss of each row and its slope by log π(a|x)."""


def vtrace_of(settings: ActorCriticSettings) -> TargetsOf:
    """V-trace under a learner's settings."""

    def targets_of(flow: SlabFlow, values: Rows, log_ratios: Rows) -> SlabTargets:
        return vtrace(
            flow,
            values,
            log_ratios,
            trace_decay=settings.trace_decay,
            rho_bound=settings.rho_bound,
            trace_bound=settings.trace_bound,
        )

    return targets_of


def gae_of(settings: ActorCriticSettings) -> TargetsOf:
    """GAE under a learner's settings; ratios are not read."""
    return lambda flow, values, _log_ratios: gae(flow, values, trace_decay=settings.trace_decay)


def weighted_policy_gradient(
    targets: SlabTargets, log_probs: Rows, _log_ratios: Rows, _used: Rows
) -> tuple[Rows, Rows]:
    """−ρ A log π(a|x); see ``policy_losses.policy_gradient``."""
    return -targets.weighted * log_probs, -targets.weighted


def clipped_surrogate_of(clip: float, *, normalize_advantages: bool) -> PolicyTermsOf:
    """−min(r A, clamp(r, 1 − ε, 1 + ε) A); see ``policy_losses.clipped_surrogate`` and ``normalised``."""
    low, high = np.float32(1.0 - clip), np.float32(1.0 + clip)

    def terms(targets: SlabTargets, _log_probs: Rows, log_ratios: Rows, used: Rows) -> tuple[Rows, Rows]:
        advantages = _normalised(targets.advantages, used) if normalize_advantages else targets.advantages
        ratios = np.exp(log_ratios)
        plain, bounded = ratios * advantages, np.clip(ratios, low, high) * advantages
        # Outside of the interval the bounded term is a constant; where it is the lesser one, nothing is learnt.
        moves = (plain < bounded) | ((ratios >= low) & (ratios <= high))
        return -np.minimum(plain, bounded), np.where(moves, -plain, np.float32(0.0))

    return terms


class ActorCriticGradient:
    """Gives a slab's loss and leaves its gradient in the parameters' ``grad``; see ``gradient_by_hand``.

    It reads the parameters' memory: from then on they must be moved in place, as Adam and ``load_state_dict`` do.

    Args:
        shared: network, value head and settings.
        targets_of: V-trace or GAE.
        policy_terms_of: the learner's policy loss.
    """

    def __init__(self, shared: ActorCritic, targets_of: TargetsOf, policy_terms_of: PolicyTermsOf) -> None:
        self._settings, self._value_head, self._value_clip = shared.settings, shared.value_head, shared.value_clip
        self._targets_of, self._policy_terms_of = targets_of, policy_terms_of
        self._network = SmallActorCritic(shared.network)

    def __call__(self, inputs: Inputs) -> tuple[Tensor, Learnt]:
        """The loss [] float32, and what it was made of; see ``ActorCritic.loss``."""
        rows = {name: array_of(each) for name, each in inputs["rows"].items()}
        observation = {name: array_of(each) for name, each in inputs["observation"].items()}
        with np.errstate(all="ignore"):  # what is not finite is found in loss and gradient, as on the torch side
            loss, figures = self._compute(rows, observation)
        return torch.tensor(loss), Learnt(**{name: torch.from_numpy(figure) for name, figure in figures.items()})

    def _compute(
        self, rows: dict[str, NDArray[Any]], observation: dict[str, NDArray[Any]]
    ) -> tuple[np.float32, dict[str, NDArray[Any]]]:
        settings, action = self._settings, rows["action"]
        flow = slab_flow(rows["reward"], rows["terminated"], rows["truncated"], rows["used"], settings.discount)
        used, (lanes, steps) = flow.used, flow.used.shape
        width = self._value_head.outputs
        outputs = self._network.forward(observation).reshape(lanes, steps + 1, -1)
        predictions = np.ascontiguousarray(outputs[:, :, -width:])
        values = self._values(predictions)
        policy = _Categorical(outputs[:, :-1, :-width], observation.get(ACTION_MASK))
        log_probs, entropy = policy.log_prob(action), policy.entropy
        log_ratios = (log_probs - rows[LOG_PROB_COLUMN]) * used
        targets = self._targets_of(flow, values, log_ratios)
        policy_terms, policy_slopes = self._policy_terms_of(targets, log_probs, log_ratios, used)
        value, value_slopes = self._value_terms(predictions[:, :-1], targets.values, rows.get(OLD_VALUES_COLUMN))

        weights = used / max(used.sum(), np.float32(1.0))
        value_weights = np.float32(settings.value_coefficient) * weights
        entropy_weights = np.float32(settings.entropy_coefficient) * weights
        loss = (
            np.vdot(weights, policy_terms) + np.vdot(value_weights, value["value"]) - np.vdot(entropy_weights, entropy)
        )
        slopes = np.zeros(outputs.shape, np.float32)  # 0 behind the last row: no loss hangs on what is said there
        slopes[:, :-1, :-width] = policy.logits_slopes(action, weights * policy_slopes, entropy_weights)
        np.multiply(value_weights[:, :, None], value_slopes, out=slopes[:, :-1, -width:])
        self._network.backward(slopes.reshape(lanes * (steps + 1), -1))
        figures = {
            "policy": policy_terms,
            "entropy": entropy,
            "values": values[:, :-1],
            "targets": targets.values,
            "cut": targets.cut,
            "log_ratios": log_ratios,
            "used": used,
        }
        return loss, figures | value

    def _value_terms(self, prediction: Rows, target: Rows, old: Rows | None) -> tuple[dict[str, NDArray[Any]], Rows]:
        """Loss, floor and clipped [B, T] of predictions [B, T, K] towards targets [B, T]; slopes [B, T, K]."""
        shape, clip = target.shape, self._value_clip
        flat = np.ascontiguousarray(prediction).reshape(target.size, -1)
        terms, slopes = value_terms(self._value_head, flat, target.reshape(-1))
        figures = {name: each.reshape(shape) for name, each in terms.items()}
        figures["value"] = figures.pop("loss")
        if old is not None and clip is not None and self._value_head.centres is None:
            moved = prediction[:, :, 0] - old
            bounded, _ = regression(self._value_head, old + np.clip(moved, -clip, clip), target)
            slopes *= ((figures["value"] > bounded) | (np.abs(moved) <= clip)).reshape(-1, 1)
            figures["value"] = np.maximum(figures["value"], bounded)
        return figures, slopes.reshape(prediction.shape)

    def _values(self, predictions: Rows) -> Rows:
        """V(x) [B, T + 1] that the value head's outputs [B, T + 1, K] stand for."""
        if self._value_head.centres is None:
            return predictions[:, :, 0]
        return array_of(self._value_head.decode(torch.from_numpy(predictions)))


def gradient_by_hand(
    shared: ActorCritic, targets_of: TargetsOf, policy_terms_of: PolicyTermsOf
) -> ActorCriticGradient | None:
    """The gradient in NumPy where it can be had: a small network, plain float32 steps on the CPU. Else None."""
    if shared.settings.acceleration.is_plain(shared.device) and is_small_actor_critic(shared.network):
        shared.gradient.lay_flat()
        return ActorCriticGradient(shared, targets_of, policy_terms_of)
    return None


class _Categorical:
    """π over A actions of [B, T] rows. Inside, actions lie along the first axis: sums over a few of them are fast."""

    def __init__(self, logits: Rows, mask: NDArray[Any] | None) -> None:
        """Logits [B, T, A]; a mask [B, T + 1, A], 0 where an action is not allowed."""
        logits = np.ascontiguousarray(np.moveaxis(logits, -1, 0))
        if mask is not None:
            allowed = np.moveaxis(mask[:, :-1] != 0, -1, 0)
            logits = np.where(allowed | ~allowed.any(axis=0), logits, np.float32(NEVER))
        logits -= logits.max(axis=0)
        exponentials = np.exp(logits)
        total = exponentials.sum(axis=0)
        self._log_probs = logits - np.log(total)
        self._probs = exponentials / total
        self.entropy: Rows = -np.einsum("abt,abt->bt", self._probs, self._log_probs)
        """[B, T] in nats."""

    def log_prob(self, action: NDArray[np.int64]) -> Rows:
        """[B, T] → [B, T]."""
        taken: Rows = self._log_probs.reshape(len(self._probs), -1)[_places(action)]
        return taken.reshape(action.shape)

    def logits_slopes(self, action: NDArray[np.int64], log_prob_slopes: Rows, entropy_weights: Rows) -> Rows:
        """[B, T, A]; overwrites the log-probabilities.

        Args:
            action: [B, T], taken.
            log_prob_slopes: [B, T], of the loss by log π(a|x).
            entropy_weights: [B, T], what the loss pays for entropy.
        """
        slopes = self._log_probs
        slopes += self.entropy
        slopes *= entropy_weights
        slopes -= log_prob_slopes
        slopes *= self._probs
        slopes.reshape(len(slopes), -1)[_places(action)] += log_prob_slopes.reshape(-1)
        return np.moveaxis(slopes, 0, -1)


def _places(action: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Of the actions taken in [A, B · T]."""
    return action.reshape(-1), np.arange(action.size)


def _normalised(advantages: Rows, used: Rows) -> Rows:
    rows = max(used.sum(), np.float32(1.0))
    centred = (advantages - np.vdot(advantages, used) / rows) * used
    deviation = np.sqrt(np.vdot(centred, centred) / rows)
    normalised: Rows = centred / (deviation + np.float32(1e-8))
    return normalised
