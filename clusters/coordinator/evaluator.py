"""The evaluator of a Ray run as the coordinator sees it: plays one checkpoint at a time, beside training."""

from __future__ import annotations

import functools
import logging
import time
from collections.abc import Callable
from typing import Any

import ray

from onibi.actors.evaluator_actor import EVALUATOR_OPTIONS, EvaluatorActor
from onibi.clusters.coordinator.role_calls import PROCESS_DIED, check_stores_live, last_notes, start_actor
from onibi.clusters.run_journal import RunJournal
from onibi.clusters.run_plan import RunPlan
from onibi.clusters.serial_run import evaluate_weights
from onibi.platform.errors import CaptionError, EnvironmentFault, OnibiError
from onibi.platform.policy import Weights

log = logging.getLogger(__name__)

_SLICE_SECONDS, _NOTES_SECONDS = 0.25, 1.0


class Evaluator:
    """Starts the process.

    Args:
        acting: what to build, without what actors do not need.
        journal: books what was played.
        hub: handle.
    """

    def __init__(self, acting: RunPlan, journal: RunJournal, hub: Any) -> None:
        self._journal, self._hub = journal, hub
        self._handle = start_actor(EvaluatorActor, EVALUATOR_OPTIONS, functools.partial(evaluate_weights, acting))
        self._played: Any = None
        self._env_steps = 0
        self._booked_before = {row["env_steps"] for row in journal.evaluations}

    @property
    def playing(self) -> tuple[int, ...]:
        """Env steps of the checkpoint that is being played; empty where none is."""
        return () if self._played is None else (self._env_steps,)

    def has_played(self, env_steps: int) -> bool:
        """Whether an earlier session has booked the checkpoint of so many env steps, and ended before the run did."""
        return env_steps in self._booked_before

    def begin(self, weights: Weights, rewards: Any, env_steps: int) -> None:
        """Play the checkpoint of ``env_steps``. ``rewards``: the reference of its FrozenRewards, or None."""
        self._env_steps = env_steps
        self._played = self._handle.play.remote(weights, rewards, env_steps, self._hub)

    def finish(self, train_seconds: float, wait_seconds: float) -> bool:
        """Book what was played, if it ends within ``wait_seconds``. Returns: whether nothing is being played now.

        An evaluation whose process died, or whose environment raised, is left out: the run goes on, as it does where
        that happens to rollouts. Raises: StoreLostError where the hub died before the evaluator had its rewards; any
        other OnibiError of the evaluator's.
        """
        if self._played is None:
            return True
        if not ray.wait([self._played], timeout=wait_seconds)[0]:
            return False
        played, self._played = self._played, None
        try:
            episodes = ray.get(played)
        except PROCESS_DIED as error:
            check_stores_live(error, {"the hub": self._hub})
            self._leave_out("died", error)
        except ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, EnvironmentFault | CaptionError):
                self._leave_out("raised", error.cause)
            elif isinstance(error.cause, OnibiError):
                raise error.cause from error
            else:
                raise
        else:
            self._journal.evaluate(self._env_steps, train_seconds, episodes)
        return True

    def wait(self, train_seconds: float, should_stop: Callable[[], bool]) -> bool:
        """Until what is played is booked; what roles warn of meanwhile is told.

        Returns: False where ``should_stop`` broke it off.
        """
        heard = time.monotonic()
        while not self.finish(train_seconds, _SLICE_SECONDS):
            if (now := time.monotonic()) - heard >= _NOTES_SECONDS:
                heard = now
                self._journal.warn(last_notes(self._hub))
            if should_stop():
                self._journal.note("the evaluation was broken off; `onibi resume` plays it")
                return False
        return True

    def end(self) -> None:
        """End its process."""
        ray.kill(self._handle)

    def _leave_out(self, what: str, error: BaseException) -> None:
        self._journal.note(f"evaluator {what}; that evaluation is left out")
        log.warning("evaluator: %s; that evaluation is left out", error)
