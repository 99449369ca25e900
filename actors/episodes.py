"""Which episode each lane is in, and the figures of those that ended."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from onibi.platform.errors import EnvironmentFault
from onibi.platform.fragment import EpisodeStatistics

_SESSION_BITS, _INCARNATION_BITS, _EPISODE_BITS = 12, 12, 27


class EpisodeBook:
    """Episode ids, step numbers, returns and lengths of E lanes.

    An episode id is unique in a run: (actor, session, incarnation, running number) in 12 + 12 + 12 + 27 bits.
    ``episode_id`` [E] int64 and ``step`` [E] int32 are changed in place: who keeps them takes a copy.
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

    def record(self, reward: NDArray[np.float32]) -> None:
        """Count one step of every lane, ``reward`` [E]; ``begin`` sets those back that were only reset in it."""
        self._return += reward
        self.step += 1

    def end(
        self,
        lanes: NDArray[np.intp],
        terminated: NDArray[np.bool_],
        infos: dict[str, Any],
        returns: Mapping[str, NDArray[np.float64]],
    ) -> None:
        """Close the episodes of ``lanes`` (their numbers), whose last step was recorded just now.

        Args:
            lanes: ascending; none is allowed.
            terminated: [E] of that step.
            infos: of that step; ``infos["episode_figures"]`` becomes the statistics' ``extra``. Where no success is
                among them, that of ``infos["is_success"]`` or ``infos["success"]`` is taken.
            returns: [E] what bonuses paid in each lane's episode; ``return_NAME`` in ``extra``.
        Raises: EnvironmentFault where a figure is no number; None and NaN say nothing.
        """
        figures = infos.get("episode_figures")
        figures = figures if isinstance(figures, dict) else None
        for lane, episode_id, episode_return, length, fell in zip(
            lanes.tolist(),
            self.episode_id[lanes].tolist(),
            self._return[lanes].tolist(),
            self.step[lanes].tolist(),
            terminated[lanes].tolist(),
            strict=True,
        ):
            self._ended.append(
                EpisodeStatistics(
                    lane=lane,
                    episode_id=episode_id,
                    episode_return=episode_return,
                    length=length,
                    terminated=fell,
                    extra=_success(infos, lane)
                    | ({} if figures is None else _figures(figures, lane))
                    | {f"return_{name}": float(paid[lane]) for name, paid in returns.items()},
                )
            )

    def begin(self, lanes: NDArray[np.intp]) -> None:
        """Start a new episode in ``lanes`` (their numbers, ascending)."""
        count = len(lanes)
        self.episode_id[lanes] = np.arange(self._next, self._next + count)
        self._next += count
        self.step[lanes] = 0
        self._return[lanes] = 0.0

    def take(self) -> list[EpisodeStatistics]:
        """Episodes that ended since the last call."""
        ended, self._ended = self._ended, []
        return ended


def _figures(figures: dict[str, Any], lane: int) -> dict[str, float]:
    """``info["episode_figures"]`` of one lane, as Gymnasium's vector infos hold it (arrays with ``_name`` masks)."""
    found = {}
    for name, values in figures.items():
        told = figures.get(f"_{name}")
        if name.startswith("_") or (told is not None and not told[lane]):
            continue
        value = cast(Any, values if isinstance(values, dict) else values[lane])
        try:
            number = math.nan if value is None else float(value)
        except (TypeError, ValueError):
            raise EnvironmentFault(
                f"info['episode_figures'][{name!r}] of environment {lane} is {value!r}; figures of an episode must be "
                "numbers. Leave it out there."
            ) from None
        if not math.isnan(number):
            found[name] = number
    return found


def successes_of(figures: Sequence[Mapping[str, float]]) -> list[float]:
    """``success`` of episodes by their figures, each from 0 to 1; empty where none tells it.

    Many environments tell it of won episodes alone: where any episode tells it, the others are lost.
    """
    if not any("success" in each for each in figures):
        return []
    return [each.get("success", 0.0) for each in figures]


def _success(infos: dict[str, Any], lane: int) -> dict[str, float]:
    """``success`` as other environments tell it, where it is true, false, or a share."""
    for name in ("is_success", "success"):
        values, told = infos.get(name), infos.get(f"_{name}")
        if not isinstance(values, np.ndarray) or values.ndim != 1 or (told is not None and not told[lane]):
            continue
        value = values[lane]
        if isinstance(value, bool | int | float | np.bool_ | np.number) and 0 <= value <= 1:
            return {"success": float(value)}
    return {}
