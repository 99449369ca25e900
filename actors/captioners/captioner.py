"""The contract of a captioner."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from onibi.platform.errors import SpecError
from onibi.platform.fragment import CaptionText


class Captioner(Protocol):
    """Tells what each environment's newest step said. Called at every vector step, so it answers from a cache.

    Text that the agent itself typed (names, engravings, commands) is never a caption: a judge must not read it.
    """

    observation_keys: tuple[str, ...]
    """Keys of a raw Dict observation that it reads; empty where it reads none."""

    keys_per_caption: int
    """K, the most keys of a caption; 0 where it never says anything."""

    key_version: str
    """Names the rules by which it makes keys; changed with them."""

    def captions(self, raw: Any, infos: Mapping[str, Any]) -> list[CaptionText]:
        """Captions of E environments; ``captions.EMPTY_TEXT`` where one said nothing.

        Args:
            raw: batched observation of a vector environment, each leaf [E, ...].
            infos: Gymnasium's vector infos, ``infos["_key"]`` [E] telling where ``infos["key"]`` holds.
        """


class EpisodicCaptioner(Captioner, Protocol):
    """A captioner that remembers what its lanes showed."""

    def begin(self, lanes: NDArray[np.bool_]) -> None:
        """In these lanes [E] the observation of the next ``captions`` is an episode's first."""


def envs_of(raw: Any) -> int:
    """E of a batched observation, by its first array; texts (a tuple of E) tell it where there is none."""
    while isinstance(raw, Mapping | tuple):
        leaves = list(raw.values()) if isinstance(raw, Mapping) else list(raw)
        if not leaves:
            raise SpecError("the observation has no leaf: an empty Dict or Tuple space cannot be learnt from")
        if isinstance(leaves[0], str):
            break
        raw = next((leaf for leaf in leaves if isinstance(leaf, np.ndarray)), leaves[0])
    return len(raw)
