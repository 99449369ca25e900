"""What learners' checkpoints have in common: networks by prefix, torch's generator, copies on the CPU."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from onibi.platform.errors import CheckpointError

TORCH_GENERATOR = "rng.torch"


def saved_state(networks: Mapping[str, nn.Module], others: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copies by flat name: each network's tensors as ``PREFIX.name``, the ``others`` and torch's generator."""
    state = {
        f"{prefix}.{name}": value for prefix, each in networks.items() for name, value in each.state_dict().items()
    }
    # An update of ours draws nothing from the global generator; a user's network with dropout does.
    state |= {TORCH_GENERATOR: torch.get_rng_state(), **others}
    return {name: tensor.detach().cpu().clone().contiguous() for name, tensor in state.items()}


def load_networks(
    networks: Mapping[str, nn.Module], state: Mapping[str, Tensor], generators: Sequence[str] = (TORCH_GENERATOR,)
) -> None:
    """Load what ``saved_state`` took of ``networks``; the state must have the ``generators``, which are left to load.

    Raises: CheckpointError where it is of another network, or lacks a generator.
    """
    try:
        for prefix, network in networks.items():
            network.load_state_dict(
                {name.removeprefix(f"{prefix}."): each for name, each in state.items() if name.startswith(f"{prefix}.")}
            )
    except RuntimeError as error:
        raise CheckpointError(
            f"the checkpoint's network does not fit these settings: {error}\n"
            "Resume with the settings it was saved under, or start a new run."
        ) from error
    missing = [name for name in generators if name not in state]
    if missing:
        raise CheckpointError(f"the checkpoint lacks the learner's {missing}; take an older checkpoint.")
