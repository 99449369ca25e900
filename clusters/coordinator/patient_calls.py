"""Waits for roles that a run cannot go on without, and that may hang: told early, given up late, ended by Ctrl-C."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import ray

from onibi.clusters.coordinator.role_calls import PROCESS_DIED, TO_RESUME, first_answer, first_line
from onibi.platform.errors import StoreLostError, TrainingError

log = logging.getLogger(__name__)

_SLICE_SECONDS = 0.25
_LEAST_PATIENCE_SECONDS = 60.0
_WARN_SECONDS = 30.0  # then after twice as long, and so on
_STOP_SECONDS = 15.0
"""For an answer once the end was asked for: a store that is only busy gives it within that, and the run is saved."""
_LAST_SEAL_SECONDS = 10.0  # of a shard whose run goes on without it, and which may be what hangs


class PatientCalls:
    """Answers of hub and shard.

    Args:
        patience_seconds: without an answer, until the run is given up, a minute at least; None: never.
        should_stop: whether the end of the run was asked for.
    """

    def __init__(self, patience_seconds: float | None, should_stop: Callable[[], bool]) -> None:
        # A patience of seconds is meant for rows and updates; a busy machine takes longer to open a ring.
        self._patience = None if patience_seconds is None else max(patience_seconds, _LEAST_PATIENCE_SECONDS)
        self._should_stop = should_stop

    def __call__(self, reference: Any, who: str) -> Any:
        """The answer of a call.

        Raises: StoreLostError where the process died or the patience is over; TrainingError where no answer comes after
            the end was asked for; the OnibiError that the role raised.
        """
        began, warn_after = time.monotonic(), _WARN_SECONDS
        stopping: float | None = None
        while not ray.wait([reference], timeout=_SLICE_SECONDS)[0]:
            now = time.monotonic()
            if self._should_stop():
                stopping = now if stopping is None else stopping
            if stopping is not None and now - stopping > _STOP_SECONDS:
                raise TrainingError(f"{who} does not answer; the run ends without a last checkpoint. {TO_RESUME}")
            if self._patience is not None and now - began > self._patience:
                waited = f"{now - began:.0f} s (budget.patience_seconds)"
                raise StoreLostError(f"{who} has not answered for {waited}. {TO_RESUME}")
            if now - began >= warn_after:
                log.warning("%s has not answered for %.0f s; see its log in Ray's session folder", who, now - began)
                warn_after *= 2
        return first_answer(reference, who)


def end_shard(shard: Any, failed: bool, leaves_ring: bool, seconds: float) -> None:
    """Have the shard seal its log and end it; what goes wrong is told.

    Args:
        shard: handle.
        failed: as ``ShardActor.close``.
        leaves_ring: its ring stays, sealed or not, for the session that goes on.
        seconds: that sealing may take, or its death.
    """
    if leaves_ring:
        # Where the hub died, texts of young captions are nowhere but in the shard, for the log's next segment.
        ray.wait([shard.close.remote(failed, leaves_ring=True)], timeout=min(seconds, _LAST_SEAL_SECONDS))
        ray.kill(shard)
        deadline = time.monotonic() + seconds
        with suppress(*PROCESS_DIED, ray.exceptions.GetTimeoutError):
            while time.monotonic() < deadline:  # what is killed may answer for a moment still
                ray.get(shard.usage.remote(), timeout=seconds)
        return
    closing = shard.close.remote(failed)
    if not ray.wait([closing], timeout=seconds)[0]:
        log.warning("the replay shard did not close its ring; `onibi doctor` lists rings left behind")
    else:
        try:
            ray.get(closing)
        except ray.exceptions.RayError as error:
            cause = error.cause if isinstance(error, ray.exceptions.RayTaskError) else error
            log.warning("the replay shard was not closed in order: %s", first_line(cause))
    ray.kill(shard)
