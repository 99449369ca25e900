"""Action-value heads: one linear layer, or the dueling pair (Wang et al. 2016, arXiv 1511.06581)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

_INITIAL_WEIGHT_SCALE = 0.01
"""Of PyTorch's default: at the start every action decodes to (nearly) the bias, the value 0."""


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
