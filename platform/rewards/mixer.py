"""The reward mixer: components stay apart until here, and each one declares its bounds (docs/rewards.md).

    r = a_ext · clip(s · r_ext, −clip, clip)  +  a_int · maxⱼ value[keyⱼ] / Nⱼ^β  +  a_bonus · min(bonus, clip)  +  …
        └── component ``extrinsic`` ──────┘      └── component ``intrinsic`` ─┘      └── one for each bonus ──┘

or products of some of them. A component is a *table* (a function of the caption, gathered from the newest table), a
*row* (a float32 ring column of the actor's, NaN = not yet), or a *batch* (what a module in the learner's process pays
for the drawn rows, handed in).

Differences from ONI's reference: action aₜ is paid for the caption of oₜ₊₁, the terminal one too; N counts normalised
keys, and of several keys in one caption the best one pays.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from onibi.platform.errors import TrainingError
from onibi.platform.rewards.bonus_settings import is_row_component
from onibi.platform.rewards.bounds import Bounds, step_bounds
from onibi.platform.rewards.coefficient import ScheduleSettings, coefficient_at
from onibi.platform.rewards.settings import EXTRINSIC, INTRINSIC, RewardSettings
from onibi.platform.rewards.table import LABELLED, UNLABELLED, RewardTable, caption_rewards

Numbers = NDArray[np.float32]


class RewardRows(Protocol):
    """What the mixer reads of a drawn batch: ``Windows``, ``Sequences`` or a ``Slab``; leading axes are free."""

    @property
    def reward(self) -> Numbers:
        """[...]"""

    @property
    def used(self) -> NDArray[np.bool_]:
        """[...]"""

    @property
    def caption_id(self) -> NDArray[np.uint32]:
        """[...]"""

    @property
    def caption_count(self) -> NDArray[np.uint16]:
        """[..., K]"""


@dataclass(frozen=True)
class Sources:
    """What the mixer cannot read off a batch. Values are before coefficient and clip, of the batch's shape."""

    rows: Mapping[str, Numbers] = field(default_factory=dict)
    """What actors wrote for ``row`` components; NaN where nothing is known yet."""
    modules: Mapping[str, Numbers] = field(default_factory=dict)
    """What modules pay for ``batch`` components."""
    paid_before: Mapping[str, Numbers] = field(default_factory=dict)
    """What the steps before in the episode would be paid without a cap: of ``intrinsic``, where it has one."""
    env_steps: int = 0
    """Of the run, as far as the learner knows: for schedules."""


NO_SOURCES = Sources()


@dataclass(frozen=True)
class MixedRewards:
    """Rewards of drawn rows under one table version."""

    total: Numbers
    """[B, n], the sum of the terms; 0 after a window's end."""
    components: dict[str, Numbers]
    """Each [B, n], coefficient included, whether it is added by itself or multiplied."""
    labelled_share: float
    """Of the steps whose caption has something to ask, the share with every label there; 1 where no step has."""
    clipped_share: float
    """Share of steps whose environment reward was clipped."""
    table_version: int
    """−1 where there was no table yet."""
    terms: dict[str, Numbers] = field(default_factory=dict)
    """Each [B, n], what ``total`` is the sum of: components, and products by their names joined with "-"."""
    metrics: dict[str, float] = field(default_factory=dict)
    """``reward_clipped_share/NAME``, ``reward_missing_share/NAME``, ``reward_capped_share/NAME``,
    ``coefficient/NAME`` and ``reward_product/NAME-NAME``, where they say something."""


