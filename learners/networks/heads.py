"""Action-value heads: one linear layer or the dueling pair (Wang et al. 2016, arXiv 1511.06581); implicit quantiles.

Differences from the papers: the implicit head (IQN, Dabney et al. 2018, arXiv 1806.06923) has no hidden layer behind
the product of features and embedded fractions. So acting, which averages over fixed fractions, costs as much as with
any other head: the mean moves into the embedding. The fractions for acting are midpoints instead of draws.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from onibi.learners.distributional_losses import quantile_midpoints
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
    """

    def __init__(self, features: int, actions: int, bias: Tensor, *, dueling: bool) -> None:
        super().__init__()
        self.actions, self.outputs = actions, len(bias)
        self.value = nn.Linear(features, self.outputs) if dueling else None
        self.advantage = nn.Linear(features, actions * self.outputs)
        with torch.no_grad():
            self.advantage.weight.mul_(_INITIAL_WEIGHT_SCALE)
            if self.value is None:
                self.advantage.bias.copy_(bias.repeat(actions))
            else:
                self.advantage.bias.zero_()
                self.value.weight.mul_(_INITIAL_WEIGHT_SCALE)
                self.value.bias.copy_(bias)

    def forward(self, features: Tensor) -> Tensor:
        """[B, F] → [B, A, K] float32."""
        advantage: Tensor = self.advantage(features).view(-1, self.actions, self.outputs)
        if self.value is None:
            return advantage
        value: Tensor = self.value(features)
        return advantage + (value[:, None] - advantage.mean(dim=1, keepdim=True))

    def action_values(self, features: Tensor, centres: Tensor | None) -> Tensor:
        """[B, F] → values [B, A]: the mean over the bins' centres, over quantiles, or the only output itself."""
        outputs: Tensor = self(features)
        if centres is not None:
            return torch.softmax(outputs, dim=-1) @ centres
        return outputs.squeeze(-1) if self.outputs == 1 else outputs.mean(-1)


class ImplicitQuantileHead(nn.Module):
    """Features [B, F] and fractions [B, N] → quantiles [B, A, N] of each action's return.

    Args:
        features: F.
        actions: A.
        fractions: number of midpoints that acting averages over.
        dueling: separate value and advantage layers.
    """

    fractions: Tensor

    def __init__(self, features: int, actions: int, fractions: int, *, dueling: bool) -> None:
        super().__init__()
        self.embedding = nn.Linear(_COSINES, features)
        self.values = ActionValueHead(features, actions, torch.zeros(1), dueling=dueling)
        self.register_buffer("fractions", quantile_midpoints(fractions))

    def forward(self, features: Tensor, fractions: Tensor | None = None) -> Tensor:
        """[B, F], [B, N] → [B, A, N] float32; without fractions at the midpoints."""
        if fractions is None:
            fractions = self.fractions.expand(len(features), -1)
        check_shapes("B N", fractions=fractions)
        product = features[:, None, :] * self._embedded(fractions)
        outputs: Tensor = self.values(product.flatten(0, 1)).view(*fractions.shape, -1)
        return outputs.transpose(1, 2)

    def action_values(self, features: Tensor, centres: Tensor | None) -> Tensor:  # noqa: ARG002 - as the other head's
        """[B, F] → values [B, A]: the mean at the midpoints. Behind the product all is linear, so it is taken first."""
        values: Tensor = self.values(features * self._embedded(self.fractions).mean(dim=0)).squeeze(-1)
        return values

    def _embedded(self, fractions: Tensor) -> Tensor:
        """[...] → [..., F]: ReLU of a linear layer over cos(π i τ), i from 0."""
        orders = torch.arange(_COSINES, dtype=fractions.dtype, device=fractions.device)
        return torch.relu(self.embedding(torch.cos(math.pi * orders * fractions[..., None])))


def build_head(
    form: HeadForm, features: int, actions: int, bias: Tensor, *, dueling: bool
) -> ActionValueHead | ImplicitQuantileHead:
    """The head of a form, freshly initialised.

    Args:
        form: what it emits.
        features: F.
        actions: A.
        bias: [K] float32, outputs that decode to the starting value; an implicit head starts at 0.
        dueling: separate value and advantage layers.
    """
    if form.implicit:
        return ImplicitQuantileHead(features, actions, form.outputs, dueling=dueling)
    return ActionValueHead(features, actions, bias, dueling=dueling)
