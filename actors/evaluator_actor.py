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
    """Args: hub: handle. evaluate: (weights, frozen rewards, seed) → episodes."""

    def __init__(self, hub: Any, evaluate: Evaluate) -> None:
        tell_warnings("evaluator", hub.note.remote)
        self._evaluate = evaluate

    def play(self, weights: Weights | None, rewards: FrozenRewards | None, seed: int) -> list[PlayedEpisode]:
        """The run's evaluation episodes with these weights."""
        return self._evaluate(weights, rewards, seed)