class RewardMixer:
    """Turns drawn rows into rewards; holds no state, so the same rows and sources give the same rewards again."""

    def __init__(self, settings: RewardSettings) -> None:
        self.settings = settings

    @property
    def components(self) -> tuple[str, ...]:
        """Names of the components: extrinsic, intrinsic where there is one, the bonuses."""
        return self.settings.components

    @property
    def scheduled(self) -> bool:
        """Whether a coefficient depends on the env steps."""
        owners = (self.settings.extrinsic, self.settings.intrinsic, *self.settings.bonuses.values())
        return any(owner is not None and isinstance(owner.coefficient, ScheduleSettings) for owner in owners)

    def bounds(self, component: str) -> Bounds:
        """What one step of this component can pay, coefficient included. Raises: KeyError for an unknown one."""
        return step_bounds(self.settings, component)

    def mix(self, rows: RewardRows, table: RewardTable | None, sources: Sources = NO_SOURCES) -> MixedRewards:
        """Rewards of all steps.

        Args:
            rows: as drawn; not written to.
            table: the newest one; None before the first, when captions pay 0.
            sources: what the settings' bonuses, caps and schedules need besides.
        Raises: CaptionError where the counts' K is not the table's; TrainingError where a source is missing.
        """
        used, metrics = rows.used, dict[str, float]()
        settings, steps = self.settings, sources.env_steps
        components: dict[str, Numbers] = {}
        for name in self.components:
            if name == EXTRINSIC:
                coefficient = coefficient_at(settings.extrinsic.coefficient, steps)
                plain, clipped_share = self._extrinsic(rows)
            else:
                owner = settings.intrinsic if name == INTRINSIC else settings.bonuses[name]
                assert owner is not None
                coefficient = coefficient_at(owner.coefficient, steps)
                plain = self._plain(name, rows, table, sources, metrics)
                if name == INTRINSIC and owner.episode_cap is not None:  # of row components the actor has seen to it
                    plain = _capped(plain, owner.episode_cap, _source(sources.paid_before, name), used, metrics, name)
            if self.scheduled:
                metrics[f"coefficient/{name}"] = coefficient
            components[name] = np.where(used, np.float32(coefficient) * plain, np.float32(0))
        terms = self._terms(components, metrics, used)
        first, *others = terms.values()
        return MixedRewards(
            total=functools.reduce(np.add, others, first),
            components=components,
            terms=terms,
            labelled_share=labelled_share(table, rows.caption_id, used),
            clipped_share=clipped_share,
            table_version=-1 if table is None else table.version,
            metrics=metrics,
        )

    def _extrinsic(self, rows: RewardRows) -> tuple[Numbers, float]:
        settings, used = self.settings.extrinsic, rows.used
        scaled = np.where(used, rows.reward * np.float32(settings.scale), np.float32(0))
        if settings.clip is None:
            return scaled, 0.0
        clipped = np.clip(scaled, -settings.clip, settings.clip)
        return clipped, _share(clipped != scaled, used)

    def _plain(
        self,
        name: str,
        rows: RewardRows,
        table: RewardTable | None,
        sources: Sources,
        metrics: dict[str, float],
    ) -> Numbers:
        """[...] a component before cap and coefficient; whatever stands where ``used`` is False."""
        if name == INTRINSIC:
            assert self.settings.intrinsic is not None
            if table is None:
                return np.zeros(rows.used.shape, np.float32)
            power = self.settings.intrinsic.count_power
            return caption_rewards(table, rows.caption_id, rows.caption_count, power)[0]
        bonus = self.settings.bonuses[name]
        if is_row_component(bonus):
            told = _source(sources.rows, name)
            missing = np.isnan(told)
            metrics[f"reward_missing_share/{name}"] = _share(missing, rows.used)
            told = np.where(missing, np.float32(0), told)
        else:
            told = _source(sources.modules, name)
        metrics[f"reward_clipped_share/{name}"] = _share(told > np.float32(bonus.clip), rows.used)
        return np.minimum(told, np.float32(bonus.clip))

    def _terms(
        self, components: Mapping[str, Numbers], metrics: dict[str, float], used: NDArray[np.bool_]
    ) -> dict[str, Numbers]:
        terms = {}
        for name, factors in zip(self.settings.term_names, self.settings.terms, strict=True):
            part = components[factors[0]]
            for factor in factors[1:]:
                part = part * components[factor]
            if len(factors) > 1:
                metrics[f"reward_product/{name}"] = float(part[used].mean()) if used.any() else 0.0
            terms[name] = part
        return terms


def labelled_share(table: RewardTable | None, caption_id: NDArray[Any], used: NDArray[np.bool_]) -> float:
    """Of the used steps whose caption has something to ask, the share with every label there; 1 where none has.

    Args:
        table: None counts every caption but the empty one as waiting.
        caption_id: [...] unsigned.
        used: [...] bool.
    """
    if table is None:
        return 0.0 if bool(np.any(used & (caption_id != 0))) else 1.0
    status = table.caption_status[table.caption_rows(caption_id[used])]
    labelled, waiting = np.count_nonzero(status == LABELLED), np.count_nonzero(status == UNLABELLED)
    return float(labelled / (labelled + waiting)) if labelled + waiting else 1.0


def _capped(
    plain: Numbers, cap: float, before: Numbers, used: NDArray[np.bool_], metrics: dict[str, float], name: str
) -> Numbers:
    """min(p, max(0, cap − what was paid before)): over an episode min(cap, Σ p), as no p is negative."""
    paid: Numbers = np.minimum(plain, np.maximum(np.float32(cap) - before, np.float32(0)))
    metrics[f"reward_capped_share/{name}"] = _share(paid < plain, used)
    return paid


def _share(where: NDArray[np.bool_], used: NDArray[np.bool_]) -> float:
    return float(np.count_nonzero(where & used)) / max(int(np.count_nonzero(used)), 1)


def _source(values: Mapping[str, Numbers], name: str) -> Numbers:
    if name not in values:
        raise TrainingError(
            f"rewards: nothing tells what component {name!r} pays for this batch, only {sorted(values)} are known. "
            "This is a fault of Onibi: the learner's loop must hand it in."
        )
    return values[name]
