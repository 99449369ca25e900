"""Table components of the reward: what a caption is worth, by a table over its keys (docs/annotation.md).

    r = coefficient · maxⱼ value[keyⱼ] / Nⱼ^count_power

The kinds differ in where ``value`` comes from; the mixer reads the table alone and knows no kind.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

from onibi.platform.config import Settings
from onibi.platform.rewards.coefficient import Coefficient, check_coefficient
from onibi.platform.rewards.table_chain import (
    ClassificationChain,
    Control,
    RankingChain,
    RetrievalChain,
    SimilarityChain,
)

TABLE_COMPONENTS = {
    "retrieval": "onibi.platform.rewards.table_component:Retrieval",
    "classification": "onibi.platform.rewards.table_component:Classification",
    "ranking": "onibi.platform.rewards.table_component:Ranking",
    "similarity": "onibi.platform.rewards.table_component:Similarity",
}


@dataclass(frozen=True, kw_only=True)
class TableComponentSettings(Settings):
    """What all kinds have in common."""

    kind: Literal["retrieval", "classification", "ranking", "similarity"]
    coefficient: Coefficient = 0.1  # a_int, or {start, end, env_steps}
    count_power: float = 3.0  # β: a key pays at most Σ N^−β times its value in an episode
    # Most of an episode's discounted sum before the coefficient; it sizes the value support and caps no reward. The
    # number of keys is not bounded, so no bound follows from β; null: a step can pay its most for ever.
    episode_high: float | None = None
    # Most that an episode is paid before the coefficient, undiscounted; what comes after that pays 0. null: no cap.
    episode_cap: float | None = None
    control: Control = "none"  # all_ones: each askable key is worth 1; permuted: labels change places between keys

    def __post_init__(self) -> None:
        check_coefficient(self.coefficient, negative=False)
        if not 0 <= self.count_power < math.inf:
            raise ValueError(f"count_power is {self.count_power}; it must be 0 or more")
        for name in ("episode_high", "episode_cap"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"{name} is {value}; it must be above 0, or null")

    @property
    def value_bounds(self) -> tuple[float, float]:
        """(least, largest) value of a key in a table of this kind; infinite where nothing bounds it."""
        return 0.0, 1.0


@dataclass(frozen=True, kw_only=True)
class RetrievalSettings(TableComponentSettings, RetrievalChain):
    """The label itself: helpful 1, else 0; 0 while there is none."""

    kind: Literal["retrieval"] = "retrieval"


@dataclass(frozen=True, kw_only=True)
class ClassificationSettings(TableComponentSettings, ClassificationChain):
    """A text classifier that is trained on the labels."""

    kind: Literal["classification"] = "classification"

    def __post_init__(self) -> None:
        TableComponentSettings.__post_init__(self)
        ClassificationChain.__post_init__(self)


@dataclass(frozen=True, kw_only=True)
class RankingSettings(TableComponentSettings, RankingChain):
    """A text scorer that is trained on preferences between captions, as Motif's."""

    kind: Literal["ranking"] = "ranking"

    def __post_init__(self) -> None:
        TableComponentSettings.__post_init__(self)
        RankingChain.__post_init__(self)

    @property
    def value_bounds(self) -> tuple[float, float]:
        """(least, largest) value of a key: a normalised score is capped."""
        return 0.0, 1.0 if self.control == "all_ones" else self.cap


@dataclass(frozen=True, kw_only=True)
class SimilaritySettings(TableComponentSettings, SimilarityChain):
    """How alike a caption and the goal are, as the annotator's score tells."""

    kind: Literal["similarity"] = "similarity"

    def __post_init__(self) -> None:
        TableComponentSettings.__post_init__(self)
        SimilarityChain.__post_init__(self)


class Retrieval:
    """Names the settings of its kind."""

    Settings: ClassVar[type[TableComponentSettings]] = RetrievalSettings


class Classification:
    """Names the settings of its kind."""

    Settings: ClassVar[type[TableComponentSettings]] = ClassificationSettings


class Ranking:
    """Names the settings of its kind."""

    Settings: ClassVar[type[TableComponentSettings]] = RankingSettings


class Similarity:
    """Names the settings of its kind."""

    Settings: ClassVar[type[TableComponentSettings]] = SimilaritySettings
