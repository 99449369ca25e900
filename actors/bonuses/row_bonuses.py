"""All bonuses that an actor computes: the columns of a row, and what each paid over an episode."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onibi.actors.bonuses.registry import ROW_BONUSES
from onibi.actors.bonuses.row_bonus import Arrival, RowBonus, RowBonusPlace
from onibi.platform.config import load_class
from onibi.platform.features import FeaturesFactory
from onibi.platform.rewards.bonus_columns import bonus_leaves
from onibi.platform.rewards.bonus_settings import (
    BonusSettings,
    NovelDSettings,
    bonus_column,
    is_row_component,
    visit_column,
)
from onibi.platform.spec import ReplaySpec


@dataclass
class _Component:
    """One of them: who pays, into which column, and how much the episodes at hand were paid."""

    bonus: RowBonus
    column: str
    clip: float
    cap: float | None
    paid: NDArray[np.float64] | None  # [E] of each lane's episode; None for what is no component by itself


class RowBonuses:
    """The bonuses of E lanes.

    A cap on what an episode pays is kept here, where the episode is played: exact whatever is drawn later. The clip on
    a step is the mixer's but under a cap, which counts what is paid.

    Args:
        bonuses: of the run by name; those that actors do not compute are passed over.
        spec: row layout.
        envs: E.
        features: makers of encoders by the bonus that wants one.
    Raises: ConfigError where a bonus names leaves that are not there.
    """

    def __init__(
        self,
        bonuses: Mapping[str, BonusSettings],
        spec: ReplaySpec,
        envs: int,
        features: Mapping[str, FeaturesFactory],
    ) -> None:
        self._components: dict[str, _Component] = {}
        for name, settings in bonuses.items():
            pays = is_row_component(settings)
            if not pays and not isinstance(settings, NovelDSettings):
                continue
            leaves = bonus_leaves(name, settings, spec, numbers=False)
            owner = load_class(ROW_BONUSES, settings.kind)
            self._components[name] = _Component(
                bonus=owner(settings, RowBonusPlace(envs, leaves, features.get(name))),
                column=bonus_column(name) if pays else visit_column(name),
                clip=settings.clip,
                cap=settings.episode_cap,
                paid=np.zeros(envs) if pays else None,
            )

    def __len__(self) -> int:
        return len(self._components)

    def begin(self, arrival: Arrival, lanes: NDArray[np.bool_]) -> None:
        """New episodes in ``lanes`` [E], whose first observation ``arrival`` has."""
        for component in self._components.values():
            component.bonus.begin(arrival, lanes)
            if component.paid is not None:
                component.paid[lanes] = 0.0

    def pay(self, arrival: Arrival, lanes: NDArray[np.bool_]) -> dict[str, NDArray[Any]]:
        """Columns [E] for the rows that led to ``arrival`` in ``lanes`` [E]; unspecified elsewhere."""
        columns = {}
        for component in self._components.values():
            told = component.bonus.pay(arrival, lanes)
            if component.paid is not None:
                clipped = np.minimum(told, np.float32(component.clip))
                if component.cap is not None:
                    clipped = told = np.minimum(clipped, np.maximum(component.cap - component.paid, 0.0))
                component.paid += np.where(lanes & ~np.isnan(clipped), clipped, 0.0)
            columns[component.column] = told
        return columns

    def load(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        """What came with new weights, named ``BONUS.ARRAY``."""
        for name, component in self._components.items():
            mine = {key.removeprefix(f"{name}."): each for key, each in arrays.items() if key.startswith(f"{name}.")}
            if mine:
                component.bonus.load(mine)

    def episode_returns(self) -> dict[str, NDArray[np.float64]]:
        """[E] undiscounted sum over each lane's episode so far, clipped and before the coefficient, by bonus."""
        return {name: each.paid for name, each in self._components.items() if each.paid is not None}
