"""What a run's bonuses need of its rows, its draws and its actors, worked out once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from onibi.clusters.run_settings import RunSettings
from onibi.learners.bonuses.features import numpy_features
from onibi.learners.learner import ReplayNeeds
from onibi.platform.errors import ConfigError
from onibi.platform.features import FeaturesFactory
from onibi.platform.replay.ring.reader import RingReader
from onibi.platform.replay.samplers.draws import WindowDraws
from onibi.platform.replay.samplers.window_gather import EachRow
from onibi.platform.rewards.bonus_columns import bonus_leaves, bonus_row_columns
from onibi.platform.rewards.bonus_settings import BonusSettings, E3bSettings, is_batch_component
from onibi.platform.spec import ReplaySpec

if TYPE_CHECKING:
    from onibi.clusters.run_plan import RunPlan
    from onibi.learners.bonuses.reward_sources import RewardSources


def check_bonuses(settings: RunSettings, *, has_captions: bool) -> None:
    """Raises: ConfigError for a bonus that this run cannot pay, or heads that are not those of its rewards."""
    for name, bonus in settings.rewards.bonuses.items():
        place = f"rewards.bonuses.{name} is {bonus.kind}"
        if bonus.kind == "key_counts" and not has_captions:
            raise ConfigError(
                f"{place}, but captioner.kind is none: there are no captions to count. Choose a captioner, or "
                "observation_counts."
            )
        if is_learned(bonus) and settings.placement.learners > 1:
            raise ConfigError(
                f"{place}, which one learner process learns from all rows, but placement.learners is "
                f"{settings.placement.learners}. Set it to 1, or take a bonus with scope: episodic."
            )
        if isinstance(bonus, E3bSettings) and getattr(settings.placement, "inference", None) is not None:
            raise ConfigError(
                f"{place}, whose encoder comes to the actors with the weights, but with placement.inference actors "
                "get none. Set placement.inference to null, or choose another bonus."
            )
    heads = getattr(settings.learner, "heads", None)
    if heads is not None and sorted(heads) != sorted(settings.rewards.term_names):
        raise ConfigError(
            f"learner.heads values {', '.join(sorted(heads))}, the terms of rewards are "
            f"{', '.join(settings.rewards.term_names)}. Name each term once, or set learner.heads to null."
        )


def is_learned(bonus: BonusSettings) -> bool:
    """Whether the learner's process has a module for it."""
    return is_batch_component(bonus) or isinstance(bonus, E3bSettings)


def needs_with_bonuses(needs: ReplayNeeds, bonuses: Mapping[str, BonusSettings], spec: ReplaySpec) -> ReplayNeeds:
    """What a learner needs of replay, and what its rewards need besides.

    Args:
        needs: the learner's.
        bonuses: of the run.
        spec: row layout; its observation is read.
    Raises: ConfigError where a bonus names leaves that are not there.
    """
    columns = bonus_row_columns(bonuses)
    draws = needs.draws
    if isinstance(draws, WindowDraws):  # sequences and slabs have every row anyway
        leaves = {
            leaf.name: None
            for name, bonus in bonuses.items()
            if is_batch_component(bonus)
            for leaf in bonus_leaves(name, bonus, spec, numbers=not hasattr(bonus, "scope"))
        }
        each_row = EachRow(extra=tuple(column.name for column in columns), observation=tuple(leaves))
        draws = replace(draws, each_row=each_row)
    return replace(needs, draws=draws, extra=(*needs.extra, *columns))


def bonus_features(bonuses: Mapping[str, BonusSettings], spec: ReplaySpec) -> dict[str, FeaturesFactory]:
    """What makes encoders in actors, by the bonus that wants one. Raises: ConfigError as above."""
    return {
        name: numpy_features(bonus_leaves(name, bonus, spec, numbers=True))
        for name, bonus in bonuses.items()
        if isinstance(bonus, E3bSettings)
    }


def make_sources(plan: RunPlan, ring: Path, learner: int = 0) -> RewardSources | None:
    """What the rewards of a learner need beside its batches; None where they need nothing.

    Args:
        plan: of the run.
        ring: path of the ring, on this node.
        learner: number of this one among several.
    """
    from onibi.clusters.run_plan import ROLE_BONUSES, role_seed
    from onibi.learners.bonuses.reward_sources import RewardSources, needs_sources

    if not needs_sources(plan.settings.rewards):
        return None
    placement = plan.settings.placement
    return RewardSources(
        plan.settings.rewards,
        RingReader(ring),
        plan.spec,
        stack=plan.stack,
        seed=role_seed(plan.settings, ROLE_BONUSES),
        device="cuda" if placement.learner_gpus > 0 else "cpu",
        lanes=None if placement.learners == 1 else range(learner, plan.lanes, placement.learners),
        steps_before=plan.steps_before[plan.shard] if plan.steps_before else 0,
        steps_per_row=placement.shards,
    )
