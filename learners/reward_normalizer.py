"""Rewards divided by the running deviation of the discounted return, as learners of policies like them.

Each lane's return goes on from slab to slab, for slabs bring every row of a lane once and in order. The learner sees
the rows of all actors, so there is one statistic; its state is checkpointed, and published with the weights. Of several
learners all divide by the first one's.

Engstrom et al. 2020, arXiv 2005.12729, section 3 ("reward scaling"). Differences: an episode's return begins at 0 (in
the code they describe it goes on over ends), and final rows do not count.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

_VARIANCE_FLOOR = 1e-8
_CLIP = 10.0
"""Of the scaled reward: one outlier shall not decide a batch."""


class RewardNormalizer(nn.Module):
    """r / √(variance of G), clipped to ±10, with G_t = γ G_{t−1} + r_t from 0 at an episode's begin.

    Args:
        discount: γ.
    """

    mean: Tensor
    variance: Tensor
    count: Tensor

    def __init__(self, discount: float) -> None:
        super().__init__()
        self._discount = discount
        self._returns: NDArray[np.float64] = np.zeros(0)  # G of each lane that was seen
        self.register_buffer("mean", torch.zeros((), dtype=torch.float64))
        self.register_buffer("variance", torch.ones((), dtype=torch.float64))
        self.register_buffer("count", torch.zeros((), dtype=torch.float64))

    @property
    def deviation(self) -> float:
        """What rewards are divided by."""
        return float(np.sqrt(float(self.variance) + _VARIANCE_FLOOR))

    @property
    def lane_returns(self) -> Tensor:
        """[lanes seen] float64, G after each lane's newest row; part of a checkpoint beside the buffers."""
        return torch.from_numpy(self._returns.copy())

    @lane_returns.setter
    def lane_returns(self, returns: Tensor) -> None:
        self._returns = returns.detach().cpu().numpy().astype(np.float64)

    def learn(
        self,
        reward: NDArray[np.float32],
        used: NDArray[np.bool_],
        begins: NDArray[np.bool_],
        lane: NDArray[np.int64],
    ) -> None:
        """Merge a slab's returns into the statistic; one that is not finite is left out, and its lane begins anew.

        Args:
            reward: [B, T] float32.
            used: [B, T] bool, False for final rows.
            begins: [B, T] bool, where an episode piece begins.
            lane: [B] int64, ascending; pieces of one lane in their order.
        """
        returns = self._follow(reward, begins, lane)
        returns = returns[used & np.isfinite(returns)]
        if len(returns):
            self._merge(returns)

    def scale(self, reward: NDArray[np.float32]) -> NDArray[np.float32]:
        """Rewards [B, T] float32 in units of the deviation, as a new array."""
        scaled: NDArray[np.float32] = np.clip(reward / self.deviation, -_CLIP, _CLIP).astype(np.float32)
        return scaled

    def _follow(
        self, reward: NDArray[np.float32], begins: NDArray[np.bool_], lane: NDArray[np.int64]
    ) -> NDArray[np.float64]:
        """[B, T] float64 G of each row."""
        unseen = int(lane.max(initial=-1)) + 1 - len(self._returns)
        if unseen > 0:
            self._returns = np.concatenate((self._returns, np.zeros(unseen)))
        returns = np.empty(reward.shape)
        piece = np.arange(len(lane)) - np.searchsorted(lane, lane)  # 0, and 1, 2 … of a lane met again
        for turn in range(int(piece.max(initial=-1)) + 1):
            chosen = np.flatnonzero(piece == turn)
            rewards = reward[chosen].astype(np.float64).T  # [T, b]
            sound = np.isfinite(rewards)  # so is G then: float32 rewards do not sum to more than float64 holds
            decay = np.where(begins[chosen].T, 0.0, self._discount)
            decay[1:][~sound[:-1]] = 0.0
            current, given = self._returns[lane[chosen]], np.where(sound, rewards, 0.0)
            for row, factors in zip(given, decay, strict=True):
                row += current * factors  # in ``given``
                current = row
            returns[chosen] = np.where(sound, given, np.nan).T
            self._returns[lane[chosen]] = np.where(sound[-1], current, 0.0)
        return returns

    def _merge(self, returns: NDArray[np.float64]) -> None:
        """Chan et al. 1979, as ``RunningNormalizer``."""
        count, mean, variance = float(self.count), float(self.mean), float(self.variance)
        total = count + len(returns)
        share = len(returns) / total
        delta = float(returns.mean()) - mean
        variance += share * (float(returns.var()) - variance) + share * (1.0 - share) * delta**2
        self.mean.fill_(mean + share * delta)
        self.variance.fill_(variance)
        self.count.fill_(total)
