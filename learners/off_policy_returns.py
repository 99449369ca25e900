"""Off-policy returns of sequences [T, B]: V-trace for state values, Retrace(λ) for action values.

π is the policy that is learnt about, μ the one that acted. Rows, discounts and traces are those of ``returns.py``.

Differences from the papers: an episode that was truncated, and the end of the sequence, bootstrap from the value of the
observation after the step; rows that are padding are skipped.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from onibi.learners.returns import backward_sum, check_trace_decay
from onibi.learners.shapes import check_shapes


@dataclass(frozen=True)
class VtraceReturns:
    """What V-trace gives for a sequence; all [T, B] float32 without gradient.

    Args:
        values: v_s, the targets of the value.
        advantages: A_s = r_s + γ v_{s+1} − V(x_s).
        weighted_advantages: ρ_s A_s, what weights ∇ log π(a_s|x_s).
        clipped: 1 where ρ was cut at its bound, for a metric.
    """

    values: Tensor
    advantages: Tensor
    weighted_advantages: Tensor
    clipped: Tensor


@torch.no_grad()
def vtrace_returns(
    rewards: Tensor,
    discounts: Tensor,
    traces: Tensor,
    values: Tensor,
    next_values: Tensor,
    log_ratios: Tensor,
    *,
    trace_decay: float,
    rho_bound: float,
    trace_bound: float,
) -> VtraceReturns:
    """V-trace targets and advantages (Espeholt et al. 2018, arXiv 1802.01561, eq. 1 and section 4.2, remark 2).

        δ_s = ρ_s (r_s + γ_s V(x_{s+1}) − V(x_s))     ρ_s = min(ρ̄, π(a_s|x_s)/μ(a_s|x_s))
        v_s − V(x_s) = δ_s + γ_s c_s (v_{s+1} − V(x_{s+1}))     c_s = λ · trace_s · min(c̄, π(a_s|x_s)/μ(a_s|x_s))

    Args:
        rewards: [T, B] float32.
        discounts: [T, B] float32, of ``sequence_discounts``.
        traces: [T, B] float32, of ``sequence_traces``.
        values: [T, B] float32 V(x_s).
        next_values: [T, B] float32, value of the observation after each step: V(x_{s+1}) where the episode goes on.
        log_ratios: [T, B] float32 log π(a_s|x_s) − log μ(a_s|x_s).
        trace_decay: λ in [0, 1]; 1 in the paper.
        rho_bound: ρ̄ > 0, which value function is learnt; infinity leaves it π's own.
        trace_bound: c̄ > 0, how fast; at most ρ̄ in the paper.
    Returns: targets and advantages; nothing of it has a gradient: values and policy are taught towards constants.
    Raises: ValueError where shapes disagree or a number is outside.
    """
    check_shapes(
        "T B",
        rewards=rewards,
        discounts=discounts,
        traces=traces,
        values=values,
        next_values=next_values,
        log_ratios=log_ratios,
    )
    check_trace_decay(trace_decay)
    if rho_bound <= 0 or trace_bound <= 0:
        raise ValueError(f"rho_bound is {rho_bound} and trace_bound {trace_bound}; both must be above 0")
    ratios = log_ratios.exp()
    rho = ratios.clamp(max=rho_bound)
    td_errors = rho * (rewards + discounts * next_values - values)
    factors = discounts * trace_decay * traces * ratios.clamp(max=trace_bound)
    corrections = backward_sum(td_errors, factors)  # v_s − V(x_s)
    behind = torch.cat((corrections[1:], torch.zeros_like(corrections[:1])))
    advantages = rewards + discounts * (next_values + traces * behind) - values
    return VtraceReturns(values + corrections, advantages, rho * advantages, (ratios > rho_bound).float())


@torch.no_grad()
def retrace_returns(
    rewards: Tensor,
    discounts: Tensor,
    traces: Tensor,
    taken_values: Tensor,
    next_values: Tensor,
    log_ratios: Tensor,
    *,
    trace_decay: float,
) -> Tensor:
    """Retrace(λ) targets of action values (Munos et al. 2016, arXiv 1606.02647, eq. 3 and 4).

        G_t = r_t + γ_t [v_{t+1} + c_{t+1} (G_{t+1} − Q(x_{t+1}, a_{t+1}))]     v_{t+1} = Σ_a π(a|x_{t+1}) Q(x_{t+1}, a)
        c_t = λ · min(1, π(a_t|x_t)/μ(a_t|x_t))

    Args:
        rewards: [T, B] float32.
        discounts: [T, B] float32, of ``sequence_discounts``.
        traces: [T, B] float32, of ``sequence_traces``.
        taken_values: [T, B] float32 Q(x_t, a_t) of the actions taken.
        next_values: [T, B] float32 v_{t+1}, π's expected action value of the observation after each step.
        log_ratios: [T, B] float32 log π(a_t|x_t) − log μ(a_t|x_t); −∞ where π never acts so.
        trace_decay: λ in [0, 1].
    Returns: [T, B] float32 without gradient. Raises: ValueError where shapes disagree or λ is outside.
    """
    check_shapes(
        "T B",
        rewards=rewards,
        discounts=discounts,
        traces=traces,
        taken_values=taken_values,
        next_values=next_values,
        log_ratios=log_ratios,
    )
    check_trace_decay(trace_decay)
    coefficients = trace_decay * log_ratios.exp().clamp(max=1.0)
    # G_t = r_t + γ_t v_{t+1} + f_t (G_{t+1} − Q_{t+1}) with f_t = γ_t trace_t c_{t+1}: S_t = G_t − Q_t sums backwards.
    coming = torch.cat((coefficients[1:], torch.zeros_like(coefficients[:1])))
    td_errors = rewards + discounts * next_values - taken_values
    return taken_values + backward_sum(td_errors, discounts * traces * coming)
