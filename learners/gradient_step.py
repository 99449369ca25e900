"""From a loss to moved parameters: gradients gathered, averaged over workers, shortened, checked, and given to Adam.

One path for every device. Whether loss and gradients are finite is decided on the device, where Adam leaves everything
as it was if they are not; the host hears of it at once on the CPU, and on CUDA some steps later, without waiting.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from onibi.learners.acceleration import AccelerationSettings, autocast, check_acceleration
from onibi.learners.fused_adam import FusedAdam
from onibi.learners.parameter_layout import FlatParameters, ParameterLayout, SeparateParameters
from onibi.learners.worker_group import joined_group
from onibi.platform.errors import CheckpointError, NonFiniteError

log = logging.getLogger(__name__)

SKIPS_IN_A_ROW = 10
"""Batches in a row none of whose steps was finite, after which learning is given up: one bad batch passes by, a broken
network does not."""
_UNHEARD_STEPS = 8
"""Verdicts of a CUDA device that may be on their way; a host further ahead waits."""
_ADAM_STATE = ("exp_avg", "exp_avg_sq", "step")
_COUNTERS = ("updates", "skipped_updates", "skips_in_a_row")


@dataclass(frozen=True)
class StepResult:
    """What became of a loss.

    Args:
        completed: False where its gradient was only added to those of the batches before (accumulation).
        applied: whether the parameters moved. On CUDA True until something else is known; then ``finite`` tells on the
            device.
        finite: [] bool, on the device.
        gradient_norm: [] float32, on the device: before shortening.
    """

    completed: bool
    applied: bool
    finite: Tensor
    gradient_norm: Tensor

    @property
    def skipped(self) -> bool:
        """Whether the batch was left out as not finite: neither learnt from nor kept for a later step."""
        return self.completed and not self.applied


class GradientStep:
    """Adam over a module's parameters, with all that stands between a loss and it.

    Args:
        module: its parameters that take gradients are moved; their names are those in ``state_dict``.
        learning_rate: of Adam.
        adam_epsilon: ε of Adam.
        gradient_norm: gradients of a larger norm, over all parameters, are shortened to it.
        acceleration: precision, accumulation.
        weight_decay: decoupled from the gradient (AdamW); 0 is Adam itself.
        betas: of Adam.
        steps_per_batch: that follow each other on the same rows.
    Raises: ConfigError where the device cannot do what ``acceleration`` asks.
    """

    def __init__(
        self,
        module: nn.Module,
        *,
        learning_rate: float,
        adam_epsilon: float,
        gradient_norm: float,
        acceleration: AccelerationSettings,
        weight_decay: float = 0.0,
        betas: tuple[float, float] = (0.9, 0.999),
        steps_per_batch: int = 1,
    ) -> None:
        self.updates = 0
        """Steps made, skipped ones included."""
        self.skipped_updates = 0
        self._skips_in_a_row = 0
        self._most_skips = SKIPS_IN_A_ROW * steps_per_batch
        self._named = {name: each for name, each in module.named_parameters() if each.requires_grad}
        self._layout: ParameterLayout = SeparateParameters(self._named)
        self._device = self._layout.optimized[0].device
        check_acceleration(acceleration, self._device)
        self._acceleration, self._gradient_norm = acceleration, gradient_norm
        on_cuda = self._device.type == "cuda"
        self._make_optimizer = partial(
            FusedAdam, learning_rate=learning_rate, betas=betas, epsilon=adam_epsilon, weight_decay=weight_decay
        )
        self._optimizer = self._make_optimizer(self._layout.optimized)
        self._verdicts = _Verdicts() if on_cuda else None
        self._gathered = 0
        self._losses: Tensor | None = None
        self._group = joined_group()
        if self._group is not None:
            self._group.copy_from_first([each.data for each in self._layout.optimized])

    @property
    def skips_in_a_row(self) -> int:
        """Steps skipped since the last one that moved anything, as far as the host has heard."""
        return self._skips_in_a_row

    def autocast(self) -> AbstractContextManager[object]:
        """The context for forward passes and losses; see ``acceleration.autocast``."""
        return autocast(self._acceleration, self._device)

    def lay_flat(self) -> None:
        """Keep all parameters in one tensor and their gradients in another, before the first step, on the CPU.

        Norm, check and Adam are then an operation each instead of one for every parameter. It pays where gradients are
        written by hand into ``grad``; autograd's own would have to be copied there.
        """
        self._layout = FlatParameters(self._named)
        self._optimizer = self._make_optimizer(self._layout.optimized)

    def step(self, loss: Tensor) -> StepResult:
        """Backpropagate a loss and move the parameters, where it is its turn and all is finite.

        Args:
            loss: [] float32, a mean over the batch. With accumulation the step follows the mean of ``accumulation``
                losses.
        Raises: NonFiniteError where the steps of the tenth batch in a row are not finite.
        """
        if self._gathered == 0:
            self._layout.clear_gradients()
        self._backward(loss)
        self._gathered += 1
        if self._gathered < self._acceleration.accumulation:
            return StepResult(completed=False, applied=False, finite=_true(loss), gradient_norm=torch.zeros_like(loss))
        self._gathered = 0
        return self.book(*self._move())

    def step_by(self, loss: Tensor) -> StepResult:
        """As ``step``, by the gradients that stand in the parameters' ``grad``: the loss [] is only checked.

        Raises: NonFiniteError as ``step``; ValueError with accumulation, which would need gradients that add up.
        """
        if self._acceleration.accumulation > 1:
            raise ValueError("gradients that were written do not add up over batches: accumulation must be 1")
        self._losses = loss
        return self.book(*self._move())

    def move(self, loss: Tensor) -> tuple[Tensor, Tensor]:
        """The part of ``step`` that a CUDA graph can hold: backward pass to Adam, on the device alone.

        Returns: whether loss and gradients were finite [] bool, and the gradient's norm [] float32; for ``book``.
        """
        self._layout.clear_gradients()
        self._backward(loss)
        return self._move()

    def book(self, finite: Tensor, gradient_norm: Tensor) -> StepResult:
        """The rest of ``step``: count, and give up where it is time. Raises: NonFiniteError."""
        self.updates += 1
        if self._verdicts is None:
            self._count(self.updates, finite=bool(finite))
        else:
            self._verdicts.put(self.updates, finite)
            # Several workers must know the same when they go on: what they exchange next may hang on it.
            self._listen(wait=self._group is not None)
            if self._skips_in_a_row:  # from now on each step is waited for, so that the last is known when it is made
                self._listen(wait=True)
        if self._skips_in_a_row >= self._most_skips:
            raise NonFiniteError(
                f"update {self.updates}: loss or gradient was not finite {self._skips_in_a_row} times in a row. Look "
                "for NaN in the observations or rewards, or lower learner.learning_rate; then resume from the last "
                "checkpoint."
            )
        return StepResult(completed=True, applied=self._skips_in_a_row == 0, finite=finite, gradient_norm=gradient_norm)

    def share_buffers(self, module: nn.Module) -> None:
        """Give ``module`` the first worker's buffers (running statistics): each worker sees batches of its own."""
        if self._group is not None:
            self._group.copy_from_first(list(module.buffers()))

    def state_dict(self) -> dict[str, Tensor]:
        """Adam's moments as ``optimizer.KEY.PARAMETER`` and the counters as ``counters.NAME``; not copied.

        Gradients that wait for further batches (accumulation) are in it, too.
        """
        if self._verdicts is not None:
            self._listen(wait=True)
        state: dict[str, Tensor] = {}
        for name, parameter in self._named.items():
            for key, value in self._optimizer.state.get(self._layout.owner(name), {}).items():
                state[f"optimizer.{key}.{name}"] = value if key == "step" else self._layout.part(value, name)
            if self._gathered and parameter.grad is not None:
                state[f"optimizer.gathered.{name}"] = parameter.grad
        counters = (self.updates, self.skipped_updates, self._skips_in_a_row)
        for name, count in zip(_COUNTERS, counters, strict=True):
            state[f"counters.{name}"] = torch.tensor(count, dtype=torch.int64)
        if self._gathered and self._losses is not None:
            state["counters.gathered"] = torch.tensor(self._gathered, dtype=torch.int64)
            state["counters.accumulation"] = torch.tensor(self._acceleration.accumulation, dtype=torch.int64)
            state["optimizer.gathered_losses"] = self._losses
        return state

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take a state that ``state_dict`` gave; other names in it are not looked at.

        Gradients that wait there for further batches are forgotten where ``accumulation`` is another one now: they are
        shares of a mean over so many batches. Raises: CheckpointError where counters are missing.
        """
        missing = [name for each in _COUNTERS if (name := f"counters.{each}") not in state]
        if missing:
            raise CheckpointError(f"the checkpoint lacks the learner's {missing}; take an older checkpoint.")
        accumulation = self._acceleration.accumulation
        self._gathered = int(state.get("counters.gathered", torch.tensor(0)))
        former = int(state.get("counters.accumulation", torch.tensor(accumulation)))  # checkpoints once lacked it
        if former != accumulation or self._gathered >= accumulation:
            self._gathered = 0
        losses = state.get("optimizer.gathered_losses") if self._gathered else None
        self._losses = None if losses is None else losses.clone().to(self._device)
        for name in self._named:
            self._restore_moments(name, state)
            self._layout.put_gradient(name, state.get(f"optimizer.gathered.{name}") if self._gathered else None)
        counters = (int(state[f"counters.{name}"]) for name in _COUNTERS)
        self.updates, self.skipped_updates, self._skips_in_a_row = counters

    def _restore_moments(self, name: str, state: Mapping[str, Tensor]) -> None:
        owner = self._layout.owner(name)
        kept = self._optimizer.state[owner]
        for key in _ADAM_STATE:
            value = state.get(f"optimizer.{key}.{name}")
            if value is None:
                kept.pop(key, None)
                continue
            value = value.to(torch.float32 if key == "step" else owner.dtype)
            if key not in kept:
                kept[key] = value.clone().to(self._device) if key == "step" else torch.zeros_like(owner)
            # In place: a recorded CUDA graph knows the memory.
            place = kept[key] if key == "step" else self._layout.part(kept[key], name)
            place.copy_(value)

    def _backward(self, loss: Tensor) -> None:
        part = loss.detach()
        self._losses = part if self._gathered == 0 or self._losses is None else self._losses + part
        if self._acceleration.accumulation > 1:
            loss = loss / self._acceleration.accumulation
        loss.backward()  # type: ignore[no-untyped-call]

    def _move(self) -> tuple[Tensor, Tensor]:
        assert self._losses is not None
        losses = self._losses
        if self._group is not None:
            losses = self._group.average_gradients(self._layout.optimized, losses)
        norm = self._layout.shorten_gradients(self._gradient_norm)
        finite = torch.isfinite(losses + norm)  # a sum with anything that is not finite is not finite
        self._optimizer.step(skip=torch.logical_not(finite).float())
        return finite, norm

    def _listen(self, *, wait: bool) -> None:
        if self._verdicts is not None:
            for update, finite in self._verdicts.take(wait=wait):
                self._count(update, finite=finite)

    def _count(self, update: int, *, finite: bool) -> None:
        if finite:
            self._skips_in_a_row = 0
            return
        self.skipped_updates += 1
        self._skips_in_a_row += 1
        if self._skips_in_a_row == 1:
            log.warning("update %d: loss or gradient is not finite; the batch was skipped", update)


class _Verdicts:
    """A CUDA device's words on whether steps were finite, on their way to the host."""

    def __init__(self) -> None:
        self._words = torch.zeros(_UNHEARD_STEPS, dtype=torch.bool, pin_memory=True)
        self._unheard: deque[tuple[int, int, torch.cuda.Event]] = deque()
        self._turn = 0

    def put(self, update: int, finite: Tensor) -> None:
        """Send the word on ``update`` after what the current stream has been given to do; never more than fit."""
        word = self._turn % _UNHEARD_STEPS
        self._turn += 1
        self._words[word].copy_(finite, non_blocking=True)
        event = torch.cuda.Event()  # type: ignore[no-untyped-call]
        event.record()
        self._unheard.append((update, word, event))

    def take(self, *, wait: bool) -> Iterator[tuple[int, bool]]:
        """The words that have arrived, oldest first; all where ``wait``, and as many as make room for the next."""
        while self._unheard:
            update, word, event = self._unheard[0]
            if not event.query():  # type: ignore[no-untyped-call]
                if not wait and len(self._unheard) < _UNHEARD_STEPS:
                    return
                event.synchronize()
            self._unheard.popleft()
            yield update, bool(self._words[word])


def _true(like: Tensor) -> Tensor:
    return torch.ones((), dtype=torch.bool, device=like.device)
