"""The reward mixer: components stay apart until here, and each one declares its bounds (design §4).

    r = a_ext · clip(s · r_ext, −clip, clip)  +  a_int · maxⱼ value[keyⱼ] / Nⱼ^β
        └── component ``extrinsic`` ──────┘      └── component ``intrinsic`` ─┘

Differences from ONI's reference: action aₜ is paid for the caption of oₜ₊₁, the terminal one too; N counts normalised
keys, and of several keys in one caption the best one pays.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from onibi.platform.config import Settings
from onibi.platform.errors import ConfigError
from onibi.platform.reward_table import LABELLED, UNLABELLED, RewardTable, caption_rewards

EXTRINSIC, INTRINSIC = "extrinsic", "intrinsic"
"""Names of the components."""


@dataclass(frozen=True, kw_only=True)
class ExtrinsicSettings(Settings):
    """The environment's own reward: coefficient · clip(scale · r, −clip, clip)."""

    kind: Literal["environment"] = "environment"
    coefficient: float = 1.0  # a_ext; 0 trains without the environment's reward
    scale: float = 1.0  # s
    clip: float | None = 10.0  # on scale · r; null: not clipped
    episode_low: float | None = None  # least discounted sum of scale · r in an episode; null: follows from the steps
    episode_high: float | None = None  # the most

    def __post_init__(self) -> None:
        _check_finite("coefficient", self.coefficient)
        _check_finite("scale", self.scale)
        if self.clip is not None and not self.clip > 0:
            raise ValueError(f"clip is {self.clip}; it must be above 0, or null for no clipping")
        if self.episode_low is not None and self.episode_high is not None and self.episode_low > self.episode_high:
            raise ValueError(f"episode_low {self.episode_low} is above episode_high {self.episode_high}")


@dataclass(frozen=True, kw_only=True)
class IntrinsicSettings(Settings):
    """Reward of captions from labels: coefficient · maxⱼ value[keyⱼ] / Nⱼ^count_power, in [0, coefficient] a step."""

    kind: Literal["retrieval"] = "retrieval"
    coefficient: float = 0.1  # a_int
    count_power: float = 3.0  # β: a key pays at most Σ N^−β times its value in an episode
    # Most of an episode's discounted sum before the coefficient; it sizes the value support and caps no reward. The
    # number of keys is not bounded, so no bound follows from β; null: a step can pay 1 for ever.
    episode_high: float | None = None

    def __post_init__(self) -> None:
        _check_finite("coefficient", self.coefficient)
        if self.coefficient < 0:
            raise ValueError(
                f"coefficient is {self.coefficient}; it must be 0 or more: helpful captions are not punished"
            )
        if not 0 <= self.count_power < math.inf:
            raise ValueError(f"count_power is {self.count_power}; it must be 0 or more")
        if self.episode_high is not None and not self.episode_high > 0:
            raise ValueError(f"episode_high is {self.episode_high}; it must be above 0, or null")


@dataclass(frozen=True, kw_only=True)
class RewardSettings(Settings):
    """What a run pays. ``intrinsic: null``, the default, pays the environment's reward alone."""

    extrinsic: ExtrinsicSettings = field(default_factory=ExtrinsicSettings)
    intrinsic: IntrinsicSettings | None = None


@dataclass(frozen=True)
class Bounds:
    """Inclusive bounds, infinite where nothing is known."""

    low: float
    high: float


class RewardWindows(Protocol):
    """What the mixer reads of ``replay.windows.Windows``; leading axes are free, [B, n] there."""

    @property
    def reward(self) -> NDArray[np.float32]:
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
class MixedRewards:
    """Rewards of drawn windows under one table version."""

    total: NDArray[np.float32]
    """[B, n], the sum of the components; 0 after a window's end."""
    components: dict[str, NDArray[np.float32]]
    """Each [B, n], coefficient included."""
    labelled_share: float
    """Of the steps whose caption has something to ask, the share with every label there; 1 where no step has."""
    clipped_share: float
    """Share of steps whose environment reward was clipped."""
    table_version: int
    """−1 where there was no table yet."""


