"""Action-value heads: one linear layer or the dueling pair (Wang et al. 2016, arXiv 1511.06581); implicit quantiles.

Each layer may be a noisy one (``noisy.py``): ``noise_size`` normals a row then go in beside the features.

Differences from the papers: the implicit head (IQN, Dabney et al. 2018, arXiv 1806.06923) has no hidden layer behind
the product of features and embedded fractions. So acting, which averages over fixed fractions, costs as much as with
any other head: the mean moves into the embedding. The fractions for acting are midpoints instead of draws.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from onibi.learners.distributional_losses import quantile_midpoints
from onibi.learners.networks.noisy import NoisyLinear, NoisySettings, build_linear
from onibi.learners.shapes import check_shapes
from onibi.learners.value_losses import HeadForm

_INITIAL_WEIGHT_SCALE = 0.01
"""Of PyTorch's default: at the start every action decodes to (nearly) the bias, the value 0."""
_COSINES = 64
"""Of the embedding of a fraction, as in the paper."""


class ActionValueHead(nn.Module):
    """Features [B, F] → outputs [B, A, K] of each action.

    With dueling, outputs = v + a − mean over actions of a. At the start every action decodes to the value of ``bias``.

    Args:
        features: F.
        actions: A.
        bias: [K] float32, outputs that decode to the starting value.
        dueling: separate value and advantage layers.
        noisy: noise on the weights of both, each with its own; None for plain layers.
    """

    def __init__(
        self, features: int, actions: int, bias: Tensor, *, dueling: bool, noisy: NoisySettings | None = None
    ) -> None:
        super().__init__()
        self.actions, self.outputs = actions, len(bias)
        self.value = build_linear(features, self.outputs, noisy) if dueling else None
        self.advantage = build_linear(features, actions * self.outputs, noisy)
        with torch.no_grad():
            self.advantage.weight.mul_(_INITIAL_WEIGHT_SCALE)
            if self.value is None:
                self.advantage.bias.copy_(bias.repeat(actions))
            else:
                self.advantage.bias.zero_()
                self.value.weight.mul_(_INITIAL_WEIGHT_SCALE)
                self.value.bias.copy_(bias)

    @property
    def noise_size(self) -> int:
        """Standard normals that a row of noise has: the advantage layer's, then the value layer's; 0 without noise."""
        return sum(layer.noise_size for layer in (self.advantage, self.value) if isinstance(layer, NoisyLinear))

    def forward(self, features: Tensor, noise: Tensor | None = None) -> Tensor:
        """[B, F] → [B, A, K] float32, under noise [B or 1, noise_size] or by the means."""
        advantage = self._layer(self.advantage, features, noise, 0).view(-1, self.actions, self.outputs)
        if self.value is None:
            return advantage
        begin = self.advantage.noise_size if isinstance(self.advantage, NoisyLinear) else 0
        value = self._layer(self.value, features, noise, begin)
        return advantage + (value[:, None] - advantage.mean(dim=1, keepdim=True))

    def action_values(self, features: Tensor, centres: Tensor | None, noise: Tensor | None = None) -> Tensor:
        """[B, F] → values [B, A]: the mean over the bins' centres, over quantiles, or the only output itself."""
        outputs: Tensor = self(features, noise)
        if centres is not None:
            return torch.softmax(outputs, dim=-1) @ centres
        return outputs.squeeze(-1) if self.outputs == 1 else outputs.mean(-1)

    def mean_sigma(self) -> Tensor | None:
        """[] float32, the noise that is left (``NoisyLinear.mean_sigma``), mean over the layers; None without noise."""
        layers = [layer for layer in (self.advantage, self.value) if isinstance(layer, NoisyLinear)]
        return torch.stack([layer.mean_sigma() for layer in layers]).mean() if layers else None

    @staticmethod
    def _layer(layer: nn.Linear, features: Tensor, noise: Tensor | None, begin: int) -> Tensor:
        if noise is None or not isinstance(layer, NoisyLinear):
            return layer(features)  # type: ignore[no-any-return]
        return layer(features, noise[:, begin : begin + layer.noise_size])  # type: ignore[no-any-return]


class ImplicitQuantileHead(nn.Module):
    """Features [B, F] and fractions [B, N] → quantiles [B, A, N] of each action's return.

    Args:
        features: F.
        actions: A.
        fractions: number of midpoints that acting averages over.
        dueling: separate value and advantage layers.
        noisy: noise on the weights of both; None for plain layers. All quantiles of a row share it.
    """

    fractions: Tensor

    def __init__(
        self, features: int, actions: int, fractions: int, *, dueling: bool, noisy: NoisySettings | None = None
    ) -> None:
        super().__init__()
        self.embedding = nn.Linear(_COSINES, features)
        self.values = ActionValueHead(features, actions, torch.zeros(1), dueling=dueling, noisy=noisy)
        self.register_buffer("fractions", quantile_midpoints(fractions))

    @property
    def noise_size(self) -> int:
        """As the other head's."""
        return self.values.noise_size

    def forward(self, features: Tensor, fractions: Tensor | None = None, noise: Tensor | None = None) -> Tensor:
        """[B, F], [B, N] → [B, A, N] float32; without fractions at the midpoints."""
        if fractions is None:
            fractions = self.fractions.expand(len(features), -1)
        check_shapes("B N", fractions=fractions)
        product = features[:, None, :] * self._embedded(fractions)
        if noise is not None and len(noise) > 1:
            noise = noise.repeat_interleave(fractions.shape[1], dim=0)
        outputs: Tensor = self.values(product.flatten(0, 1), noise).view(*fractions.shape, -1)
        return outputs.transpose(1, 2)

    def action_values(
        self,
        features: Tensor,
        centres: Tensor | None,  # noqa: ARG002 - as the other head's
        noise: Tensor | None = None,
    ) -> Tensor:
        """[B, F] → values [B, A]: the mean at the midpoints. Behind the product all is linear, so it is taken first."""
        values: Tensor = self.values(features * self._embedded(self.fractions).mean(dim=0), noise).squeeze(-1)
        return values

    def mean_sigma(self) -> Tensor | None:
        """As the other head's."""
        return self.values.mean_sigma()

    def _embedded(self, fractions: Tensor) -> Tensor:
        """[...] → [..., F]: ReLU of a linear layer over cos(π i τ), i from 0."""
        orders = torch.arange(_COSINES, dtype=fractions.dtype, device=fractions.device)
        return torch.relu(self.embedding(torch.cos(math.pi * orders * fractions[..., None])))


def build_head(
    form: HeadForm, features: int, actions: int, bias: Tensor, *, dueling: bool, noisy: NoisySettings | None = None
) -> ActionValueHead | ImplicitQuantileHead:
    """The head of a form, freshly initialised.

    Args:
        form: what it emits.
        features: F.
        actions: A.
        bias: [K] float32, outputs that decode to the starting value; an implicit head starts at 0.
        dueling: separate value and advantage layers.
        noisy: noise on the weights of both; None for plain layers.
    """
    if form.implicit:
        return ImplicitQuantileHead(features, actions, form.outputs, dueling=dueling, noisy=noisy)
    return ActionValueHead(features, actions, bias, dueling=dueling, noisy=noisy)
