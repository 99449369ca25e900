"""Returns: pure functions from rewards, discounts and values to targets."""

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
