"""Losses of reward models: pure functions."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional

from onibi.learners.shapes import check_shapes


def bradley_terry(first: Tensor, second: Tensor, preference: Tensor) -> Tensor:
    """Cross-entropy of a preference   −y log σ(r₁ − r₂) − (1 − y) log σ(r₂ − r₁)   (Bradley & Terry 1952).

    The same as −Σ_k y_k log softmax(r₁, r₂)_k with y = (y, 1 − y), as in ONI and Motif; a tie is y = ½.

    Args:
        first: [N, B] scores r₁.
        second: [N, B] scores r₂.
        preference: [N, B], 1 where the first is preferred, 0 where the second is, ½ for a tie.
    Returns: [N, B].
    Raises: ValueError where shapes disagree.
    """
    check_shapes("N B", first=first, second=second, preference=preference)
    return functional.binary_cross_entropy_with_logits(first - second, preference, reduction="none")


def label_cross_entropy(log_odds: Tensor, label: Tensor, weight: Tensor) -> Tensor:
    """Weighted cross-entropy of a label   w (−y log p − (1 − y) log(1 − p)),   p = σ(log-odds).

    One log-odds in place of ONI's two logits, whose difference it is.

    Args:
        log_odds: [N, B].
        label: [N, B], 0 to 1.
        weight: [N, B].
    Returns: [N, B].
    Raises: ValueError where shapes disagree.
    """
    check_shapes("N B", log_odds=log_odds, label=label, weight=weight)
    return weight * functional.binary_cross_entropy_with_logits(log_odds, label, reduction="none")
