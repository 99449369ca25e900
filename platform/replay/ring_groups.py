"""Which group of lanes a new actor gets: actors come and go, a ring has room for so many at once."""

from __future__ import annotations

import logging

from onibi.platform.errors import ReplayError
from onibi.platform.replay.ring_writer import RingWriter

log = logging.getLogger(__name__)


class GroupPool:
    """Hands out groups of a ring: free ones first, then that of the actor which has been silent for longest.

    Args:
        writer: the ring's writer; the pool registers nothing, it only retires groups before it gives them anew.
        lane_timeout_seconds: silence after which a group may be taken from its actor.
        now: seconds of a clock that never falls; groups registered before count as heard of now.
    """

    def __init__(self, writer: RingWriter, lane_timeout_seconds: float, now: float) -> None:
        self._writer, self._timeout = writer, lane_timeout_seconds
        groups = range(writer.layout.groups)
        self._heard = {group: now for group in groups if not writer.is_free(group)}

    def heard(self, group: int, now: float) -> None:
        """Its actor registered or inserted."""
        self._heard[group] = now

    def silent(self, now: float) -> list[int]:
        """Groups whose actors have been silent for longer than the timeout, the longest first."""
        late = [(heard, group) for group, heard in self._heard.items() if now - heard > self._timeout]
        return [group for _, group in sorted(late)]

    def take(self, now: float) -> int:
        """A group for a new actor, which must register it next; it counts as taken from now on.

        Raises: ReplayError where every group has an actor that was heard of.
        """
        for group in range(self._writer.layout.groups):
            if group not in self._heard and self._writer.is_free(group):
                self._heard[group] = now
                return group
        silent = self.silent(now)
        if not silent:
            raise ReplayError(
                f"{self._writer.path}: all {self._writer.layout.groups} groups have an actor that was heard of in the "
                f"last {self._timeout:g} s; start the shard with a larger max_actors"
            )
        group = silent[0]
        silence = now - self._heard[group]
        log.warning("group %d: nothing heard for %.0f s, its rows and lanes are released", group, silence)
        self._writer.retire(group)
        self._heard[group] = now
        return group

    def give_back(self, group: int) -> None:
        """Its actor is gone for good: its rows stop being drawn, the group is free."""
        self._writer.retire(group)
        self._heard.pop(group, None)
