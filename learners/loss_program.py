"""Runs a learner's loss and the step behind it: plainly, compiled, or recorded once as a CUDA graph and replayed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Generic, TypeAlias, TypeVar

import torch
from torch import Tensor

from onibi.learners.acceleration import AccelerationSettings
from onibi.learners.gradient_step import GradientStep, StepResult

Details = TypeVar("Details")
Inputs: TypeAlias = "Mapping[str, Mapping[str, Tensor]]"
"""What a loss reads, by group and name; the shapes are the same at every step."""

_PLAIN_STEPS = 3
"""Before recording: libraries choose their kernels and workspaces, Adam makes its moments."""


def changes_any_of(learner: object, owner: type, methods: Iterable[str]) -> bool:
    """Whether a learner's class, perhaps a user's, has other ``methods`` than ``owner``, whose gradient is by hand."""
    return any(getattr(type(learner), name) is not getattr(owner, name) for name in methods)


class LossProgram(Generic[Details]):
    """``step(inputs)`` = loss, backward pass, Adam.

    Args:
        losses: inputs → (loss [] float32, whatever the learner wants to look at: tensors). Reads nothing on the host
            that changes from step to step, draws no random numbers on the host: those are inputs.
        gradient: makes the step.
        acceleration: plain, compiled or as a graph.
        by_hand: gives the same as ``losses`` without a backward pass to follow: it leaves the gradients in the
            parameters' ``grad``. None: autograd finds them.
    """

    def __init__(
        self,
        losses: Callable[[Inputs], tuple[Tensor, Details]],
        gradient: GradientStep,
        acceleration: AccelerationSettings,
        by_hand: Callable[[Inputs], tuple[Tensor, Details]] | None = None,
    ) -> None:
        self._losses = torch.compile(losses) if acceleration.compile == "default" else losses
        self._gradient, self._by_hand = gradient, by_hand
        self._graphs = acceleration.compile == "graphs"
        self._plain_steps = 0
        self._recorded: _Recorded[Details] | None = None

    def step(self, inputs: Inputs) -> tuple[StepResult, Details]:
        """One step. As a graph, the details are overwritten by the next one. Raises: NonFiniteError."""
        if self._by_hand is not None:
            loss, details = self._by_hand(inputs)
            return self._gradient.step_by(loss), details
        if not self._graphs:
            loss, details = self._losses(inputs)
            return self._gradient.step(loss), details
        if self._plain_steps < _PLAIN_STEPS:
            self._plain_steps += 1
            return self._on_a_side_stream(inputs)
        if self._recorded is None:
            self._recorded = _Recorded(inputs, self._move)
        finite, gradient_norm, details = self._recorded.replay(inputs)
        return self._gradient.book(finite, gradient_norm), details

    def _move(self, inputs: Inputs) -> tuple[Tensor, Tensor, Details]:
        loss, details = self._losses(inputs)
        return *self._gradient.move(loss), details

    def _on_a_side_stream(self, inputs: Inputs) -> tuple[StepResult, Details]:
        # What is recorded later must not have been tied to the default stream by a backward pass before.
        main = torch.cuda.current_stream()
        side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        side.wait_stream(main)
        with torch.cuda.stream(side):
            finite, gradient_norm, details = self._move(inputs)
        main.wait_stream(side)
        return self._gradient.book(finite, gradient_norm), details


class _Recorded(Generic[Details]):
    """A CUDA graph of one step, with the memory that it reads from."""

    def __init__(self, inputs: Inputs, move: Callable[[Inputs], tuple[Tensor, Tensor, Details]]) -> None:
        self._inputs = {
            group: {name: torch.empty_like(tensor) for name, tensor in members.items()}
            for group, members in inputs.items()
        }
        self._graph = torch.cuda.CUDAGraph()
        # Of this thread alone: the one that draws batches ahead may allocate meanwhile, which "global" makes an error.
        # Nothing is computed here, so the memory may still hold anything.
        with torch.cuda.graph(self._graph, capture_error_mode="thread_local"):
            self._outputs = move(self._inputs)

    def replay(self, inputs: Inputs) -> tuple[Tensor, Tensor, Details]:
        """The step on new inputs."""
        for group, members in inputs.items():
            for name, tensor in members.items():
                self._inputs[group][name].copy_(tensor, non_blocking=True)
        self._graph.replay()
        return self._outputs
