"""Value losses of scalars and their slopes, by hand: what ``ValueHead.terms`` and autograd give in torch."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from onibi.learners.numpy_gradients.layers import Rows, array_of
from onibi.learners.value_losses import ValueHead


def value_terms(head: ValueHead, prediction: Rows, target: Rows) -> tuple[dict[str, NDArray[Any]], Rows]:
    """Loss of each row, and its slope by the prediction.

    Args:
        head: a loss that takes scalars.
        prediction: [N, K] float32, contiguous.
        target: [N] float32.
    Returns: ``loss``, ``floor`` and ``clipped`` as in ``LossTerms``, [N] each; slopes [N, K].
    """
    if head.centres is None:
        losses, slopes = regression(head, prediction[:, 0], target)
        terms = {"loss": losses, "floor": np.zeros_like(target), "clipped": np.zeros(target.shape, bool)}
        return terms, slopes[:, None]
    found, slopes_of_logits = head.classification(torch.from_numpy(prediction), torch.from_numpy(target))
    return {name: array_of(each) for name, each in vars(found).items()}, array_of(slopes_of_logits)


def regression(head: ValueHead, prediction: Rows, target: Rows) -> tuple[Rows, Rows]:
    """Half squared error or Huber loss of ``mse`` and ``huber``, and its slope by the prediction; shapes alike."""
    errors = prediction - target
    if head.name == "mse":
        return 0.5 * errors * errors, errors
    delta = np.float32(head.huber_delta)
    slopes = np.clip(errors, -delta, delta)
    return slopes * (errors - 0.5 * slopes), slopes  # ½e² inside, δ(|e| − ½δ) outside
