"""How often roles may die: one that dies again and again is no accident."""

from __future__ import annotations

import time
from collections import deque

from onibi.clusters.coordinator.role_calls import first_line
from onibi.platform.errors import TrainingError

_ALLOWED, _WINDOW_SECONDS = 10, 60.0
_LEARNER_ALLOWED = 5


class RoleDeaths:
    """Counts deaths of roles that are replaced.

    Args:
        actors: rollout actors of the run; a node takes many with it.
    """

    def __init__(self, actors: int) -> None:
        self._allowed = _ALLOWED + 2 * actors
        self._times: deque[float] = deque()
        self._of_learner = 0

    def count(self, role: str, cause: BaseException, *, learns: bool) -> None:
        """A role died. Raises: TrainingError where too many did."""
        now = time.monotonic()
        self._times.append(now)
        while now - self._times[0] > _WINDOW_SECONDS:
            self._times.popleft()
        self._of_learner += learns
        told = ""
        if len(self._times) > self._allowed:
            told = f"{len(self._times)} roles died within {_WINDOW_SECONDS:.0f} s, the last one {role}"
        elif self._of_learner > _LEARNER_ALLOWED:
            told = f"learners died {self._of_learner} times since the last checkpoint, the last one {role}"
        if told:
            raise TrainingError(
                f"{told} ({first_line(cause)}). The last checkpoint has what was learnt; resume goes on from it."
            ) from cause

    def checkpoint_saved(self) -> None:
        """What was learnt is safe: the next learner does not begin where the last one did."""
        self._of_learner = 0
