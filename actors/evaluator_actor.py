"""Evaluations as a Ray actor: plays while training goes on (Ray shell)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ray

from onibi.actors.evaluation import FrozenRewards, PlayedEpisode
from onibi.platform.hub_log import tell_warnings
from onibi.platform.policy import Weights

Evaluate = Callable[[Weights | None, FrozenRewards | None, int], list[PlayedEpisode]]


EVALUATOR_OPTIONS: dict[str, Any] = {"max_restarts": -1, "max_task_retries": 0}


@ray.remote(num_cpus=0.05)
class EvaluatorActor:
    """Args: evaluate: (weights, frozen rewards, seed) → episodes."""

    def __init__(self, evaluate: Evaluate) -> None:
        self._evaluate = evaluate
        self._is_heard = False

    def play(self, weights: Weights | None, rewards: FrozenRewards | None, seed: int, hub: Any) -> list[PlayedEpisode]:
        """The run's evaluation episodes with these weights.

        Args:
            weights: None plays at random.
            rewards: what captions pay meanwhile.
            seed: of the games.
            hub: handle; not the constructor's, whose arguments must outlive every restart.
        """
        if not self._is_heard:
            tell_warnings("evaluator", hub.note.remote)
            self._is_heard = True
        return self._evaluate(weights, rewards, seed)
