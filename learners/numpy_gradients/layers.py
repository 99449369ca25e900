"""Forward and backward pass of a ``Trunk`` and of linear heads in NumPy, on the memory of the torch module itself.

A small network's step in torch is mostly the fixed cost of some hundred operations and of autograd's records of them.
Here every layer keeps what its backward pass needs in buffers that are used again, and writes gradients where Adam
reads them. Parameters are read where they lie: what moves them in place moves them here.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from onibi.learners.networks.mlp import Trunk

Rows = NDArray[np.float32]


class ParameterGradients:
    """The parameters that layers read, and the gradients that they write."""

    def __init__(self) -> None:
        self._pairs: list[tuple[Tensor, Tensor]] = []

    def arrays(self, parameter: Tensor) -> tuple[Rows, Rows]:
        """A parameter and its gradient to be, both on torch's memory."""
        gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        self._pairs.append((parameter, gradient))
        return parameter.detach().numpy(), gradient.numpy()

    def give(self) -> None:
        """Make what was written the parameters' ``grad``, whatever that was since."""
        for parameter, gradient in self._pairs:
            parameter.grad = gradient


class Heads:
    """Linear layers that read the same features, as one: Σ widths = W outputs side by side.

    Args:
        linears: the layers.
        gradients: where their gradients are kept.
    """

    def __init__(self, linears: Sequence[nn.Linear], gradients: ParameterGradients) -> None:
        self._weights = [gradients.arrays(linear.weight) for linear in linears]
        self._biases = [gradients.arrays(linear.bias) for linear in linears]
        self._weight = self._bias = np.empty(0, np.float32)

    def forward(self, features: Rows) -> Rows:
        """[N, F] → [N, W]."""
        self._weight = np.concatenate([weight for weight, _ in self._weights])
        self._bias = np.concatenate([bias for bias, _ in self._biases])
        # Laid out for row vectors: for so narrow a product the copy costs less than the transposed read.
        outputs: Rows = features @ np.ascontiguousarray(self._weight.T)
        outputs += self._bias
        return outputs

    def backward(self, features: Rows, slopes: Rows, ones: Rows, out: Rows) -> None:
        """Write the gradients, and into ``out`` [N, F] the slopes by the features.

        Args:
            features: [N, F], as given to ``forward``.
            slopes: [N, W], of the loss by what ``forward`` gave.
            ones: [N] of 1.
            out: [N, F].
        """
        weight_gradients, bias_gradients = slopes.T @ features, ones @ slopes
        at = 0
        for (weight, weight_gradient), (_, bias_gradient) in zip(self._weights, self._biases, strict=True):
            weight_gradient[:] = weight_gradients[at : at + len(weight)]
            bias_gradient[:] = bias_gradients[at : at + len(weight)]
            at += len(weight)
        np.matmul(slopes, self._weight, out=out)


class Linear:
    """A linear layer; its caller keeps the inputs.

    Args:
        linear: the layer.
        gradients: where its gradients are kept.
    """

    def __init__(self, linear: nn.Linear, gradients: ParameterGradients) -> None:
        self.weight, self._weight_gradient = gradients.arrays(linear.weight)
        self.bias, self._bias_gradient = gradients.arrays(linear.bias)

    def forward(self, inputs: Rows, out: Rows | None = None) -> Rows:
        """[N, F] → [N, W], into ``out`` where that is given."""
        outputs: Rows = np.matmul(inputs, self.weight.T, out=out)
        outputs += self.bias
        return outputs

    def backward(self, inputs: Rows, slopes: Rows, ones: Rows) -> None:
        """Write the gradients: of ``inputs`` [N, F], from slopes [N, W] by the outputs; ``ones`` is [N] of 1."""
        np.matmul(slopes.T, inputs, out=self._weight_gradient)
        np.matmul(ones, slopes, out=self._bias_gradient)  # the sum over rows, faster


class _LayerNorm:
    """(x − mean)/√(variance + ε) · γ + β over the last axis (Ba et al. 2016, arXiv 1607.06450)."""

    def __init__(self, norm: nn.LayerNorm, gradients: ParameterGradients) -> None:
        self._scale, self._scale_gradient = gradients.arrays(norm.weight)
        self._shift, self._shift_gradient = gradients.arrays(norm.bias)
        self._epsilon = np.float32(norm.eps)
        self._shares = np.full(len(self._scale), 1.0 / len(self._scale), np.float32)  # products give means, faster
        self._normalised = np.empty((0, 0), np.float32)
        self._inverse = np.empty((0, 1), np.float32)

    def forward(self, rows: Rows) -> None:
        """In place."""
        if self._normalised.shape != rows.shape:
            self._normalised = np.empty_like(rows)
        rows -= (rows @ self._shares)[:, None]
        variance = np.einsum("nf,nf->n", rows, rows) / np.float32(rows.shape[1])
        # A variance that overflowed would turn its row into zeros, as if nothing were wrong: 0 · ∞ makes it NaN.
        self._inverse = (1.0 / np.sqrt(variance + self._epsilon) + np.float32(0.0) * variance)[:, None]
        np.multiply(rows, self._inverse, out=self._normalised)
        np.multiply(self._normalised, self._scale, out=rows)
        rows += self._shift

    def backward(self, slopes: Rows, ones: Rows) -> None:
        """In place: from slopes by what ``forward`` gave to slopes by what it was given."""
        normalised = self._normalised
        np.matmul(ones, slopes, out=self._shift_gradient)
        np.matmul(ones, slopes * normalised, out=self._scale_gradient)
        slopes *= self._scale
        along = np.einsum("nf,nf->n", slopes, normalised) / np.float32(slopes.shape[1])
        slopes -= (slopes @ self._shares)[:, None]
        normalised *= along[:, None]
        slopes -= normalised
        slopes *= self._inverse


