"""Which worker of an annotator has which questions: leases last while it works on them and end with it (no Ray)."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from onibi.platform.annotation.annotator import Request
from onibi.platform.annotation.labels import Judge
from onibi.platform.annotation.shared_annotations import SharedAnnotations
from onibi.platform.errors import ConfigError

_RENEWALS_PER_LEASE = 3.0


class Worker(NamedTuple):
    """One of the processes that ask for an annotator."""

    annotator: str
    number: int


@dataclass
class _Shift:
    """A worker from when it was set to work until it is set to work again, or lost."""

    name: str
    requests: list[Request] = field(default_factory=list)
    renewed_at: float = 0.0


class WorkerRequests:
    """Questions of one desk, handed to workers that may die or be slow.

    A question waits again as soon as its worker is known to be gone, or to have been set to work anew. While a worker
    works on a batch and says so (``renew``), its leases do not end, however slow the judge is. What a worker left out
    of an answer without a word comes back when its lease ends.

    Args:
        shared: the desk, and the table that it shares with other runs.
        judges: of each annotator, by name.
        lease_seconds: of the desk.
        clock: seconds, never falling.
    Raises: ConfigError where an annotator is none of the desk's judges: its answers would count nowhere.
    """

    def __init__(
        self,
        shared: SharedAnnotations,
        judges: Mapping[str, Judge],
        lease_seconds: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        strange = sorted(name for name, judge in judges.items() if judge not in shared.judges)
        if strange:
            raise ConfigError(
                f"annotators {strange} are other judges each time that they are made, now {judges[strange[0]]}: their "
                "answers would count nowhere and be paid again and again. goal, model and prompt_version must follow "
                "from the settings alone: no time, no random number, no hash() of a text, which differs by process"
            )
        self._shared, self._judges, self._clock = shared, judges, clock
        self._renewal_seconds = lease_seconds / _RENEWALS_PER_LEASE
        self._shifts: dict[Worker, _Shift] = {}

    def begin(self, worker: Worker, shift: str) -> None:
        """A worker is set to work under a name that it never had before: what it had is not asked any more."""
        self.end(worker)
        self._shifts[worker] = _Shift(shift)

    def end(self, worker: Worker) -> None:
        """A worker is gone: what it had waits again at once, and a call of it that waits still gets nothing."""
        shift = self._shifts.pop(worker, None)
        if shift is not None:
            self._shared.give_back(shift.requests, self._judges[worker.annotator])

    def is_at_work(self, worker: Worker, shift: str) -> bool:
        """Whether a worker was set to work under this name last, and not lost since."""
        return worker in self._shifts and self._shifts[worker].name == shift

    def take(self, worker: Worker, shift: str, count: int) -> list[Request] | None:
        """At most ``count`` questions for a worker that has done with all it took before.

        Returns: None where it is not at work under this name: nobody would answer.
        """
        if not self.is_at_work(worker, shift):
            return None
        requests = self._shared.take(self._judges[worker.annotator], count)
        self._shifts[worker] = _Shift(shift, requests, self._clock())
        return requests

    def renew(self, worker: Worker) -> None:
        """A sign of life: the leases of what a worker has begin anew, where a part of their time is over."""
        shift, now = self._shifts.get(worker), self._clock()
        if shift is None or not shift.requests or now - shift.renewed_at < self._renewal_seconds:
            return
        shift.requests = self._shared.renew(shift.requests, self._judges[worker.annotator])
        shift.renewed_at = now
