"""Environments that never return: their processes are ended, so that Ray starts new ones."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import ray

_LONGEST_PERIOD_SECONDS, _LOOKS_PER_LIMIT = 60.0, 4.0


class HangWatch:
    """Asks rollout actors how long their environments have been at one call.

    One that does not answer any more is taken to hang, too: compiled code that keeps the interpreter's lock stops all
    threads of its process. What has not answered yet in its life is left alone; it may have no place in the cluster.

    Args:
        limit_seconds: of one call; None: no process is ended.
    """

    def __init__(self, limit_seconds: float | None) -> None:
        self._limit = limit_seconds
        self._asked: dict[Any, tuple[str, float]] = {}  # reference -> role, when
        self._has_answered: set[str] = set()
        self._ask_at = 0.0

    def look(self, handles: Mapping[str, Any], now: float) -> list[str]:
        """End those that hang. Returns: what to tell.

        Args:
            handles: actors with ``stepping_seconds``, by role.
            now: in seconds; must not fall.
        """
        if self._limit is None:
            return []
        hung = self._heard(self._limit) | {
            role: now - asked_at
            for role, asked_at in self._asked.values()
            if role in self._has_answered and now - asked_at > self._limit
        }
        for role in hung:
            ray.kill(handles[role], no_restart=False)
            self._has_answered.discard(role)
        self._asked = {reference: asked for reference, asked in self._asked.items() if asked[0] not in hung}
        if now >= self._ask_at:
            self._ask_at = now + min(_LONGEST_PERIOD_SECONDS, self._limit / _LOOKS_PER_LIMIT)
            waiting = {role for role, _ in self._asked.values()}
            for role, handle in handles.items():
                if role not in waiting:
                    self._asked[handle.stepping_seconds.remote()] = (role, now)
        return [
            f"{role}: its environments have not returned for {seconds:.0f} s (actors.hang_seconds {self._limit:g}); "
            "its process is ended and replaced"
            for role, seconds in hung.items()
        ]

    def _heard(self, limit: float) -> dict[str, float]:
        """Seconds of those that answer and hang."""
        hung = {}
        references = list(self._asked)
        ready, _ = ray.wait(references, num_returns=len(references), timeout=0) if references else ([], [])
        for reference in ready:
            role, _ = self._asked.pop(reference)
            try:
                seconds = ray.get(reference)
            except ray.exceptions.RayError:  # it has died, which the watch of the run hears itself
                self._has_answered.discard(role)
                continue
            self._has_answered.add(role)
            if seconds > limit:
                hung[role] = seconds
        return hung
