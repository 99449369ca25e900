"""Notices that a run does not move: tells it early, and gives the run up late."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from onibi.platform.errors import TrainingError

_WARN_SECONDS = 60.0  # then after twice as long, and so on


class StuckWatch:
    """Looks at what a run has counted. That nothing comes for a while is no fault: the fragment of a slow environment
    takes minutes, and so does the first update of a network that is compiled.

    Args:
        patience_seconds: without a row or an update, until the run is given up; None: never.
        signs_of_life: what the roles do, in words; asked where there is something to tell.
        counted: env steps and updates so far.
        now: in seconds, by the clock of all looks.
    """

    def __init__(
        self, patience_seconds: float | None, signs_of_life: Callable[[], str], counted: tuple[int, int], now: float
    ) -> None:
        self._patience, self._signs_of_life = patience_seconds, signs_of_life
        self._counted, self._since = counted, now
        self._warn_after = _WARN_SECONDS

    def look(self, counted: tuple[int, int], store: Mapping[str, Any], now: float) -> list[str]:
        """What to warn of; most often nothing.

        Args:
            counted: env steps and updates.
            store: what the shard tells of itself.
            now: in seconds.
        Raises: TrainingError where nothing has come for longer than the patience.
        """
        if counted != self._counted:
            self._counted, self._since, self._warn_after = counted, now, _WARN_SECONDS
            return []
        waited = now - self._since
        waits_for = "actors" if store["pacing"]["replay/learner_stalled"] else "learner"
        found = (
            f"nothing has moved for {waited:.0f} s: {store['inserted_rows']} rows inserted, {store['drawn_rows']} "
            f"drawn; the run waits for the {waits_for}."
        )
        if self._patience is not None and waited > self._patience:
            raise TrainingError(
                f"{found} That is longer than budget.patience_seconds ({self._patience:g}): raise it for steps or "
                "compilations that take so long, else look at that role's log in Ray's session folder; resume goes on "
                "from the last checkpoint."
            )
        if waited < self._warn_after:
            return []
        self._warn_after *= 2
        limit = "for ever" if self._patience is None else f"up to {self._patience:g} s (budget.patience_seconds)"
        return [f"{found} It goes on waiting, {limit}. Roles: {self._signs_of_life()}"]
