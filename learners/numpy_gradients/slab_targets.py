"""Targets of actor-critic learners over slabs [B, T] in NumPy: what ``actor_critic_targets.py`` computes in torch.

A test holds the two against each other. On the CPU a slab's figures are a thousand numbers, and torch's cost of some
hundred operations on them is several times what the numbers take.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Rows = NDArray[np.float32]


@dataclass(frozen=True)
class SlabFlow:
    """How rewards and values flow back through slabs; all [B, T] float32.

    Args:
        reward: 0 in final rows.
        used: 0 for final rows.
        discounts: γ; 0 where the step terminated and in final rows.
        carried: γ where the episode goes on in the slab's next row, else 0.
    """

    reward: Rows
    used: Rows
    discounts: Rows
    carried: Rows


@dataclass(frozen=True)
class SlabTargets:
    """All [B, T] float32; see ``actor_critic_targets.Targets``."""

    values: Rows
    advantages: Rows
    weighted: Rows
    cut: Rows


def slab_flow(
    reward: Rows,
    terminated: NDArray[np.uint8],
    truncated: NDArray[np.uint8],
    used: NDArray[np.bool_],
    discount: float,
) -> SlabFlow:
    """The flow of a slab's rows, all [B, T], under the discount γ."""
    alive = used & (terminated == 0)
    goes_on = alive & (truncated == 0)
    goes_on[:, :-1] &= used[:, 1:]
    goes_on[:, -1] = False
    gamma = np.float32(discount)
    return SlabFlow(reward, used.astype(np.float32), alive * gamma, goes_on * gamma)


def backward_sum(terms: Rows, factors: Rows) -> Rows:
    """S_t = x_t + f_t S_{t+1} along the last axis, from S_T = 0 backwards, by doubling.

    Args:
        terms: [B, T] float32 x; overwritten by what is returned.
        factors: [B, T] float32 f, overwritten; the last column's is not read.
    """
    span, steps = 1, terms.shape[1]
    while span < steps:
        terms[:, :-span] += factors[:, :-span] * terms[:, span:]
        if 2 * span < steps:
            factors[:, :-span] *= factors[:, span:]
        span *= 2
    return terms


def vtrace(
    flow: SlabFlow, values: Rows, log_ratios: Rows, *, trace_decay: float, rho_bound: float, trace_bound: float
) -> SlabTargets:
    """V-trace (Espeholt et al. 2018, arXiv 1802.01561, eq. 1); see ``vtrace_targets``.

    Args:
        flow: of the rows.
        values: [B, T + 1] float32 V(x).
        log_ratios: [B, T] float32 log π(a|x) − log μ(a|x), 0 in final rows.
        trace_decay, rho_bound, trace_bound: λ, ρ̄ and c̄.
    """
    now, after = values[:, :-1], values[:, 1:]
    ratios = np.exp(log_ratios)
    rho = np.minimum(ratios, np.float32(rho_bound))
    td_errors = flow.reward + flow.discounts * after - now
    factors = np.minimum(ratios, np.float32(trace_bound))
    factors *= flow.carried
    factors *= np.float32(trace_decay)
    corrections = backward_sum(rho * td_errors, factors)  # v_s − V(x_s)
    advantages = td_errors
    advantages[:, :-1] += flow.carried[:, :-1] * corrections[:, 1:]
    return SlabTargets(
        now + corrections, advantages, rho * advantages, (ratios > np.float32(rho_bound)).astype(np.float32)
    )


def gae(flow: SlabFlow, values: Rows, *, trace_decay: float) -> SlabTargets:
    """Generalised advantages (Schulman et al. 2016, arXiv 1506.02438, eq. 16); see ``gae_targets``.

    Args:
        flow: of the rows.
        values: [B, T + 1] float32 V(x).
        trace_decay: λ.
    """
    now, after = values[:, :-1], values[:, 1:]
    advantages = backward_sum(flow.reward + flow.discounts * after - now, flow.carried * np.float32(trace_decay))
    return SlabTargets(advantages + now, advantages, advantages, np.zeros_like(advantages))
