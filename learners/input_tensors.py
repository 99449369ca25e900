"""What policies that act in torch read, on the device of their network."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from onibi.platform.forward_policy import Rows

if TYPE_CHECKING:
    from torch import Tensor


def input_tensors(inputs: Rows, device: str) -> dict[str, Tensor]:
    """Arrays [N, ...] by name as tensors on a device; on the CPU without a copy where they are contiguous."""
    import torch  # actors that act in NumPy never load it

    return {name: torch.from_numpy(np.ascontiguousarray(rows)).to(device) for name, rows in inputs.items()}
