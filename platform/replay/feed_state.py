"""A feed's state in the two forms that a checkpoint keeps: plain values as JSON, arrays as tensors."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, kw_only=True)
class FeedState:
    """Values from which a feed goes on.

    ``arrays`` are named by their path in the whole, joined by dots: ``sampler.table.leaf``.
    """

    plain: Mapping[str, Any]
    arrays: Mapping[str, NDArray[Any]] = field(default_factory=dict)

    @classmethod
    def split(cls, state: Mapping[str, Any]) -> FeedState:
        """Take nested mappings apart; their keys hold no dots."""
        arrays: dict[str, NDArray[Any]] = {}
        return cls(plain=_without_arrays(state, "", arrays), arrays=arrays)

    def joined(self) -> dict[str, Any]:
        """The nested mappings again."""
        state = _copied(self.plain)
        for path, array in self.arrays.items():
            *sections, name = path.split(".")
            section = state
            for each in sections:
                section = section.setdefault(each, {})
            section[name] = array
        return state


def _without_arrays(state: Mapping[str, Any], prefix: str, arrays: dict[str, NDArray[Any]]) -> dict[str, Any]:
    return dict(_plain_items(state, prefix, arrays))


def _plain_items(state: Mapping[str, Any], prefix: str, arrays: dict[str, NDArray[Any]]) -> Iterator[tuple[str, Any]]:
    for name, value in state.items():
        if isinstance(value, np.ndarray):
            arrays[prefix + name] = value
        elif isinstance(value, Mapping):
            yield name, _without_arrays(value, f"{prefix}{name}.", arrays)
        else:
            yield name, value


def _copied(state: Mapping[str, Any]) -> dict[str, Any]:
    return {name: _copied(value) if isinstance(value, Mapping) else value for name, value in state.items()}
