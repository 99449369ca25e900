"""The target network of a Q-learner: how it follows the network that is learnt."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn

from onibi.platform.config import Settings


@dataclass(frozen=True, kw_only=True)
class TargetSettings(Settings):
    """Every ``period_updates`` the target becomes (1 − rate) · target + rate · network.

    A hard copy is rate 1 with a long period.
    """

    rate: Annotated[float, Field(gt=0, le=1)] = 0.005
    period_updates: Annotated[int, Field(ge=1)] = 1


class TargetFollower:
    """Moves ``target``, a copy of ``network``, after it."""

    def __init__(self, target: nn.Module, network: nn.Module, settings: TargetSettings) -> None:
        self._settings = settings
        self._of_target: list[Tensor] = list(target.parameters())
        self._of_network: list[Tensor] = list(network.parameters())
        self._buffers = list(zip(target.buffers(), network.buffers(), strict=True))

    @torch.no_grad()
    def follow(self, updates: int, *, moved: bool = True) -> None:
        """Move after update number ``updates``; to be called after every batch.

        Where that was skipped, the network not ``moved``, a hard copy is made all the same: else it would come a whole
        period late. Buffers (normalisation) are always the network's, for both must read alike, while gradients are
        gathered for a step as well.
        """
        if updates % self._settings.period_updates == 0 and (moved or self._settings.rate == 1):
            torch._foreach_lerp_(self._of_target, self._of_network, self._settings.rate)
        for of_target, of_network in self._buffers:
            of_target.copy_(of_network)