class RewardMixer:
    """Turns windows into rewards; holds no state, so the same windows and table give the same rewards again."""

    def __init__(self, settings: RewardSettings) -> None:
        self.settings = settings

    def mix(self, windows: RewardWindows, table: RewardTable | None) -> MixedRewards:
        """Rewards of all steps.

        Args:
            windows: as drawn; not written to.
            table: the newest one; None before the first, when captions pay 0.
        Raises: CaptionError where the counts' K is not the table's.
        """
        extrinsic, intrinsic = self.settings.extrinsic, self.settings.intrinsic
        used = windows.used
        scaled = np.where(used, windows.reward * np.float32(extrinsic.scale), np.float32(0))
        clipped_share = 0.0
        if extrinsic.clip is not None:
            clipped = np.clip(scaled, -extrinsic.clip, extrinsic.clip)
            clipped_share = float(np.count_nonzero(clipped != scaled)) / max(int(np.count_nonzero(used)), 1)
            scaled = clipped
        components: dict[str, NDArray[np.float32]] = {EXTRINSIC: np.float32(extrinsic.coefficient) * scaled}
        total = components[EXTRINSIC]
        if intrinsic is not None:
            if table is None:
                paid = np.zeros_like(total)
            else:
                heard, _ = caption_rewards(table, windows.caption_id, windows.caption_count, intrinsic.count_power)
                paid = np.where(used, np.float32(intrinsic.coefficient) * heard, np.float32(0))
            components[INTRINSIC] = paid
            total = total + paid
        return MixedRewards(
            total=total,
            components=components,
            labelled_share=labelled_share(table, windows.caption_id, used),
            clipped_share=clipped_share,
            table_version=-1 if table is None else table.version,
        )

    def bounds(self, component: str) -> Bounds:
        """What one step of this component can pay, coefficient included. Raises: KeyError for an unknown one."""
        if component == EXTRINSIC:
            limit = math.inf if self.settings.extrinsic.clip is None else self.settings.extrinsic.clip
            return _scaled(Bounds(-limit, limit), self.settings.extrinsic.coefficient)
        if component == INTRINSIC and self.settings.intrinsic is not None:
            return _scaled(Bounds(0.0, 1.0), self.settings.intrinsic.coefficient)
        raise KeyError(f"no reward component {component!r}; this mixer has {self.components}")

    @property
    def components(self) -> tuple[str, ...]:
        """Names of the components, in the order of the sum."""
        return (EXTRINSIC,) if self.settings.intrinsic is None else (EXTRINSIC, INTRINSIC)


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


def value_bounds(settings: RewardSettings, discount: float, horizon: int | None) -> tuple[float, float]:
    """Bounds of the discounted return, for the value support ``auto``.

        [low, high] = Σ over components of coefficient · clamp(step bounds · (1 − γᴴ)/(1 − γ), episode bounds)

    ``episode_low`` and ``episode_high`` replace what follows from the steps where they are tighter. They are
    declarations: a return beyond them is clipped to the support and counted there.

    Args:
        settings: components and their bounds.
        discount: γ in [0, 1].
        horizon: H, the most env steps of an episode; None for no limit.
    Returns: (low, high), finite, low < high.
    Raises: ConfigError where no finite or no non-empty bounds follow.
    """
    if not 0 <= discount <= 1:
        raise ConfigError(f"discount is {discount}; it must be between 0 and 1")
    steps = (math.inf if horizon is None else float(horizon)) if discount == 1 else 1 / (1 - discount)
    if horizon is not None and discount < 1:
        steps = (1 - discount**horizon) / (1 - discount)
    extrinsic, intrinsic = settings.extrinsic, settings.intrinsic
    limit = math.inf if extrinsic.clip is None else extrinsic.clip
    low = max(-limit * steps, -math.inf if extrinsic.episode_low is None else extrinsic.episode_low)
    high = min(limit * steps, math.inf if extrinsic.episode_high is None else extrinsic.episode_high)
    parts = [_scaled(Bounds(low, high), extrinsic.coefficient)]
    if intrinsic is not None:
        most = min(steps, math.inf if intrinsic.episode_high is None else intrinsic.episode_high)
        parts.append(_scaled(Bounds(0.0, most), intrinsic.coefficient))
    total = Bounds(sum(part.low for part in parts), sum(part.high for part in parts))
    if not (math.isfinite(total.low) and math.isfinite(total.high)):
        raise ConfigError(
            f"rewards: the return is bounded by {total.low} and {total.high}, so no value support follows. Set "
            "rewards.extrinsic.clip, rewards.extrinsic.episode_low and episode_high, a discount below 1, or the "
            "learner's support itself"
        )
    if not total.low < total.high:
        raise ConfigError(
            f"rewards: every return is {total.low}, there is nothing to learn. Set a coefficient of "
            "rewards.extrinsic or rewards.intrinsic above 0, and episode_low below episode_high"
        )
    return total.low, total.high


def _scaled(bounds: Bounds, factor: float) -> Bounds:
    if factor == 0:  # 0 · inf would be NaN: a component that is switched off is bounded whatever it is
        return Bounds(0.0, 0.0)
    ends = bounds.low * factor, bounds.high * factor
    return Bounds(min(ends), max(ends))


def _check_finite(name: str, value: float) -> None:
    if not math.isfinite(value):
        raise ValueError(f"{name} is {value}; it must be a finite number")
