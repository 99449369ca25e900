"""E3B: what is new in this episode by the features of an inverse model (Henaff et al. 2022, arXiv 2210.05805).

Differences from the paper: an episode's first observation is taken in and not paid, as first captions are counted and
not paid; the encoder comes with the learner's weights and stays the same within an episode, so that C is made of one
encoder's features; nothing is paid (NaN) in episodes that began before the first weights came.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onibi.actors.bonuses.elliptic_memory import EllipticMemory
from onibi.actors.bonuses.row_bonus import Arrival, RowBonusPlace
from onibi.platform.features import Features
from onibi.platform.rewards.bonus_settings import E3bSettings


class E3bBonus:
    """b = φᵀC⁻¹φ of o′ before C takes it in.

    Args:
        settings: λ and d.
        place: E, and what makes encoders of published arrays.
    """

    def __init__(self, settings: E3bSettings, place: RowBonusPlace) -> None:
        assert place.features is not None, "the plan of a run has a factory for every e3b bonus"
        self._factory = place.features
        self._memory = EllipticMemory(place.envs, settings.features, settings.ridge)
        self._encoders: list[Features | None] = [None] * place.envs
        self._newest: Features | None = None
        self._arrays: Mapping[str, NDArray[Any]] | None = None  # that no encoder was made of yet

    def begin(self, arrival: Arrival, lanes: NDArray[np.bool_]) -> None:
        """See ``RowBonus``."""
        if self._arrays is not None:
            self._newest, self._arrays = self._factory(self._arrays), None
        self._memory.reset(lanes)
        for lane in np.flatnonzero(lanes).tolist():
            self._encoders[lane] = self._newest
        self.pay(arrival, lanes)

    def pay(self, arrival: Arrival, lanes: NDArray[np.bool_]) -> NDArray[np.float32]:
        """See ``RowBonus``."""
        paid: NDArray[np.float32] = np.full(len(lanes), np.nan, np.float32)
        groups: dict[int, list[int]] = {}
        for lane in np.flatnonzero(lanes).tolist():
            groups.setdefault(id(self._encoders[lane]), []).append(lane)
        for group in groups.values():
            encoder = self._encoders[group[0]]
            if encoder is not None:
                at = np.array(group)
                whole = len(at) == len(lanes)
                seen = {n: column if whole else column[at] for n, column in arrival.observation.items()}
                paid[at] = self._memory.take_in(encoder(seen), at)
        return paid

    def load(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        """See ``RowBonus``."""
        self._arrays = arrays
