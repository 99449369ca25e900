"""Draws weighted by the return of their trajectory (Hong et al. 2023, "Harnessing Mixed Offline Reinforcement Learning
Datasets via Trajectory Weighting").
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Unpack

import numpy as np
from numpy.typing import NDArray

from onibi.platform.config import Settings
from onibi.platform.errors import ReplayError
from onibi.platform.number_ranges import Positive
from onibi.platform.replay.ring.reader import RingReader
from onibi.platform.replay.samplers.trajectory_intake import Trajectories, TrajectoryIntake
from onibi.platform.replay.samplers.uniform_sampler import uniform_starts
from onibi.platform.replay.samplers.window_sampler import WindowOptions, WindowSampler
from onibi.platform.replay.samplers.window_starts import Starts


@dataclass(frozen=True, kw_only=True)
class TrajectorySettings(Settings):
    """Good trajectories before bad ones."""

    kind: Literal["trajectory_weighted"] = "trajectory_weighted"
    temperature: Positive = 0.1  # of the softmax over returns scaled to [0, 1]; the larger, the more uniform
    by_length: bool = False  # a trajectory counts in proportion to its steps as well


def trajectory_probabilities(episode_return: NDArray[np.float64], temperature: float) -> NDArray[np.float64]:
    """P(i) = exp(g_i / α) / Σ_j exp(g_j / α), with g the returns scaled to [0, 1] by the smallest and largest of them.

    Args:
        episode_return: [M], M ≥ 1.
        temperature: α > 0; the larger, the more uniform.
    Returns: [M]; equal where all returns are.
    """
    spread = episode_return.max() - episode_return.min()
    scaled = (episode_return - episode_return.max()) / spread if spread > 0 else np.zeros(len(episode_return))
    share: NDArray[np.float64] = np.exp(scaled / temperature)
    share /= share.sum()
    return share


class TrajectoryWeightedSampler(WindowSampler):
    """Draws a finished trajectory by the softmax of its return, then one of its steps, all with the same probability.

    Trajectories that have not finished (still played, cut by a gap or a dead actor, or partly overwritten) are not
    drawn from, for their return is not known. Meant for datasets of mixed quality; online, draw only when
    ``readable_rows`` says that something has finished, or let draws be uniform until then. Weights stay 1: the shifted
    distribution is the purpose.

    Differences from the paper: its return weighting only (no baseline of the initial state, which needs a value
    function); the ring's own trajectories, so the scale moves as they come and go. With ``by_length`` a trajectory also
    counts in proportion to its steps, as in the authors' published code.
    """

    Settings: ClassVar[type[TrajectorySettings]] = TrajectorySettings

    def __init__(
        self,
        reader: RingReader,
        *,
        temperature: float,
        by_length: bool,
        uniform_at_first: bool = False,
        **windows: Unpack[WindowOptions],
    ) -> None:
        """As ``UniformSampler``, and besides:

        Args:
            reader: the ring.
            temperature: α.
            by_length: whether a trajectory counts in proportion to its steps.
            uniform_at_first: draw from all rows while no finished trajectory lies whole in the ring, and not fail: a
                run whose actors wait for the learner would never finish one.
            windows: see ``WindowOptions``.

        Raises: ReplayError also where ``temperature`` is not above 0.
        """
        if not 0 < temperature < float("inf"):
            raise ReplayError(f"temperature is {temperature}, it must be a finite number above 0")
        super().__init__(reader, **windows)
        self._temperature, self._by_length, self._uniform_at_first = temperature, by_length, uniform_at_first
        self._intake = TrajectoryIntake(reader, self._lanes, self._look_back)

    @property
    def readable_rows(self) -> int:
        """Steps of finished trajectories that can be read now; takes in new rows."""
        found = self._intake.take()
        return int((found.end - found.begin).sum())

    def trajectories(self) -> Trajectories:
        """The finished trajectories that are drawn from now; ``place`` counts this sampler's lanes."""
        return self._intake.take()

    def state(self) -> dict[str, Any]:
        """Plain values (JSON holds them) from which ``restore`` goes on exactly, given the same ring contents."""
        return {**super().state(), "intake": self._intake.state()}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from ``state``. Raises: ReplayError where it belongs to another ring."""
        self._intake.restore(state["intake"])
        super().restore(state)

    def _choose(self, count: int) -> Starts:
        found = self._intake.take()
        if not len(found):
            if self._uniform_at_first:
                return uniform_starts(self._reader, self._lanes, count, self._rng, self._look_back)
            raise ReplayError(
                f"{self._reader.path}: no trajectory in lanes {self._lanes[:8].tolist()} has finished and lies whole "
                "in the ring; draw when readable_rows is above 0, and see that an episode fits into a lane's "
                f"{self._reader.slots} slots"
            )
        length = found.end - found.begin
        share = trajectory_probabilities(found.episode_return, self._temperature)
        if self._by_length:
            share = share * length / (share * length).sum()
        ends = np.cumsum(share)
        which = np.minimum(np.searchsorted(ends, self._rng.random(count) * ends[-1], side="right"), len(found) - 1)
        row = found.begin[which] + self._rng.integers(0, length[which])
        place = found.place[which]
        return Starts(
            lane=self._lanes[place],
            row=row,
            limit=self._intake.cursor[place],
            probability=share[which] / length[which],
        )
