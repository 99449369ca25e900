"""Layers of several networks at once: the members of an ensemble side by side in one tensor, sharing nothing.

Every parameter is [N, …], member m's being what a network of its own would have; so N small networks cost one call of
each operation instead of N.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional


class MemberEncoder(nn.Module):
    """Base of encoders: tokens [N, B, W] → features [N, B, F]. ``features`` is F."""

    features: int

    def forward(self, tokens: Tensor) -> Tensor:
        """[N, B, W] → [N, B, F] float32."""
        raise NotImplementedError


class MemberLinear(nn.Module):
    """x W + b of each member.

    Args:
        generators: one a member, for its first parameters: U(−1/√F, 1/√F).
        inputs: F.
        outputs: O.
    """

    def __init__(self, generators: Sequence[Generator], inputs: int, outputs: int) -> None:
        super().__init__()
        bound = 1 / math.sqrt(inputs)
        self.weight = nn.Parameter(uniform(generators, (inputs, outputs), bound))
        self.bias = nn.Parameter(uniform(generators, (1, outputs), bound))

    def forward(self, x: Tensor) -> Tensor:
        """[N, B, F] → [N, B, O]."""
        return torch.baddbmm(self.bias, x, self.weight)


class MemberEmbedding(nn.Module):
    """A vector for each token; token 0 pads and is the zero vector.

    Args:
        generators: as of ``MemberLinear``; entries are N(0, 1/√D).
        tokens: V.
        width: D.
    """

    def __init__(self, generators: Sequence[Generator], tokens: int, width: int) -> None:
        super().__init__()
        drawn = [torch.randn(tokens, width, generator=each) / math.sqrt(width) for each in generators]
        self.weight = nn.Parameter(torch.stack(drawn))

    def forward(self, tokens: Tensor) -> Tensor:
        """[N, B, W] int → [N, B, W, D]."""
        vectors = functional.embedding(self._rows(tokens), self.weight.flatten(0, 1))
        return vectors * (tokens != 0).unsqueeze(-1)

    def sums(self, tokens: Tensor) -> Tensor:
        """Σ over a text's tokens / √(their number), [N, B, W] int → [N, B, D]; 0 for a text without any."""
        present = (tokens != 0).float()
        scale = present / present.sum(-1, keepdim=True).clamp(min=1).sqrt()
        flat = functional.embedding_bag(
            self._rows(tokens).flatten(0, 1),
            self.weight.flatten(0, 1),
            mode="sum",
            per_sample_weights=scale.flatten(0, 1),
        )
        sums: Tensor = flat.view(*tokens.shape[:2], -1)
        return sums

    def _rows(self, tokens: Tensor) -> Tensor:
        """Member m's tokens as rows of the table of all members."""
        members, vocabulary, _ = self.weight.shape
        return tokens.long() + (torch.arange(members) * vocabulary)[:, None, None]


class MemberConvolution(nn.Module):
    """Convolution along a text, padded so that its length stays.

    Args:
        generators: as of ``MemberLinear``, with F = inputs · kernel.
        inputs, outputs: channels.
        kernel: odd width.
    """

    def __init__(self, generators: Sequence[Generator], inputs: int, outputs: int, kernel: int) -> None:
        super().__init__()
        bound = 1 / math.sqrt(inputs * kernel)
        self.weight = nn.Parameter(uniform(generators, (outputs, inputs, kernel), bound))
        self.bias = nn.Parameter(uniform(generators, (outputs,), bound))

    def forward(self, x: Tensor) -> Tensor:
        """[B, N · inputs, W] → [B, N · outputs, W]."""
        weight, bias = self.weight.flatten(0, 1), self.bias.flatten()
        padding = self.weight.shape[-1] // 2
        return functional.conv1d(x, weight, bias, padding=padding, groups=len(self.weight))


class MemberGru(nn.Module):
    """A gated recurrent unit (Cho et al., arXiv 1406.1078); its last state before a text's padding.

    Args:
        generators: as of ``MemberLinear``.
        inputs: D.
        width: H.
    """

    def __init__(self, generators: Sequence[Generator], inputs: int, width: int) -> None:
        super().__init__()
        self.of_input = MemberLinear(generators, inputs, 3 * width)
        self.of_state = MemberLinear(generators, width, 3 * width)
        self.width = width

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        """[N, B, W, D] and lengths [N, B] → [N, B, H]."""
        members, rows, width, _ = x.shape
        gates = self.of_input(x.flatten(1, 2)).view(members, rows, width, -1)
        state = x.new_zeros(members, rows, self.width)
        for place in range(width):
            reset_in, update_in, new_in = gates[:, :, place].chunk(3, dim=-1)
            reset_of, update_of, new_of = self.of_state(state).chunk(3, dim=-1)
            update = torch.sigmoid(update_in + update_of)
            candidate = torch.tanh(new_in + torch.sigmoid(reset_in + reset_of) * new_of)
            following = (1 - update) * candidate + update * state
            state = torch.where((lengths > place).unsqueeze(-1), following, state)
        return state


def uniform(generators: Sequence[Generator], shape: tuple[int, ...], bound: float) -> Tensor:
    """[N, *shape], U(−bound, bound), member m's drawn from generator m."""
    return torch.stack([(2 * torch.rand(shape, generator=each) - 1) * bound for each in generators])
