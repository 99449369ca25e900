"""A fragment: what one actor sends at once, E lanes × T rows and the head observations (docs/replay.md)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

CaptionHash = int
"""Unsigned 64-bit hash of a caption's or key's text (``captions.text_hash``); 0 stands for the empty text."""


@dataclass(frozen=True)
class KeyText:
    """A caption key: normalised text, and whether an annotator may be asked about it (bumps and prompts are not)."""

    text: str
    askable: bool = True


@dataclass(frozen=True)
class CaptionText:
    """A raw caption with the keys it splits into, at most K (docs/annotation.md)."""

    text: str
    keys: tuple[KeyText, ...]


@dataclass(frozen=True)
class EpisodeStatistics:
    """One finished episode of one environment.

    ``extra`` holds task figures by name (NetHack: ``score``, ``depth``; ``success`` where the task tells).
    """

    lane: int
    episode_id: int
    episode_return: float  # undiscounted, the environment's own reward
    length: int  # env steps
    terminated: bool
    extra: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class StateRows:
    """States of some rows of a fragment."""

    lane: NDArray[np.int64]  # [m] of the fragment's lanes
    row: NDArray[np.int64]  # [m] of that lane's rows
    values: NDArray[Any]  # [m, ...]

    def __len__(self) -> int:
        return len(self.lane)


@dataclass
class Fragment:
    """Rows of E lanes, lane-major, each lane's rows followed by its head row.

    ``columns[name]`` is ``[E, R, ...]`` C-contiguous with R = T + 1: of lane e the rows ``0 .. rows_per_lane[e] - 1``
    are committed rows and row ``rows_per_lane[e]`` is the head (the observation after the newest row, with its
    ``episode_id`` and ``step``; its other columns are 0). What lies behind is ignored.
    The column ``caption_hash`` (uint64) stands in for the ring's ``caption_id``, which the shard resolves.
    ``states[name]`` are those of the rows that keep one (``StateSpec``).
    """

    actor: int
    incarnation: int
    sequence: int
    rows_per_lane: NDArray[np.int32]  # [E]
    columns: dict[str, NDArray[Any]]
    states: dict[str, StateRows] = field(default_factory=dict)
    new_captions: list[CaptionText] = field(default_factory=list)
    new_texts: list[str] = field(default_factory=list)  # of Text leaves, each with the first rows that have it
    episodes: list[EpisodeStatistics] = field(default_factory=list)
    env_steps: int = 0  # step rows (role 0) in it

    @property
    def envs(self) -> int:
        """E, the number of lanes."""
        return len(self.rows_per_lane)

    @property
    def rows(self) -> int:
        """Committed rows over all lanes, final rows included, heads not."""
        return int(self.rows_per_lane.sum())
