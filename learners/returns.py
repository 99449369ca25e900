"""Returns: pure functions from rewards, discounts and values to targets. Off-policy ones: ``off_policy_returns.py``.

Windows of replay are [B, n]; sequences are [T, B]. A row t of a sequence is one step: o_t, a_t, r_t, whether it
terminated or truncated the episode, and in ``next_values`` the value of the observation that followed *this* step.
Where the step truncated, that is the episode's last observation, and not the first one of the next episode.
``sequence_discounts`` and ``sequence_traces`` turn the flags into the two factors that every recursion below takes:

    step t                                  discounts[t]    traces[t]    what the return takes from behind t
    the episode goes on in row t + 1        γ               1            the return of row t + 1
    truncated, or the sequence ends here    γ               0            the value of the observation after t
    terminated                              0               0            nothing
    not valid (padding)                     0               0            nothing; the row itself means nothing either
"""

from __future__ import annotations

import torch
from torch import Tensor

from onibi.learners.shapes import check_shapes


def window_discounts(continues: Tensor, used: Tensor, discount: float) -> Tensor:
    """Discounts of an n-step window: γ·continues for the steps used, 1 behind the window's end.

    Args:
        continues: [B, n] float32, 0 where the step terminated.
        used: [B, n] bool or uint8, whether the window has this step.
        discount: γ.
    Returns: [B, n] float32. Raises: ValueError where shapes disagree.
    """
    check_shapes("B n", continues=continues, used=used)
    return torch.where(used.bool(), discount * continues, torch.ones_like(continues))


def n_step_return(rewards: Tensor, discounts: Tensor, bootstrap_value: Tensor) -> Tensor:
    """n-step return  G = r₁ + γ₁(r₂ + γ₂(… + γₙ v))   (Sutton & Barto 2018, eq. 7.1, with one γ per step).

    Args:
        rewards: [B, n] float32.
        discounts: [B, n] float32: γ; 0 where the step terminated; 1, with reward 0, behind the window's end.
        bootstrap_value: [B] float32, value of the observation after the last step.
    Returns: [B] float32; gradients flow. Raises: ValueError where shapes disagree.
    """
    check_shapes("B n", rewards=rewards, discounts=discounts)
    check_shapes("B", bootstrap_value=bootstrap_value)  # [B, 1] would broadcast to [B, B] without a word
    if len(bootstrap_value) != len(rewards):
        raise ValueError(f"bootstrap_value has B = {len(bootstrap_value)}, but rewards has {len(rewards)}")
    returns = bootstrap_value
    for step in reversed(range(rewards.shape[1])):
        returns = rewards[:, step] + discounts[:, step] * returns
    return returns


def sequence_discounts(terminated: Tensor, valid: Tensor, discount: float) -> Tensor:
    """Discounts of a sequence: γ, 0 where the step terminated or is padding.

    Args:
        terminated: [T, B] bool.
        valid: [T, B] bool, False where the row is no step (padding, the reset row of NEXT_STEP environments).
        discount: γ.
    Returns: [T, B] float32. Raises: ValueError where shapes disagree.
    """
    check_shapes("T B", terminated=terminated, valid=valid)
    return discount * (valid.bool() & ~terminated.bool()).float()


def sequence_traces(terminated: Tensor, truncated: Tensor, valid: Tensor) -> Tensor:
    """1 where the episode goes on in the next row of the sequence, else 0. The last row's is always 0.

    Args:
        terminated: [T, B] bool.
        truncated: [T, B] bool.
        valid: [T, B] bool, see ``sequence_discounts``.
    Returns: [T, B] float32. Raises: ValueError where shapes disagree.
    """
    check_shapes("T B", terminated=terminated, truncated=truncated, valid=valid)
    valid = valid.bool()
    goes_on = valid & ~terminated.bool() & ~truncated.bool()
    followed = torch.cat((valid[1:], torch.zeros_like(valid[:1])))
    return (goes_on & followed).float()


def lambda_returns(
    rewards: Tensor, discounts: Tensor, traces: Tensor, next_values: Tensor, trace_decay: float
) -> Tensor:
    """λ-returns  G_t = r_t + γ_t[(1 − λ_t) v_{t+1} + λ_t G_{t+1}]  with λ_t = λ · trace_t.

    Sutton & Barto 2018, eq. 12.18. With ``next_values`` the largest action values this is Peng's Q(λ), as
    in PQN (Gallici et al. 2024, arXiv 2407.04811).

    Args:
        rewards: [T, B] float32.
        discounts: [T, B] float32, of ``sequence_discounts``.
        traces: [T, B] float32, of ``sequence_traces``.
        next_values: [T, B] float32, value of the observation after each step; finite everywhere.
        trace_decay: λ in [0, 1]: 0 is the one-step return, 1 the return of all the steps there are.
    Returns: [T, B] float32; gradients flow, to the values too.
    Raises: ValueError where shapes disagree or λ is outside.
    """
    check_shapes("T B", rewards=rewards, discounts=discounts, traces=traces, next_values=next_values)
    check_trace_decay(trace_decay)
    decays = trace_decay * traces
    one_step = rewards + discounts * (1.0 - decays) * next_values
    factors = discounts * decays
    return backward_sum(one_step, factors)


def generalized_advantages(
    rewards: Tensor, discounts: Tensor, traces: Tensor, values: Tensor, next_values: Tensor, trace_decay: float
) -> Tensor:
    """GAE  A_t = δ_t + γ_t λ_t A_{t+1},  δ_t = r_t + γ_t v_{t+1} − v_t.

    Schulman et al. 2016, arXiv 1506.02438, eq. 16. A_t + v_t is the λ-return: the target of the value.

    Args:
        rewards, discounts, traces, next_values, trace_decay: as for ``lambda_returns``.
        values: [T, B] float32, of the observation before each step.
    Returns: [T, B] float32 without gradient: advantages weight a policy gradient. Raises: as ``lambda_returns``.
    """
    check_shapes("T B", rewards=rewards, discounts=discounts, traces=traces, values=values, next_values=next_values)
    check_trace_decay(trace_decay)
    td_errors = (rewards + discounts * next_values - values).detach()
    return backward_sum(td_errors, trace_decay * discounts * traces)


def backward_sum(terms: Tensor, factors: Tensor) -> Tensor:
    """S_t = x_t + f_t S_{t+1}, from S_T = 0 backwards: the recursion of all sequence returns.

    Args:
        terms: [T, B] float32 x.
        factors: [T, B] float32 f; the last row's is not read.
    Returns: [T, B] float32; gradients flow. Raises: ValueError where shapes disagree.
    """
    check_shapes("T B", terms=terms, factors=factors)
    if len(terms) == 0:
        raise ValueError("terms has T = 0: a sequence has one step at least")
    # By doubling: after each turn a row sums twice as many rows. log₂ T operations instead of T, on any device.
    sums, span = terms, 1
    while span < len(terms):
        sums = torch.cat((torch.addcmul(sums[:-span], factors[:-span], sums[span:]), sums[-span:]))
        span *= 2
        if span < len(terms):  # the last rows' factors are never read
            half = span // 2
            factors = torch.cat((factors[:-half] * factors[half:], factors[-half:]))
    return sums


def check_trace_decay(trace_decay: float) -> None:
    """Refuse a λ outside of [0, 1]. Raises: ValueError."""
    if not 0.0 <= trace_decay <= 1.0:
        raise ValueError(f"trace_decay λ is {trace_decay}, allowed are 0 to 1")
