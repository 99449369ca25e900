"""Parameters of a module laid out as one vector, and their gradients as another."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn


class FlatParameters:
    """Parameters that are views of one tensor, and gradients that are views of another.

    Args:
        named: of one dtype, on one device; each is moved here with its value.
    """

    def __init__(self, named: Mapping[str, nn.Parameter]) -> None:
        self._named = named
        self._begins: dict[str, int] = {}
        size = 0
        for name, parameter in named.items():
            self._begins[name] = size
            size += parameter.numel()  # without gaps: nobody would write what stands in the gradients' ones
        first = next(iter(named.values()))
        self.values = nn.Parameter(torch.zeros(size, dtype=first.dtype, device=first.device))
        self._gradients = torch.zeros_like(self.values.data)
        for name, parameter in named.items():
            place = self.part(self.values.data, name)
            place.copy_(parameter.data)
            parameter.data = place
        self.clear_gradients()

    def part(self, flat: Tensor, name: str) -> Tensor:
        """A parameter's place in a tensor laid out like ``values``, in the parameter's shape."""
        parameter = self._named[name]
        return flat[self._begins[name] : self._begins[name] + parameter.numel()].view(parameter.shape)

    @torch.no_grad()
    def shorten_gradients(self, largest: float) -> Tensor:
        """As ``clip_grad_norm_``, which mostly looks through its arguments. Returns: the norm before, [] float32."""
        norm: Tensor = torch.linalg.vector_norm(self._gradients)
        self._gradients.mul_((largest / (norm + 1e-6)).clamp_(max=1.0))
        return norm

    def clear_gradients(self) -> None:
        """All gradients 0, where they belong."""
        self._gradients.zero_()
        self.values.grad = self._gradients
        for name, parameter in self._named.items():
            parameter.grad = self.part(self._gradients, name)
