"""Which columns bonuses read of observations, and which they add to the rows."""

from __future__ import annotations

from collections.abc import Mapping

from onibi.platform.errors import ConfigError
from onibi.platform.rewards.bonus_settings import (
    BonusSettings,
    NovelDSettings,
    bonus_column,
    is_row_component,
    visit_column,
)
from onibi.platform.spec import ACTION_MASK, TEXT_HASH, ArraySpec, ReplaySpec

CAPTION_COUNTS = "observation.caption_counts"
"""The observation leaf that tells of what was heard: no part of where an agent is."""


def bonus_leaves(name: str, bonus: BonusSettings, spec: ReplaySpec, *, numbers: bool) -> tuple[ArraySpec, ...]:
    """The observation leaves that a bonus reads: those that its settings name, else all but masks and caption counts.

    Args:
        name: of the bonus, for the message.
        bonus: its settings; one without ``leaves`` reads none.
        spec: row layout.
        numbers: whether they are read as numbers, so that hashes of texts are left out.
    Raises: ConfigError for a leaf that is not there, or where none is left.
    """
    if not hasattr(bonus, "leaves"):
        return ()
    wanted: tuple[str, ...] | None = bonus.leaves
    known = [leaf for leaf in spec.observation if not (numbers and leaf.content == TEXT_HASH)]
    names = [leaf.name for leaf in known]
    if unknown := [leaf for leaf in wanted or () if leaf not in names]:
        raise ConfigError(f"rewards.bonuses.{name}.leaves names {unknown}; this observation has {', '.join(names)}.")
    chosen = tuple(
        leaf
        for leaf in known
        if (leaf.name in wanted if wanted is not None else leaf.name not in (ACTION_MASK, CAPTION_COUNTS))
    )
    if not chosen:
        raise ConfigError(
            f"rewards.bonuses.{name}: there is no observation leaf to read; name some of {', '.join(names)} in "
            "leaves, or leave the bonus out."
        )
    return chosen


def bonus_row_columns(bonuses: Mapping[str, BonusSettings]) -> tuple[ArraySpec, ...]:
    """The ring columns that actors write for bonuses."""
    columns = []
    for name, bonus in bonuses.items():
        if is_row_component(bonus):
            columns.append(ArraySpec(name=bonus_column(name), dtype="float32", unit="bonus; NaN: not known"))
        if isinstance(bonus, NovelDSettings):
            columns.append(ArraySpec(name=visit_column(name), dtype="uint8", unit="1: met first in the episode"))
    return tuple(columns)
