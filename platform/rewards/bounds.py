"""What a step and an episode can pay: for the value support ``auto``."""

from __future__ import annotations

import math
from dataclasses import dataclass

from onibi.platform.errors import ConfigError
from onibi.platform.rewards.coefficient import coefficient_range
from onibi.platform.rewards.settings import EXTRINSIC, INTRINSIC, RewardSettings


@dataclass(frozen=True)
class Bounds:
    """Inclusive bounds, infinite where nothing is known."""

    low: float
    high: float

    def times(self, other: Bounds) -> Bounds:
        """Of the product of two numbers in these bounds; 0 · ∞ is 0: what is switched off is bounded."""
        ends = [_product(a, b) for a in (self.low, self.high) for b in (other.low, other.high)]
        return Bounds(min(ends), max(ends))

    def plus(self, other: Bounds) -> Bounds:
        """Of the sum of two numbers in these bounds."""
        return Bounds(self.low + other.low, self.high + other.high)


def step_bounds(settings: RewardSettings, component: str) -> Bounds:
    """What one step of a component can pay, its coefficient at any time included.

    Raises: KeyError for an unknown component.
    """
    return _plain_step(settings, component).times(_coefficients(settings, component))


def value_bounds(settings: RewardSettings, discount: float) -> tuple[float, float]:
    """Bounds of the discounted return, for the value support ``auto``.

        [low, high] = Σ over terms of coefficients · clamp(step bounds / (1 − γ), episode bounds)

    A limit of env steps does not narrow them: it truncates, and values of truncated episodes are bootstrapped, so what
    is learnt is the return of an episode that goes on.

    A component's ``episode_low``, ``episode_high`` and ``episode_cap`` replace what follows from the steps where they
    are tighter. The first two are declarations: a return beyond them is clipped to the support and counted there. A
    product of components that are never negative is at most one's episode bound times the others' step bounds.

    Args:
        settings: components and their bounds.
        discount: γ in [0, 1].
    Returns: (low, high), finite, low < high.
    Raises: ConfigError where no finite or no non-empty bounds follow.
    """
    if not 0 <= discount <= 1:
        raise ConfigError(f"discount is {discount}; it must be between 0 and 1")
    steps = math.inf if discount == 1 else 1 / (1 - discount)
    total = Bounds(0.0, 0.0)
    for term in settings.terms:
        total = total.plus(_term(settings, term, steps))
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


def _term(settings: RewardSettings, term: tuple[str, ...], steps: float) -> Bounds:
    """Bounds of the discounted sum of a term: one component, or several multiplied."""
    coefficients, plain = Bounds(1.0, 1.0), [_plain_step(settings, name) for name in term]
    for name in term:
        coefficients = coefficients.times(_coefficients(settings, name))
    product = Bounds(1.0, 1.0)
    for each in plain:
        product = product.times(each)
    episode = product.times(Bounds(steps, steps))
    for place, name in enumerate(term):
        others = Bounds(1.0, 1.0)
        for each in plain[:place] + plain[place + 1 :]:
            others = others.times(each)
        if len(term) > 1 and min(each.low for each in plain) < 0:
            continue  # a sum's bounds say nothing of its parts' where these have both signs
        declared = _declared_episode(settings, name).times(Bounds(others.high, others.high))
        episode = Bounds(max(episode.low, declared.low), min(episode.high, declared.high))
    return episode.times(coefficients)


def _plain_step(settings: RewardSettings, component: str) -> Bounds:
    if component == EXTRINSIC:
        limit = math.inf if settings.extrinsic.clip is None else settings.extrinsic.clip
        return Bounds(-limit, limit)
    if component == INTRINSIC and settings.intrinsic is not None:
        return Bounds(*settings.intrinsic.value_bounds)
    if component in settings.bonuses:
        return Bounds(0.0, settings.bonuses[component].clip)
    raise KeyError(f"no reward component {component!r}; this run has {settings.components}")


def _declared_episode(settings: RewardSettings, component: str) -> Bounds:
    """What the settings say of an episode's discounted sum, before the coefficient."""
    if component == EXTRINSIC:
        low, high = settings.extrinsic.episode_low, settings.extrinsic.episode_high
        return Bounds(-math.inf if low is None else low, math.inf if high is None else high)
    own = settings.intrinsic if component == INTRINSIC else settings.bonuses[component]
    assert own is not None
    limits = [limit for limit in (own.episode_high, own.episode_cap) if limit is not None]
    return Bounds(-math.inf, min(limits, default=math.inf))


def _coefficients(settings: RewardSettings, component: str) -> Bounds:
    if component == EXTRINSIC:
        return Bounds(*coefficient_range(settings.extrinsic.coefficient))
    own = settings.intrinsic if component == INTRINSIC else settings.bonuses[component]
    assert own is not None
    return Bounds(*coefficient_range(own.coefficient))


def _product(a: float, b: float) -> float:
    return 0.0 if a == 0 or b == 0 else a * b
