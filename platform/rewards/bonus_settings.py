"""Settings of the bonuses beside the caption reward, by kind. Torch-free: every process of a run reads them.

What computes a bonus is found by its kind: ``row`` ones in ``actors/bonuses``, ``batch`` ones in ``learners/bonuses``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from onibi.platform.config import Settings
from onibi.platform.number_ranges import Count, NotNegative, Positive
from onibi.platform.rewards.coefficient import Coefficient, check_coefficient

BONUSES = {
    "key_counts": "onibi.platform.rewards.bonus_settings:KeyCounts",
    "observation_counts": "onibi.platform.rewards.bonus_settings:ObservationCounts",
    "rnd": "onibi.platform.rewards.bonus_settings:Rnd",
    "noveld": "onibi.platform.rewards.bonus_settings:NovelD",
    "e3b": "onibi.platform.rewards.bonus_settings:E3b",
}

Scope = Literal["episodic", "global"]


@dataclass(frozen=True, kw_only=True)
class BonusSettings(Settings):
    """What all bonuses have in common."""

    kind: Literal["key_counts", "observation_counts", "rnd", "noveld", "e3b"]
    coefficient: Coefficient = 0.1  # or {start, end, env_steps}
    clip: Positive = 1.0  # on a step's bonus before the coefficient; what is cut is counted
    # Most of an episode's discounted sum before the coefficient; it sizes the value support and caps no reward.
    episode_high: Positive | None = None
    # Most that an episode is paid before the coefficient, undiscounted; what comes after that pays 0. null: no cap.
    episode_cap: Positive | None = None

    def __post_init__(self) -> None:
        check_coefficient(self.coefficient, negative=False)
        if self.episode_cap is not None and not pays_once_and_for_all(self):
            raise ValueError(
                f"episode_cap is {self.episode_cap}, but a {self.kind} bonus of a row changes with every update, so "
                "what an episode was paid before is not known. Set it to null, lower clip, or let the coefficient fall."
            )


@dataclass(frozen=True, kw_only=True)
class KeyCountsSettings(BonusSettings):
    """maxⱼ 1 / N(keyⱼ)^power over a caption's keys that somebody may be asked about."""

    kind: Literal["key_counts"] = "key_counts"
    scope: Scope = "episodic"  # N: times heard in this episode, this time included; global: in the run, as of now
    power: NotNegative = 0.5


@dataclass(frozen=True, kw_only=True)
class ObservationCountsSettings(BonusSettings):
    """1 / N(o′)^power."""

    kind: Literal["observation_counts"] = "observation_counts"
    scope: Scope = "episodic"  # N: times seen in this episode, this time included; global: in the run, as of now
    power: NotNegative = 0.5
    leaves: tuple[str, ...] | None = None  # what makes two observations the same; null: all but caption counts
    table_rows: Annotated[int, Field(ge=1024, le=1 << 30)] = 1 << 20  # global: by a hash of so many values


@dataclass(frozen=True, kw_only=True)
class DistillationSettings(BonusSettings):
    """What ``rnd`` and ``noveld`` have in common: a predictor of a random network's features."""

    clip: Positive = 5.0
    leaves: tuple[str, ...] | None = None  # what the networks read; null: all but caption counts
    features: Count = 64  # width of what is predicted
    learning_rate: Positive = 1e-4
    train_rows: Count = 128  # rows of a gradient step; each new row is in one of them, once
    predictor_hidden: Count = 128  # width of the layer that the predictor has more than its target


@dataclass(frozen=True, kw_only=True)
class RndSettings(DistillationSettings):
    """‖predictor(o′) − target(o′)‖² divided by its running deviation."""

    kind: Literal["rnd"] = "rnd"


@dataclass(frozen=True, kw_only=True)
class NovelDSettings(DistillationSettings):
    """max(RND(o′) − scale · RND(o), 0) · 1[first visit of o′ in the episode], RND as that of ``rnd``."""

    kind: Literal["noveld"] = "noveld"
    scale: NotNegative = 0.5  # α


@dataclass(frozen=True, kw_only=True)
class E3bSettings(BonusSettings):
    """φᵀC⁻¹φ of o′ before C takes it in; C = ridge · I at an episode's begin."""

    kind: Literal["e3b"] = "e3b"
    clip: Positive = 10.0
    ridge: Positive = 0.1  # λ
    leaves: tuple[str, ...] | None = None  # what the encoder reads; null: all but caption counts
    features: Annotated[int, Field(ge=1, le=1024)] = 32  # d: the actor keeps d² numbers a lane
    hidden: Annotated[tuple[Count, ...], Field(min_length=1)] = (128,)  # of the encoder
    learning_rate: Positive = 1e-3
    train_rows: Count = 128  # rows of a gradient step; each new row is in one of them, once


class KeyCounts:
    """Names the settings of its kind."""

    Settings: ClassVar[type[BonusSettings]] = KeyCountsSettings


class ObservationCounts:
    """Names the settings of its kind."""

    Settings: ClassVar[type[BonusSettings]] = ObservationCountsSettings


class Rnd:
    """Names the settings of its kind."""

    Settings: ClassVar[type[BonusSettings]] = RndSettings


class NovelD:
    """Names the settings of its kind."""

    Settings: ClassVar[type[BonusSettings]] = NovelDSettings


class E3b:
    """Names the settings of its kind."""

    Settings: ClassVar[type[BonusSettings]] = E3bSettings


def is_row_component(bonus: BonusSettings) -> bool:
    """Whether an actor writes what the bonus pays into the rows."""
    return isinstance(bonus, E3bSettings) or getattr(bonus, "scope", "global") == "episodic"


def is_batch_component(bonus: BonusSettings) -> bool:
    """Whether a module in the learner's process pays the bonus for drawn rows."""
    return not is_row_component(bonus)


def pays_once_and_for_all(bonus: BonusSettings) -> bool:
    """Whether a row's bonus stays as it is: that of a module changes with every update."""
    return not is_batch_component(bonus)


def bonus_column(name: str) -> str:
    """The ring column of the ``row`` component that a user has named ``name``: float32, NaN = not yet."""
    return f"bonus.{name}"


def visit_column(name: str) -> str:
    """The ring column that tells a ``noveld`` bonus whether o′ was met in the episode for the first time: uint8."""
    return f"bonus.{name}.first_visit"
