"""From slabs and a network's outputs to targets of the value and advantages of the policy.

Slabs are [B, T] as the ring has them, returns are computed [T, B]. A final row is no step: it is masked, and its
observation is the one from which the row before bootstraps, where the episode was truncated.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from onibi.learners.off_policy_returns import vtrace_returns
from onibi.learners.returns import generalized_advantages, sequence_discounts, sequence_traces


@dataclass(frozen=True)
class SlabSteps:
    """What the rows of slabs brought, on the learner's device.

    Args:
        reward: [B, T] float32, mixed, 0 in final rows.
        terminated: [B, T] uint8.
        truncated: [B, T] uint8.
        used: [B, T] float32, 0 for final rows.
    """

    reward: Tensor
    terminated: Tensor
    truncated: Tensor
    used: Tensor


@dataclass(frozen=True)
class Targets:
    """All [B, T] float32 without gradient.

    Args:
        values: what the value is taught.
        advantages: of the actions taken, without an importance ratio.
        weighted: advantages times ρ, the ratio cut at its bound: what a policy gradient wants.
        cut: 1 where the ratio was cut.
    """

    values: Tensor
    advantages: Tensor
    weighted: Tensor
    cut: Tensor


@torch.no_grad()
def vtrace_targets(
    steps: SlabSteps,
    values: Tensor,
    log_ratios: Tensor,
    *,
    discount: float,
    trace_decay: float,
    rho_bound: float,
    trace_bound: float,
) -> Targets:
    """V-trace over slabs; see ``vtrace_returns``.

    Args:
        steps: the rows.
        values: [B, T + 1] float32 V(x), the observation behind the last row included.
        log_ratios: [B, T] float32 log π(a|x) − log μ(a|x).
        discount: γ.
        trace_decay, rho_bound, trace_bound: λ, ρ̄ and c̄.
    Returns: targets; the advantage is r + γ v_{s+1} − V(x_s), with v_{s+1} V-trace's own.
    """
    used = steps.used.t()
    # Whatever stands in a final row's columns, its ratio is 1: nothing infinite times 0 comes in.
    ratios = log_ratios.detach().t() * used
    discounts = sequence_discounts(steps.terminated.t(), used, discount)
    traces = sequence_traces(steps.terminated.t(), steps.truncated.t(), used)
    now, after = values.detach()[:, :-1].t(), values.detach()[:, 1:].t()
    found = vtrace_returns(
        steps.reward.t(),
        discounts,
        traces,
        now,
        after,
        ratios,
        trace_decay=trace_decay,
        rho_bound=rho_bound,
        trace_bound=trace_bound,
    )
    return Targets(found.values.t(), found.advantages.t(), found.weighted_advantages.t(), found.clipped.t())


@torch.no_grad()
def gae_targets(steps: SlabSteps, values: Tensor, *, discount: float, trace_decay: float) -> Targets:
    """Generalised advantages over slabs, and the λ-returns that go with them; the data counts as on-policy.

    Args:
        steps: the rows.
        values: [B, T + 1] float32 V(x), the observation behind the last row included.
        discount: γ.
        trace_decay: λ.
    """
    used = steps.used.t()
    discounts = sequence_discounts(steps.terminated.t(), used, discount)
    traces = sequence_traces(steps.terminated.t(), steps.truncated.t(), used)
    now, after = values.detach()[:, :-1].t(), values.detach()[:, 1:].t()
    advantages = generalized_advantages(steps.reward.t(), discounts, traces, now, after, trace_decay)
    back = advantages.t()
    return Targets((advantages + now).t(), back, back, torch.zeros_like(back))
