"""What learners' checkpoints have in common: networks by prefix, torch's generator, copies on the CPU."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from onibi.platform.errors import CheckpointError

TORCH_GENERATOR = "rng.torch"
_SAME_PLACE = 1e-5
"""Of the range of all bins: another machine may round them otherwise."""


class SavedGenerators:
    """Random generators of a learner's own, on the CPU: the same numbers on any device.

    Args:
        seeds: of each, by its name in a checkpoint.
    """

    def __init__(self, seeds: Mapping[str, int]) -> None:
        self._generators = {name: torch.Generator().manual_seed(seed) for name, seed in seeds.items()}

    def __getitem__(self, name: str) -> torch.Generator:
        return self._generators[name]

    def __contains__(self, name: str) -> bool:
        return name in self._generators

    def state_dict(self) -> dict[str, Tensor]:
        """Their states by name."""
        return {name: generator.get_state() for name, generator in self._generators.items()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Go on from a state, other names in which are not looked at. Raises: CheckpointError where it lacks one."""
        _check_there(state, self._generators)
        for name, generator in self._generators.items():
            generator.set_state(state[name].cpu())


def saved_state(networks: Mapping[str, nn.Module], others: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copies by flat name: each network's tensors as ``PREFIX.name``, the ``others`` and torch's generator."""
    state = {
        f"{prefix}.{name}": value for prefix, each in networks.items() for name, value in each.state_dict().items()
    }
    # An update of ours draws nothing from the global generator; a user's network with dropout does.
    state |= {TORCH_GENERATOR: torch.get_rng_state(), **others}
    return {name: tensor.detach().cpu().clone().contiguous() for name, tensor in state.items()}


def load_networks(networks: Mapping[str, nn.Module], state: Mapping[str, Tensor]) -> None:
    """Load what ``saved_state`` took of ``networks``; torch's generator must be there, and is left to load.

    Raises: CheckpointError where it is of another network, or lacks the generator.
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
    _check_there(state, (TORCH_GENERATOR,))


def check_bins(saved: Tensor | None, mine: Tensor | None) -> None:
    """Refuse to go on with a network that says bins which lie elsewhere now: what it learnt would mean other values.

    Args:
        saved: [K] float32 centres or atoms of a checkpoint; None: it has none, or was made before they were kept.
        mine: [K] float32 those of these settings; None where the value loss reads none.
    Raises: CheckpointError.
    """
    if saved is None or mine is None:
        return  # a network of the other kind does not fit anyhow
    saved, mine = saved.detach().cpu(), mine.detach().cpu()
    tolerance = _SAME_PLACE * float(mine.max() - mine.min())
    if saved.shape == mine.shape and bool(((saved - mine).abs() <= tolerance).all()):
        return
    raise CheckpointError(
        f"the checkpoint's values are read off {_ends(saved)}, those of these settings off {_ends(mine)}: what was "
        "learnt would mean other values. Resume with the learner.value_loss and learner.support that it was saved "
        "under (an automatic support follows from the rewards and learner.discount as well), or start a new run."
    )


def _ends(bins: Tensor) -> str:
    return f"{len(bins)} bins from {float(bins[0]):g} to {float(bins[-1]):g}"


def _check_there(state: Mapping[str, Tensor], names: Iterable[str]) -> None:
    missing = [name for name in names if name not in state]
    if missing:
        raise CheckpointError(f"the checkpoint lacks the learner's {missing}; take an older checkpoint.")
