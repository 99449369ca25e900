"""How fast a learner computes, and nothing about what it learns: precision, compilation, micro-batches, threads.

Every learner has these settings as its section ``acceleration``. The defaults change nothing: float32, plain PyTorch,
one drawn batch a step, no threads; a serial run repeats bit for bit.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from pydantic import Field

from onibi.platform.config import Settings
from onibi.platform.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class AccelerationSettings(Settings):
    """What may be switched on where it pays.

    ``precision: bf16`` runs matrix products and convolutions of the forward and backward pass in bfloat16 (autocast);
    parameters, Adam's moments, losses and returns stay float32.
    ``compile: default`` hands the loss to ``torch.compile``; ``graphs`` records the whole step once as a CUDA graph.
    """

    precision: Literal["fp32", "bf16"] = "fp32"
    compile: Literal["none", "default", "graphs"] = "none"
    accumulation: Annotated[int, Field(ge=1, le=1024)] = 1  # drawn batches whose gradients make one step
    prefetch_batches: Annotated[int, Field(ge=0, le=16)] = 0  # drawn ahead by a thread; 0: drawn when they are due
    gather_threads: Annotated[int, Field(ge=1, le=64)] = 1  # that copy the rows of each drawn batch out of replay

    def __post_init__(self) -> None:
        """Refuse pairs that exclude each other."""
        if self.compile == "graphs" and self.accumulation > 1:
            raise ValueError(
                f"accumulation is {self.accumulation}, but a CUDA graph is one whole step: set it to 1 and raise "
                "batch_size, or take compile: default"
            )

    def is_plain(self, device: torch.device) -> bool:
        """Whether it is one plain float32 step a batch, on the CPU: what gradients by hand are for."""
        return device.type == "cpu" and (self.precision, self.compile, self.accumulation) == ("fp32", "none", 1)

    def refuse_accumulation(self, steps: int) -> None:
        """For settings of learners that make several steps of a batch. Raises: ValueError where they would be added."""
        if self.accumulation > 1 and steps > 1:
            raise ValueError(
                f"acceleration.accumulation is {self.accumulation}, which makes one gradient step of several drawn "
                f"slabs, but epochs x minibatches makes {steps} steps of each: set accumulation to 1, or epochs and "
                "minibatches to 1"
            )

    def refuse_gather_threads(self) -> None:
        """For settings of learners that draw slabs. Raises: ValueError where ``gather_threads`` would not act."""
        if self.gather_threads > 1:
            raise ValueError(
                f"acceleration.gather_threads is {self.gather_threads}, but this learner draws slabs, whose rows lie "
                "side by side and are copied by one thread: set it to 1"
            )


def check_acceleration(settings: AccelerationSettings, device: torch.device) -> None:
    """Refuse what this device cannot do. Raises: ConfigError."""
    if settings.compile == "graphs" and device.type != "cuda":
        raise ConfigError(
            f"learner.acceleration.compile is graphs, but the learner runs on {device}: CUDA graphs need CUDA. Set "
            "placement.learner_gpus to 1, or compile to none or default."
        )
    # A device before Ampere computes in bfloat16 as well, by way of float32: slower than that.
    on_cuda = device.type == "cuda"
    if settings.precision == "bf16" and on_cuda and not torch.cuda.is_bf16_supported(including_emulation=False):
        raise ConfigError(
            f"learner.acceleration.precision is bf16, which {torch.cuda.get_device_name(device)} cannot compute in "
            "itself. Set it to fp32."
        )


def autocast(settings: AccelerationSettings, device: torch.device) -> AbstractContextManager[object]:
    """The context for forward passes and losses. Outputs may be bfloat16 in it: take them with ``.float()``."""
    if settings.precision == "fp32":
        return nullcontext()
    return torch.autocast(device.type, dtype=torch.bfloat16)
