"""How an optimizer holds a module's parameters: each by itself, or all laid out as one vector."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping

import torch
from torch import Tensor, nn


class ParameterLayout(ABC):
    """Named parameters, and the tensors that the optimizer moves in their place."""

    optimized: list[Tensor]
    """What the optimizer is given; its ``grad`` is all parameters' gradient."""

    def __init__(self, named: Mapping[str, nn.Parameter]) -> None:
        self._named = named

    @abstractmethod
    def owner(self, name: str) -> Tensor:
        """The one of ``optimized`` that a parameter is a part of."""

    @abstractmethod
    def part(self, whole: Tensor, name: str) -> Tensor:
        """A parameter's place in a tensor laid out like its owner, in the parameter's shape; a view."""

    @abstractmethod
    def shorten_gradients(self, largest: float) -> Tensor:
        """Scale all gradients to a common norm of at most ``largest``. Returns: the norm before, [] float32."""

    @abstractmethod
    def clear_gradients(self) -> None:
        """Forget all gradients."""

    @abstractmethod
    def put_gradient(self, name: str, gradient: Tensor | None) -> None:
        """Give a parameter a copy of a gradient; None where it has none."""


class SeparateParameters(ParameterLayout):
    """Each parameter by itself, as PyTorch has it."""

    def __init__(self, named: Mapping[str, nn.Parameter]) -> None:
        super().__init__(named)
        self.optimized = list(named.values())

    def owner(self, name: str) -> Tensor:
        """The parameter itself."""
        return self._named[name]

    def part(self, whole: Tensor, name: str) -> Tensor:  # noqa: ARG002
        """All of it."""
        return whole

    def shorten_gradients(self, largest: float) -> Tensor:
        """By ``clip_grad_norm_``."""
        return nn.utils.clip_grad_norm_(self.optimized, largest)

    def clear_gradients(self) -> None:
        """No parameter has a gradient then."""
        for parameter in self.optimized:
            parameter.grad = None

    def put_gradient(self, name: str, gradient: Tensor | None) -> None:
        """A copy on the parameter's device."""
        parameter = self._named[name]
        parameter.grad = None if gradient is None else gradient.clone().to(parameter.device)


class FlatParameters(ParameterLayout):
    """Parameters that are views of one tensor, and gradients that are views of another.

    Args:
        named: of one dtype, on one device; each is moved here with its value.
    """

    def __init__(self, named: Mapping[str, nn.Parameter]) -> None:
        super().__init__(named)
        self._begins: dict[str, int] = {}
        size = 0
        for name, parameter in named.items():
            self._begins[name] = size
            size += parameter.numel()  # without gaps: nobody would write what stands in the gradients' ones
        first = next(iter(named.values()))
        self.values = nn.Parameter(torch.zeros(size, dtype=first.dtype, device=first.device))
        self.optimized = [self.values]
        self._gradients = torch.zeros_like(self.values.data)
        for name, parameter in named.items():
            place = self.part(self.values.data, name)
            place.copy_(parameter.data)
            parameter.data = place
        self.clear_gradients()

    def owner(self, name: str) -> Tensor:  # noqa: ARG002
        """The one vector."""
        return self.values

    def part(self, whole: Tensor, name: str) -> Tensor:
        """A piece of a vector as long as ``values``."""
        parameter = self._named[name]
        return whole[self._begins[name] : self._begins[name] + parameter.numel()].view(parameter.shape)

    @torch.no_grad()
    def shorten_gradients(self, largest: float) -> Tensor:
        """As ``clip_grad_norm_``, which mostly looks through its arguments."""
        norm: Tensor = torch.linalg.vector_norm(self._gradients)
        self._gradients.mul_((largest / (norm + 1e-6)).clamp_(max=1.0))
        return norm

    def clear_gradients(self) -> None:
        """All gradients 0, where they belong."""
        self._gradients.zero_()
        self.values.grad = self._gradients
        for name, parameter in self._named.items():
            parameter.grad = self.part(self._gradients, name)

    def put_gradient(self, name: str, gradient: Tensor | None) -> None:
        """Into the vector of gradients; 0 for None."""
        place = self.part(self._gradients, name)
        if gradient is None:
            place.zero_()
        else:
            place.copy_(gradient)
