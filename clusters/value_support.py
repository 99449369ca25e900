"""What a run's rewards say of the range of values that its learner has to tell apart."""

from __future__ import annotations

from onibi.clusters.run_settings import RunSettings
from onibi.learners.support import SupportSettings, resolve_support
from onibi.learners.value_losses import BINNED_LOSSES
from onibi.platform.errors import ConfigError
from onibi.platform.rewards.bounds import step_bounds, value_bounds


def bounds_of_values(settings: RunSettings) -> tuple[float, float] | None:
    """Bounds of the discounted return, None where the rewards have none: only a learner that needs them complains."""
    try:
        return value_bounds(settings.rewards, settings.learner.discount)  # type: ignore[attr-defined]
    except ConfigError:
        return None


def coarse_support(settings: RunSettings) -> str:
    """What to warn of where bins are wider than all that a step can pay, for nobody said what an episode pays.

    "" where they are not, or where the range was set.
    """
    learner, bounds = settings.learner, bounds_of_values(settings)
    support = getattr(learner, "support", None)
    if not isinstance(support, SupportSettings) or support.low is not None or support.spacing != "linear":
        return ""
    if bounds is None or getattr(learner, "value_loss", "") not in BINNED_LOSSES:
        return ""
    placed = resolve_support(support, bounds)
    steps = [step_bounds(settings.rewards, name) for name in settings.rewards.components]
    widest = max(step.high - step.low for step in steps)
    if placed.width <= widest:
        return ""
    return (
        f"learner.support follows from what steps can pay: {placed.low:,.4g} to {placed.high:,.4g} in {placed.bins} "
        f"bins of {placed.width:,.3g}, wider than all that a step pays. Values that differ by less are hard to tell "
        "apart: set rewards.extrinsic.episode_low and episode_high to what an episode can pay, or support.low and "
        "support.high"
    )
