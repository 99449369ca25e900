"""The networks behind the text encoders, all members of an ensemble at once."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Generator, Tensor
from torch.nn import functional

from onibi.learners.reward_models.member_layers import (
    MemberConvolution,
    MemberEmbedding,
    MemberEncoder,
    MemberGru,
    MemberLinear,
)

_FIRST_KERNEL, _SECOND_KERNEL, _POOL = 7, 3, 3


class BagNetwork(MemberEncoder):
    """ReLU of the scaled sum of a text's token vectors."""

    def __init__(self, generators: Sequence[Generator], tokens: int, width: int) -> None:
        super().__init__()
        self.embedding = MemberEmbedding(generators, tokens, width)
        self.features = width

    def forward(self, tokens: Tensor) -> Tensor:
        """[N, B, W] int → [N, B, width]."""
        return functional.relu(self.embedding.sums(_trimmed(tokens, 1)))


class CharacterConvolutions(MemberEncoder):
    """Embedding → convolution 7 → ReLU → maximum of 3 → convolution 3 → ReLU → maximum over the text.

    Places behind a text's end are 0 after each step, so a score does not depend on the texts it is computed with.
    """

    def __init__(self, generators: Sequence[Generator], tokens: int, embedding: int, width: int) -> None:
        super().__init__()
        self.embedding = MemberEmbedding(generators, tokens, embedding)
        self.first = MemberConvolution(generators, embedding, width, _FIRST_KERNEL)
        self.second = MemberConvolution(generators, width, width, _SECOND_KERNEL)
        self.features = width

    def forward(self, tokens: Tensor) -> Tensor:
        """[N, B, W] int → [N, B, width]."""
        tokens = _trimmed(tokens, _POOL)
        members, rows, width = tokens.shape
        x = self.embedding(tokens).permute(1, 0, 3, 2).reshape(rows, -1, width)
        is_text = (tokens != 0).float().transpose(0, 1).unsqueeze(2)  # [B, N, 1, W]
        x = functional.max_pool1d(self._masked(functional.relu(self.first(x)), is_text), _POOL)
        x = self._masked(functional.relu(self.second(x)), functional.max_pool2d(is_text, (1, _POOL)))
        return x.amax(dim=-1).view(rows, members, -1).transpose(0, 1)

    @staticmethod
    def _masked(x: Tensor, is_text: Tensor) -> Tensor:
        """[B, N · channels, W] times [B, N, 1, W]."""
        rows, members = is_text.shape[:2]
        return (x.view(rows, members, -1, x.shape[-1]) * is_text).flatten(1, 2)


class CharacterGru(MemberEncoder):
    """Embedding → GRU → its last state."""

    def __init__(self, generators: Sequence[Generator], tokens: int, embedding: int, width: int) -> None:
        super().__init__()
        self.embedding = MemberEmbedding(generators, tokens, embedding)
        self.gru = MemberGru(generators, embedding, width)
        self.features = width

    def forward(self, tokens: Tensor) -> Tensor:
        """[N, B, W] int → [N, B, width]."""
        tokens = _trimmed(tokens, 1)
        state: Tensor = self.gru(self.embedding(tokens), (tokens != 0).sum(-1))
        return state


class ScaledVectors(MemberEncoder):
    """Vectors of length 1 in D dimensions, times √D."""

    def __init__(self, dimensions: int) -> None:
        super().__init__()
        self.features = dimensions

    def forward(self, tokens: Tensor) -> Tensor:
        """[N, B, D] float32 → the same times √D."""
        return tokens * math.sqrt(self.features)


class MemberHead(torch.nn.Module):
    """Linear → ReLU, as often as ``hidden`` has entries, and one score."""

    def __init__(self, generators: Sequence[Generator], features: int, hidden: Sequence[int]) -> None:
        super().__init__()
        self.layers = torch.nn.ModuleList()
        for width in hidden:
            self.layers.append(MemberLinear(generators, features, width))
            features = width
        self.score = MemberLinear(generators, features, 1)

    def forward(self, features: Tensor) -> Tensor:
        """[N, B, F] → [N, B]."""
        for layer in self.layers:
            features = functional.relu(layer(features))
        scores: Tensor = self.score(features).squeeze(-1)
        return scores


def _trimmed(tokens: Tensor, multiple: int) -> Tensor:
    """Without the places that pad every text, but for a last multiple; texts fill their rows from the left."""
    longest = max(int((tokens != 0).sum(-1).max()), 1)
    return tokens[..., : min(-(-longest // multiple) * multiple, tokens.shape[-1])]
