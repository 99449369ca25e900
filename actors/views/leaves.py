"""The observation as it is: one column per leaf of its space."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import gymnasium as gym
from numpy.typing import NDArray

from onibi.platform.config import Settings
from onibi.platform.errors import SpecError
from onibi.platform.replay.schema import ObservationLeaves
from onibi.platform.replay.text_table import TextTable
from onibi.platform.spec import TEXT_HASH


@dataclass(frozen=True, kw_only=True)
class LeavesSettings(Settings):
    """All leaves, or only those named in ``keys`` (top-level keys of a Dict space): what is not read is not stored."""

    kind: Literal["leaves"] = "leaves"
    keys: tuple[str, ...] = ()


class LeavesView:
    """Stores the leaves of a Box, Discrete, Text or (nested) Dict or Tuple space unchanged; of a text its 64-bit hash.

    Raises:
        SpecError: a leaf has no fixed width, or ``keys`` names a key that the space does not have.
    """

    Settings: ClassVar[type[LeavesSettings]] = LeavesSettings

    def __init__(self, settings: LeavesSettings, space: gym.Space[Any]) -> None:
        if settings.keys:
            if not isinstance(space, gym.spaces.Dict):
                raise SpecError(f"view.keys is set, but the observation space is {type(space).__name__}, not Dict.")
            missing = sorted(set(settings.keys) - set(space.keys()))
            if missing:
                raise SpecError(f"view.keys names {missing}; the observation space has {sorted(space.keys())}.")
            space = gym.spaces.Dict({key: space[key] for key in settings.keys})
        texts = TextTable()
        self._leaves = ObservationLeaves(space, texts)
        self.raw_keys = settings.keys
        self.specs = self._leaves.specs
        self.texts = texts if any(column.content == TEXT_HASH for column in self.specs) else None

    def __call__(self, raw: Any) -> dict[str, NDArray[Any]]:
        """Leaves [E, ...] by column name."""
        return self._leaves.flatten(raw)
