"""The n-step windows inside a sequence, the rows that it teaches, and one priority for all of them. Pure functions.

A sequence is [T, B] with observations [T + 1, B]: row t is one step, and observation t + 1 is what followed it where t
is the last used row. Where row t is followed by row t + 1 of the sequence, that is the same observation. So the window
from row t is r_t … r_{t+m−1} and bootstraps from observation t + m, with m = n, or less where the sequence ends before:

    rows           0   1   2   3   .      (used: 4, padding behind them)
    n = 3   t = 0  r   r   r   v          bootstrap from observation 3
            t = 2          r   r   v      m = 2: from observation 4, the one behind the last row
"""

from __future__ import annotations

import torch
from torch import Tensor

from onibi.learners.returns import window_discounts
from onibi.learners.shapes import check_shapes


def sequence_windows(
    rewards: Tensor, continues: Tensor, used: Tensor, discount: float, n_steps: int
) -> tuple[Tensor, Tensor, Tensor]:
    """The n-step window of every row, for ``n_step_return`` and ``n_step_distribution``.

    Args:
        rewards: [T, B] float32.
        continues: [T, B] float32, 0 where the step terminated the episode.
        used: [T, B] bool, True for the first rows, then False (padding).
        discount: γ.
        n_steps: n ≥ 1.
    Returns: rewards [T, B, n] and discounts [T, B, n], both float32 (behind the window's end 0 and 1), and the number
        of the observation to bootstrap from [T, B] int64, 0 to T. Those of padding mean nothing.
    Raises: ValueError where shapes disagree or n is below 1.
    """
    check_shapes("T B", rewards=rewards, continues=continues, used=used)
    if n_steps < 1:
        raise ValueError(f"n_steps is {n_steps}; one at least is needed")
    used = used.bool()
    steps, batch = rewards.shape
    paid = torch.where(used, rewards, torch.zeros_like(rewards))
    discounts = window_discounts(continues, used, discount)
    behind = rewards.new_zeros(n_steps - 1, batch)
    time = torch.arange(steps, device=rewards.device)[:, None]
    return (
        torch.cat((paid, behind)).unfold(0, n_steps, 1),
        torch.cat((discounts, behind + 1.0)).unfold(0, n_steps, 1),
        torch.minimum(time + n_steps, used.sum(dim=0)),
    )


def rows_from(values: Tensor, first: Tensor, rows: int) -> Tensor:
    """``rows`` rows of each sequence from its own first one on: what is learned from, behind a burn-in.

    Args:
        values: [T, B, ...].
        first: [B] int64, at least 0.
        rows: L; where a sequence has fewer left, its last one is repeated.
    Returns: [L, B, ...]. Raises: ValueError where shapes disagree.
    """
    check_shapes("B", first=first)
    if values.shape[1] != len(first):
        raise ValueError(f"values has B = {values.shape[1]}, but first has {len(first)}")
    time = torch.arange(rows, device=values.device)[:, None]
    at = (time + first).clamp(max=len(values) - 1)
    return values[at, torch.arange(len(first), device=values.device)]


def sequence_priority(td_errors: Tensor, learned: Tensor, largest_share: float) -> Tensor:
    """One priority for a sequence, η max_t |δ_t| + (1 − η) mean_t |δ_t|   (R2D2, Kapturowski et al. 2019, section 2.3).

    Args:
        td_errors: [T, B] float32 δ.
        learned: [T, B] bool, the rows that count.
        largest_share: η from 0 to 1; 0.9 in the paper.
    Returns: [B] float32 without gradient; 0 where no row counts.
    Raises: ValueError where shapes disagree or η is outside.
    """
    check_shapes("T B", td_errors=td_errors, learned=learned)
    if not 0.0 <= largest_share <= 1.0:
        raise ValueError(f"largest_share η is {largest_share}, allowed are 0 to 1")
    sizes = torch.where(learned, td_errors.detach().abs(), torch.zeros_like(td_errors))
    mean = sizes.sum(dim=0) / learned.sum(dim=0).clamp(min=1)
    return largest_share * sizes.amax(dim=0) + (1.0 - largest_share) * mean
