"""The reward model as a Ray actor: learns beside the run, off the data path (Ray shell)."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

import ray
from numpy.typing import NDArray

from onibi.learners.reward_models.reward_learner import RewardLearner
from onibi.platform.hub_log import tell_warnings
from onibi.platform.process_usage import ProcessUsage, process_usage

_WAIT_SECONDS = 2.0

REWARD_MODEL_OPTIONS: dict[str, Any] = {
    "max_restarts": -1,
    "max_task_retries": 0,
    "max_concurrency": 3,
    "num_cpus": 0.05,
}

ModelState = Mapping[str, NDArray[Any]]


@ray.remote
class RewardModelActor:
    """Takes labels from the hub, learns, and brings scores of all keys, in rounds.

    Args:
        make_learner: makes the learner in this process from a state, or anew from None.
        period_seconds: between the starts of two rounds, at least.
    """

    def __init__(
        self,
        make_learner: Callable[[ModelState | None], RewardLearner],
        period_seconds: float,
    ) -> None:
        self._make_learner, self._period_seconds = make_learner, period_seconds
        self._state: ModelState | None = None  # as it was after the last whole round
        self._stopping = threading.Event()

    def run(self, hub: Any, state: ModelState | None) -> None:
        """Learn until :meth:`stop`. After a fault it goes on, when called again, from the last whole round.

        Args:
            hub: handle.
            state: to go on from in a process that has learnt nothing yet; None starts anew.

        Raises:
            NonFiniteError: learning diverges.
            OnibiError: the learner cannot be made here.
            RayError: the hub is gone.
        """
        import torch

        tell_warnings("reward model", hub.note.remote)
        torch.set_num_threads(1)
        self._state = self._state or state
        learner = self._make_learner(self._state)
        seen, goes_on = -1, False
        if self._state is not None:  # what was learnt before pays before anything new is learnt
            data = ray.get(hub.training_data.remote(-1, 0.0))
            if data is not None:
                ray.get(hub.set_scores.remote(learner.current_scores(data)))
        while not self._stopping.is_set():
            began = time.monotonic()
            data = ray.get(hub.training_data.remote(-1 if goes_on else seen, _WAIT_SECONDS))
            if data is None:
                continue
            seen = data.version
            scores = learner.learn(data)
            # Steps may be owed to keys of which every one is held out: then there is nothing to do until others come.
            goes_on = scores is not None and learner.owed_steps > 0
            if scores is not None:
                self._state = {name: each.numpy() for name, each in learner.state_dict().items()}
                ray.get(hub.set_scores.remote(scores))
            self._stopping.wait(max(0.0, began + self._period_seconds - time.monotonic()))

    def state(self) -> ModelState | None:
        """For a checkpoint: as it was after the last whole round; None before the first."""
        return self._state

    def usage(self) -> ProcessUsage:
        """Processor time."""
        return process_usage()

    def stop(self) -> None:
        """End ``run`` after the round at hand."""
        self._stopping.set()
