"""Several learner processes that move one set of parameters: what they exchange (torch.distributed, no Ray).

Each has a copy of the network and draws batches of its own. Gradients are averaged before every step, and all else that
a step reads is the same everywhere, so the parameters stay equal bit for bit.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from datetime import timedelta

import psutil
import torch
from torch import Tensor, distributed

from onibi.platform.errors import LearnerLostError

_WAIT = timedelta(seconds=120)
"""For the other workers, before one of them counts as lost."""


class WorkerGroup:
    """The processes of one learner. All of them call the same methods in the same order; each call waits for all.

    Args:
        rank: of this process, from 0; the first publishes and keeps the checkpoints.
        size: W.
    """

    def __init__(self, rank: int, size: int) -> None:
        self.rank, self.size = rank, size

    def average_gradients(self, parameters: Sequence[Tensor], loss: Tensor) -> Tensor:
        """Replace every gradient by its mean over the workers, in one exchange.

        Args:
            parameters: the same in every worker; a gradient that is missing counts as 0.
            loss: [] float32.
        Returns: the mean of the losses: what is not finite in one worker is finite in none.
        Raises: LearnerLostError where another worker is gone.
        """
        gradients = [torch.zeros_like(each) if each.grad is None else each.grad for each in parameters]
        flat = torch.cat([*(each.reshape(-1) for each in gradients), loss.reshape(1)])
        self._exchange(lambda: distributed.all_reduce(flat))
        flat /= self.size
        at = 0
        for parameter, gradient in zip(parameters, gradients, strict=True):
            gradient.copy_(flat[at : at + gradient.numel()].view_as(gradient))
            parameter.grad = gradient
            at += gradient.numel()
        return flat[-1]

    def copy_from_first(self, tensors: Sequence[Tensor]) -> None:
        """Overwrite ``tensors`` with those of rank 0. Raises: LearnerLostError where another worker is gone."""
        for tensor in tensors:
            self._exchange(lambda each=tensor: distributed.broadcast(each, src=0))  # type: ignore[misc]

    def all_agree(self, *answers: bool) -> tuple[bool, ...]:
        """Each answer, True where it is True in every worker. Raises: LearnerLostError where another worker is gone."""
        words = torch.tensor(answers, dtype=torch.uint8)
        self._exchange(lambda: distributed.all_reduce(words, op=distributed.ReduceOp.MIN))
        return tuple(bool(word) for word in words)

    def _exchange(self, exchange: Callable[[], object]) -> None:
        try:
            exchange()
        except RuntimeError as error:
            raise LearnerLostError(
                f"learner {self.rank} of {self.size}: the others do not answer ({error}). All of them start again from "
                "the last checkpoint."
            ) from error


def join_group(rank: int, size: int, rendezvous: str) -> WorkerGroup:
    """Make this process worker ``rank`` of ``size``; returns when all have joined. gloo on the CPU, nccl on CUDA.

    Args:
        rank: from 0.
        size: W.
        rendezvous: "file:///PATH" of a file that does not exist yet, on one machine; or "tcp://HOST:PORT", free on the
            host of rank 0.
    Raises: LearnerLostError where the others do not come.
    """
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    try:
        distributed.init_process_group(backend, init_method=rendezvous, rank=rank, world_size=size, timeout=_WAIT)
    except RuntimeError as error:
        raise LearnerLostError(f"learner {rank} of {size}: the group at {rendezvous} did not form: {error}") from error
    return WorkerGroup(rank, size)


def use_interface_of(address: str) -> None:
    """Have gloo talk to other nodes by the network interface that has the IP ``address``, unless GLOO_SOCKET_IFNAME
    chooses one. By itself it takes that of the host's name, which on many machines is the loopback.
    """
    for name, addresses in psutil.net_if_addrs().items():
        if any(each.address == address for each in addresses):
            os.environ.setdefault("GLOO_SOCKET_IFNAME", name)


def joined_group() -> WorkerGroup | None:
    """The group that this process has joined; None where it learns alone."""
    if not (distributed.is_available() and distributed.is_initialized()):
        return None
    return WorkerGroup(distributed.get_rank(), distributed.get_world_size())
