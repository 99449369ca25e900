"""What a run pays: the components of its reward, and how they are put together."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Literal

from onibi.platform.config import Settings, selected, selected_each
from onibi.platform.rewards.bonus_settings import BONUSES, BonusSettings
from onibi.platform.rewards.coefficient import Coefficient, check_coefficient
from onibi.platform.rewards.table_component import TABLE_COMPONENTS, TableComponentSettings

EXTRINSIC, INTRINSIC = "extrinsic", "intrinsic"
"""Names of the components that are not bonuses."""

_NAME = re.compile(r"[a-z][a-z0-9_]*")


@dataclass(frozen=True, kw_only=True)
class ExtrinsicSettings(Settings):
    """The environment's own reward: coefficient · clip(scale · r, −clip, clip)."""

    kind: Literal["environment"] = "environment"
    coefficient: Coefficient = 1.0  # a_ext, or {start, end, env_steps}; 0 trains without the environment's reward
    scale: float = 1.0  # s
    clip: float | None = 10.0  # on scale · r; null: not clipped
    episode_low: float | None = None  # least discounted sum of scale · r in an episode; null: follows from the steps
    episode_high: float | None = None  # the most

    def __post_init__(self) -> None:
        check_coefficient(self.coefficient, negative=True)
        if self.clip is not None and not self.clip > 0:
            raise ValueError(f"clip is {self.clip}; it must be above 0, or null for no clipping")
        if self.episode_low is not None and self.episode_high is not None and self.episode_low > self.episode_high:
            raise ValueError(f"episode_low {self.episode_low} is above episode_high {self.episode_high}")


@dataclass(frozen=True, kw_only=True)
class RewardSettings(Settings):
    """What a run pays. ``intrinsic: null``, the default, and no bonuses: the environment's reward alone.

    Components are added up, but for those in ``products``: each product is one term of the sum, and what it names is
    not added by itself (unless a list names it alone).
    """

    extrinsic: ExtrinsicSettings = field(default_factory=ExtrinsicSettings)
    intrinsic: TableComponentSettings | None = selected(TABLE_COMPONENTS, "retrieval", optional=True)
    bonuses: dict[str, BonusSettings] = selected_each(BONUSES)
    products: tuple[tuple[str, ...], ...] = ()  # [[intrinsic, rnd]]: these two are multiplied

    def __post_init__(self) -> None:
        for name in self.bonuses:
            if name in (EXTRINSIC, INTRINSIC) or not _NAME.fullmatch(name):
                raise ValueError(
                    f"bonuses has the name {name!r}; allowed: lower-case letters, digits and _, beginning with a "
                    f"letter, and neither {EXTRINSIC} nor {INTRINSIC}"
                )
        for product in self.products:
            unknown = [name for name in product if name not in self.components]
            if not product or unknown or len(set(product)) < len(product):
                raise ValueError(
                    f"products has {list(product)}; allowed: lists of different names among "
                    f"{', '.join(self.components)}"
                )

    @property
    def components(self) -> tuple[str, ...]:
        """Names of all components, bonuses last."""
        return (EXTRINSIC, *(() if self.intrinsic is None else (INTRINSIC,)), *self.bonuses)

    @property
    def terms(self) -> tuple[tuple[str, ...], ...]:
        """What is added up, each term by the names that are multiplied in it."""
        multiplied = {name for product in self.products for name in product}
        return (*((name,) for name in self.components if name not in multiplied), *self.products)

    @property
    def term_names(self) -> tuple[str, ...]:
        """Names of ``terms``: of a product, its components' joined by "-"."""
        return tuple("-".join(term) for term in self.terms)