class Activated:
    """LayerNorm (where there is one) → ReLU or tanh, over the buffers of a layer's outputs.

    Args:
        width: of the outputs.
        norm: a LayerNorm, or anything else for none.
        gradients: where its gradients are kept.
        tanh: instead of ReLU.
    """

    def __init__(self, width: int, norm: nn.Module, gradients: ParameterGradients, *, tanh: bool) -> None:
        self._width, self._tanh = width, tanh
        self._norm = _LayerNorm(norm, gradients) if isinstance(norm, nn.LayerNorm) else None
        self.outputs: Rows = np.empty((0, width), np.float32)
        """[N, width], to be filled with what goes in."""
        self.slopes: Rows = np.empty((0, width), np.float32)
        """[N, width], to write slopes by what came out into."""

    def of_rows(self, rows: int) -> Rows:
        """``outputs`` for so many rows."""
        if len(self.outputs) != rows:
            self.outputs = np.empty((rows, self._width), np.float32)
            self.slopes = np.empty_like(self.outputs)
        return self.outputs

    def forward(self) -> Rows:
        """What comes out, in place of what stood in ``outputs``."""
        outputs = self.outputs
        if self._norm is not None:
            self._norm.forward(outputs)
        if self._tanh:
            np.tanh(outputs, out=outputs)
        else:
            np.maximum(outputs, 0.0, out=outputs)
        return outputs

    def backward(self, ones: Rows) -> Rows:
        """``slopes``, by what went in instead of by what came out; ``ones`` is [N] of 1."""
        slopes, outputs = self.slopes, self.outputs
        if self._tanh:  # 1 − tanh²; the outputs are not needed any more
            outputs *= outputs
            np.subtract(1.0, outputs, out=outputs)
            slopes *= outputs
        else:
            slopes *= outputs > 0.0
        if self._norm is not None:
            self._norm.backward(slopes, ones)
        return slopes


class _Layer:
    """Linear → LayerNorm (where there is one) → ReLU or tanh."""

    def __init__(self, linear: nn.Linear, norm: nn.Module, gradients: ParameterGradients, *, tanh: bool) -> None:
        self._linear = Linear(linear, gradients)
        self.activated = Activated(linear.out_features, norm, gradients, tanh=tanh)
        self._inputs = np.empty((0, 0), np.float32)

    def forward(self, inputs: Rows) -> Rows:
        self._inputs = inputs
        self._linear.forward(inputs, self.activated.of_rows(len(inputs)))
        return self.activated.forward()

    def backward(self, ones: Rows) -> Rows:
        """Slopes by what the linear layer gave, from those by the outputs; ``ones`` is [N] of 1."""
        slopes = self.activated.backward(ones)
        self._linear.backward(self._inputs, slopes, ones)
        return slopes

    def input_slopes(self, slopes: Rows, out: Rows) -> None:
        """Slopes by what the linear layer gave → slopes by the layer's inputs, into ``out``."""
        np.matmul(slopes, self._linear.weight, out=out)


class TrunkLayers:
    """All layers of a ``Trunk``.

    Args:
        trunk: with one layer at least.
        gradients: where its gradients are kept.
    """

    def __init__(self, trunk: Trunk, gradients: ParameterGradients) -> None:
        self._layers = tuple(_make_layers(trunk, gradients))

    def forward(self, features: Rows) -> Rows:
        """[N, F] → [N, last width]; kept for ``backward``, which overwrites it."""
        for layer in self._layers:
            features = layer.forward(features)
        return features

    @property
    def slopes(self) -> Rows:
        """[N, last width], where to write the slopes of the loss by what ``forward`` gave."""
        return self._layers[-1].activated.slopes

    def backward(self, ones: Rows, out: Rows | None = None) -> None:
        """Write all gradients, from what stands in ``slopes``; once after each ``forward``.

        Args:
            ones: [N] of 1.
            out: [N, F] for the slopes by the features that ``forward`` was given; None where nobody asks for them.
        """
        places = (out, *(layer.activated.slopes for layer in self._layers[:-1]))
        for layer, place in zip(reversed(self._layers), reversed(places), strict=True):
            slopes = layer.backward(ones)
            if place is not None:
                layer.input_slopes(slopes, place)


def _make_layers(trunk: Trunk, gradients: ParameterGradients) -> Iterator[_Layer]:
    for linear, norm in zip(trunk.linear, trunk.norm, strict=True):
        assert isinstance(linear, nn.Linear), "a trunk is linear layers"
        yield _Layer(linear, norm, gradients, tanh=trunk.saturating)


def array_of(tensor: Tensor) -> NDArray[Any]:
    """A tensor on the CPU as an array on the same memory."""
    return tensor.detach().numpy()
