"""Which group of lanes an actor gets: actors come and go, a ring has room for so many at once."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Protocol

from onibi.platform.errors import ReplayError
from onibi.platform.replay.ring.layout import RingLayout

log = logging.getLogger(__name__)


class GroupOwner(Protocol):
    """What has groups to give: a ``RingWriter``, or the ``Shard`` around it, which has the log copy them first."""

    @property
    def path(self) -> Path:
        """Of the ring."""

    @property
    def layout(self) -> RingLayout:
        """Of the ring."""

    def is_free(self, group: int) -> bool:
        """Whether no actor has the group."""

    def retire(self, group: int) -> None:
        """Give up a group whose actor is gone."""


class GroupPool:
    """Hands out groups of a ring: free ones first, then that of the actor which has been silent for longest.

    Rows of a silent actor stay readable until somebody needs its group.

    Args:
        owner: of the groups; the pool registers nothing, it only retires groups before it gives them anew.
        lane_timeout_seconds: silence after which a group may be taken from its actor.
        now: seconds of a clock that never falls; groups registered before count as heard of now.
    """

    def __init__(self, owner: GroupOwner, lane_timeout_seconds: float, now: float) -> None:
        self._owner, self._timeout = owner, lane_timeout_seconds
        groups = range(owner.layout.groups)
        self._heard = {group: now for group in groups if not owner.is_free(group)}

    def heard(self, group: int, now: float) -> None:
        """Its actor registered or inserted."""
        self._heard[group] = now

    def silent(self, now: float) -> list[int]:
        """Groups whose actors have been silent for longer than the timeout, the longest first."""
        late = [(heard, group) for group, heard in self._heard.items() if now - heard > self._timeout]
        return [group for _, group in sorted(late)]

    def available(self, now: float) -> int | None:
        """The group that ``take`` would give; None where every group has an actor that was heard of."""
        for group in range(self._owner.layout.groups):
            if group not in self._heard and self._owner.is_free(group):
                return group
        return next(iter(self.silent(now)), None)

    def take(self, now: float) -> int:
        """A group for a new actor, which must register it next; it counts as taken from now on.

        Raises: ReplayError where every group has an actor that was heard of.
        """
        group = self.available(now)
        if group is None:
            raise ReplayError(
                f"{self._owner.path}: all {self._owner.layout.groups} groups have an actor that was heard of in the "
                f"last {self._timeout:g} s; start the shard with a larger max_actors"
            )
        if group in self._heard:
            silence = now - self._heard[group]
            log.warning("group %d: nothing heard for %.3g s, its rows and lanes are released", group, silence)
            self._owner.retire(group)
        self._heard[group] = now
        return group

    def give_back(self, group: int) -> None:
        """Its actor is gone for good: its rows stop being drawn, the group is free."""
        self._owner.retire(group)
        self._heard.pop(group, None)
