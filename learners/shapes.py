"""Shape checks for pure functions: an array of one axis too many broadcasts without a word, and learns nonsense."""

from __future__ import annotations

from torch import Tensor


def check_shapes(axes: str, **tensors: Tensor) -> None:
    """Check that all tensors have the axes named, and that equal letters mean equal sizes among them.

    Args:
        axes: letters parted by blanks, ``"B n"``; ``""`` for a scalar.
        tensors: by argument name, for the message.
    Raises: ValueError naming the argument, its shape and the one wanted.
    """
    names = axes.split()
    sizes: dict[str, tuple[int, str]] = {}
    for argument, tensor in tensors.items():
        shape = tuple(tensor.shape)
        if len(shape) != len(names):
            raise ValueError(f"{argument} has shape {shape}, but [{', '.join(names)}] has {len(names)} axes")
        for letter, size in zip(names, shape, strict=True):
            known = sizes.setdefault(letter, (size, argument))
            if known[0] != size:
                raise ValueError(f"{argument} has {letter} = {size} (shape {shape}), but {known[1]} has {known[0]}")
