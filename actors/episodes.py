"""Which episode each lane is in, and the figures of those that ended."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from onibi.platform.fragment import EpisodeStatistics

_SESSION_BITS, _INCARNATION_BITS, _EPISODE_BITS = 12, 12, 27


class EpisodeBook:
    """Episode ids, step numbers, returns and lengths of E lanes.

    An episode id is unique in a run: (actor, session, incarnation, running number) in 12 + 12 + 12 + 27 bits.
    """

    def __init__(self, envs: int, actor: int, incarnation: int, session: int) -> None:
        self._next = actor
        for number, bits in ((session, _SESSION_BITS), (incarnation, _INCARNATION_BITS)):
            self._next = (self._next << bits) | (number % (1 << bits))
        self._next <<= _EPISODE_BITS
        self.episode_id: NDArray[np.int64] = self._next + np.arange(envs, dtype=np.int64)
        self._next += envs
        self.step: NDArray[np.int32] = np.zeros(envs, np.int32)
        self._return: NDArray[np.float64] = np.zeros(envs, np.float64)
        self._ended: list[EpisodeStatistics] = []

    def record(
        self,
        reward: NDArray[np.float32],
        terminated: NDArray[Any],
        ended: NDArray[np.bool_],
        stepped: NDArray[np.bool_],
        infos: dict[str, Any],
    ) -> None:
        """Count one step of the ``stepped`` lanes, and close the episodes of the ``ended`` ones. All are [E]."""
        self._return += np.where(stepped, reward, 0.0)
        self.step = (self.step + stepped).astype(np.int32)
        for lane in np.flatnonzero(ended):
            self._ended.append(
                EpisodeStatistics(
                    lane=int(lane),
                    episode_id=int(self.episode_id[lane]),
                    episode_return=float(self._return[lane]),
                    length=int(self.step[lane]),
                    terminated=bool(terminated[lane]),
                    extra=_figures(infos, int(lane)),
                )
            )

    def begin(self, lanes: NDArray[np.bool_]) -> None:
        """Start a new episode in the marked lanes [E]."""
        count = int(lanes.sum())
        self.episode_id = self.episode_id.copy()
        self.episode_id[lanes] = self._next + np.arange(count)
        self._next += count
        self.step = np.where(lanes, 0, self.step).astype(np.int32)
        self._return[lanes] = 0.0

    def take(self) -> list[EpisodeStatistics]:
        """Episodes that ended since the last call."""
        ended, self._ended = self._ended, []
        return ended


def _figures(infos: dict[str, Any], lane: int) -> dict[str, float]:
    """``info["episode_figures"]`` of one lane, as Gymnasium's vector infos hold it (arrays with ``_name`` masks)."""
    figures = infos.get("episode_figures")
    if not isinstance(figures, dict):
        return {}
    return {
        name: float(values[lane])
        for name, values in figures.items()
        if not name.startswith("_") and bool(figures.get(f"_{name}", np.ones(lane + 1))[lane])
    }
