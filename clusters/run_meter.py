"""From cumulative counters to the row of figures that a run shows, keeps and tracks at each interval."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np

from onibi.actors.episodes import successes_of
from onibi.platform.checkpoint import Checkpoint
from onibi.platform.fragment import EpisodeStatistics
from onibi.platform.history import read_history
from onibi.platform.run_folder import RunFolder

_EPISODES_SHOWN = 100
_RETURN = "actors/episode_return"
_SHORTEST_SECONDS = 0.1
"""That a rate is told of: right after the start, one fragment in a millisecond would read as a hundred thousand a
second."""


def figures_of_look(look: Mapping[str, Any], updates: int) -> dict[str, float]:
    """Metrics of what the shard tells at a look, with the lag of the weights that act behind ``updates``."""
    row = {
        "replay/readable_rows": float(look["readable_rows"]),
        "replay/repeated_fragments": float(look["repeated"]),
        "replay/lost_fragments": float(look["gaps"]),
        "replay/insert_waited_seconds": look["waited_seconds"],
        "replay/log_waited_seconds": look["log_waited_seconds"],
        **look["log"],
        **look["pacing"],
    }
    if look["policy_updates"]:
        lags = [max(0, updates - acting) for acting in look["policy_updates"]]
        row |= {"actors/policy_lag_mean": sum(lags) / len(lags), "actors/policy_lag_max": float(max(lags))}
    return row


def figures_before(checkpoint: Checkpoint | None) -> dict[str, float]:
    """What the run of a checkpoint told last of its episodes; nothing of one that begins."""
    rows = [] if checkpoint is None else read_history(RunFolder(checkpoint.path.parents[1]).history)
    told = next((row for row in reversed(rows) if _RETURN in row), {})
    return {name: value for name, value in told.items() if isinstance(value, float) and math.isfinite(value)}


@dataclass(frozen=True, kw_only=True)
class RunCounters:
    """Cumulative counters of a run, over all its sessions."""

    seconds: float = 0.0  # of training
    env_steps: int = 0
    updates: int = 0
    drawn_rows: int = 0


class RunMeter:
    """Rates between two looks at the counters, and figures of the last 100 finished episodes.

    Args:
        start: where the session begins.
        earlier: figures that the run told last before this session, as they stand for those of the 100 episodes that
            ended before it. All environments begin anew, so that those which end first are the short ones: by
            themselves they would be a dip in the curve.
    """

    def __init__(self, start: RunCounters, earlier: Mapping[str, float] = MappingProxyType({})) -> None:
        self._last = start
        self._earlier = earlier
        self._rates: dict[str, float] = {}
        self._episodes: deque[tuple[EpisodeStatistics, float]] = deque(maxlen=_EPISODES_SHOWN)

    def add_episodes(self, episodes: Iterable[tuple[EpisodeStatistics, float]]) -> None:
        """Finished episodes, each with its intrinsic return."""
        self._episodes.extend(episodes)

    def row(self, counters: RunCounters) -> dict[str, float]:
        """Figures by metric name; rates are those since the last call, or the call before where that was just now."""
        last = self._last
        seconds, steps = counters.seconds - last.seconds, counters.env_steps - last.env_steps
        if seconds >= _SHORTEST_SECONDS:
            self._last = counters
            self._rates = {"actors/env_steps_per_second": steps / seconds}
            updates, drawn_rows = counters.updates - last.updates, counters.drawn_rows - last.drawn_rows
            if updates >= 0 and drawn_rows >= 0:  # a learner that was replaced counts again from its checkpoint
                self._rates["learner/updates_per_second"] = updates / seconds
                if steps > 0:
                    self._rates["replay/samples_per_insert"] = drawn_rows / steps
        return {
            "time/seconds": counters.seconds,
            "actors/env_steps": float(counters.env_steps),
            "learner/updates": float(counters.updates),
            **self._rates,
            **self._episode_row(),
        }

    def _episode_row(self) -> dict[str, float]:
        if not self._episodes:
            return {}
        episodes = [episode for episode, _ in self._episodes]
        row = {
            _RETURN: float(np.mean([episode.episode_return for episode in episodes])),
            "actors/episode_length": float(np.mean([episode.length for episode in episodes])),
            "actors/intrinsic_return": float(np.mean([paid for _, paid in self._episodes])),
        }
        if successes := successes_of([episode.extra for episode in episodes]):
            row["actors/success_rate"] = float(np.mean(successes))
        for figure in sorted({name for episode in episodes for name in episode.extra} - {"success"}):
            values = [episode.extra[figure] for episode in episodes if figure in episode.extra]
            row[f"actors/{figure}"] = float(np.mean(values))
        share = len(self._episodes) / _EPISODES_SHOWN
        return {
            name: share * value + (1 - share) * self._earlier[name] if name in self._earlier else value
            for name, value in row.items()
        }
