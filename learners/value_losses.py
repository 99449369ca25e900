"""Value losses by name: what a value head emits, how it is read, and what it is taught.

``mse`` and ``huber`` regress on the scalar. ``hl_gauss`` (Farebrother et al. 2024, arXiv 2403.03950) classifies: the
target is a Gaussian around the scalar, histogrammed over the bins of the support.

Differences from the paper: targets outside the support are clamped to it and counted (unclamped they tend to 0/0); σ
may be given in value units; the head starts at value 0 instead of the middle of the support.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from onibi.learners.shapes import check_shapes
from onibi.learners.support import Support

ValueLossName = Literal["hl_gauss", "mse", "huber"]
_INITIAL_SPREAD = 1e-3
"""Probability spread over all bins at the start: 0 would start logits at −∞, much more would start values above 0."""


def mse(prediction: Tensor, target: Tensor) -> Tensor:
    """Half squared error  ½(v − y)².

    Args:
        prediction: [B] float32.
        target: [B] float32, no gradient flows into it.
    Returns: [B] float32. Raises: ValueError where shapes disagree.
    """
    check_shapes("B", prediction=prediction, target=target)
    return 0.5 * (prediction - target.detach()) ** 2


def huber(prediction: Tensor, target: Tensor, delta: float) -> Tensor:
    """Huber loss: ½e² for |e| ≤ δ, else δ(|e| − ½δ), with e = v − y.

    Args:
        prediction: [B] float32.
        target: [B] float32, no gradient flows into it.
        delta: δ > 0 in value units.
    Returns: [B] float32. Raises: ValueError where shapes disagree.
    """
    check_shapes("B", prediction=prediction, target=target)
    return functional.huber_loss(prediction, target.detach(), reduction="none", delta=delta)


def hl_gauss_target(value: Tensor, edges: Tensor, sigma: float) -> Tensor:
    """Probabilities of the bins  p_i = [Φ((e_i − y)/σ) − Φ((e_{i−1} − y)/σ)] / [Φ((e_m − y)/σ) − Φ((e_0 − y)/σ)].

    Args:
        value: [B] float32 y, clamped to [e_0, e_m] (outside, the quotient tends to 0/0).
        edges: [m + 1] float32, rising.
        sigma: σ > 0 in value units.
    Returns: [B, m] float32 without gradient, rows sum to 1. Raises: ValueError where shapes disagree.
    """
    check_shapes("B", value=value)
    check_shapes("edge", edges=edges)
    clamped = value.detach().clamp(edges[0], edges[-1])
    distance = (edges - clamped[:, None]) / (sigma * math.sqrt(2.0))
    # Φ(b) − Φ(a) cancels in float32 where both are near 1: erfc(|x|) takes the difference between small numbers.
    tail = torch.erfc(distance.abs())
    left, right = tail[:, :-1], tail[:, 1:]
    straddles = (distance[:, :-1] < 0) & (distance[:, 1:] >= 0)
    mass = torch.where(straddles, 2.0 - left - right, (left - right).abs())
    return mass / mass.sum(dim=1, keepdim=True)


def cross_entropy(logits: Tensor, probabilities: Tensor) -> Tensor:
    """−Σ_i stop_grad(p_i) · log softmax(logits)_i.

    Args:
        logits: [B, K] float32.
        probabilities: [B, K] float32, rows sum to 1.
    Returns: [B] float32 in nats. Raises: ValueError where shapes disagree.
    """
    check_shapes("B K", logits=logits, probabilities=probabilities)
    return -(probabilities.detach() * functional.log_softmax(logits, dim=1)).sum(dim=1)


def entropy(probabilities: Tensor) -> Tensor:
    """−Σ_i p_i log p_i, the least that a cross-entropy with this target can be.

    Args:
        probabilities: [B, K] float32, rows sum to 1.
    Returns: [B] float32 in nats. Raises: ValueError where the shape is another.
    """
    check_shapes("B K", probabilities=probabilities)
    return -torch.xlogy(probabilities, probabilities).sum(dim=1)


@dataclass(frozen=True)
class LossTerms:
    """What one value loss gives for a batch.

    Args:
        loss: [B] float32, with gradient.
        floor: [B] float32, the least that ``loss`` can be (0 for regressions).
        clipped: [B] bool, whether the target lay outside the support.
    """

    loss: Tensor
    floor: Tensor
    clipped: Tensor


class ValueHead:
    """A value loss with the form of the head that it teaches.

    Args:
        name: the loss.
        support: bins, needed by ``hl_gauss`` alone.
        sigma: width of the Gaussian in value units, ``hl_gauss`` alone.
        huber_delta: δ, ``huber`` alone.
    """

    def __init__(self, name: ValueLossName, support: Support | None, sigma: float, huber_delta: float) -> None:
        self.name = name
        self.support = support
        self.sigma = sigma
        self.huber_delta = huber_delta
        if name == "hl_gauss":
            if support is None:
                raise ValueError("hl_gauss needs a support")
            self.outputs = support.bins
            self._edges = torch.tensor(support.edges, dtype=torch.float32)
            self.centres: Tensor | None = torch.tensor(support.centres, dtype=torch.float32)
        else:
            self.outputs = 1
            self._edges = torch.zeros(0)
            self.centres = None

    def to(self, device: torch.device) -> ValueHead:
        """Move the bins to a device; returns itself."""
        self._edges = self._edges.to(device)
        if self.centres is not None:
            self.centres = self.centres.to(device)
        return self

    def decode(self, prediction: Tensor) -> Tensor:
        """Values that outputs stand for: softmax expectation over the centres, or the scalar itself.

        Args:
            prediction: [..., K] float32.
        Returns: [...] float32; gradients flow.
        """
        if self.centres is None:
            return prediction.squeeze(-1)
        return torch.softmax(prediction, dim=-1) @ self.centres

    def initial_bias(self) -> Tensor:
        """[K] float32 outputs that decode to 0, or to the end of the support nearest to it."""
        if self.centres is None:
            return torch.zeros(1)
        probabilities = hl_gauss_target(torch.zeros(1, device=self._edges.device), self._edges, self.sigma)[0]
        return (probabilities + _INITIAL_SPREAD / self.outputs).log().cpu()

    def terms(self, prediction: Tensor, target: Tensor) -> LossTerms:
        """Loss of each row, its floor, and which targets were clipped.

        Args:
            prediction: [B, K] float32.
            target: [B] float32.
        Raises: ValueError where shapes disagree.
        """
        if self.name == "hl_gauss":
            probabilities = hl_gauss_target(target, self._edges, self.sigma)
            clipped = (target < self._edges[0]) | (target > self._edges[-1])
            return LossTerms(cross_entropy(prediction, probabilities), entropy(probabilities), clipped)
        scalar = self.decode(prediction)
        loss = mse(scalar, target) if self.name == "mse" else huber(scalar, target, self.huber_delta)
        return LossTerms(loss, torch.zeros_like(target), torch.zeros_like(target, dtype=torch.bool))
