"""Leases of a run whose actors come and go: who has which group of the shard's ring, and who has to wait for one."""

from __future__ import annotations

import logging

from onibi.platform.replay.ring.groups import GroupPool
from onibi.platform.replay.shard import Lease, Shard

log = logging.getLogger(__name__)


class ActorLeases:
    """Gives the actors of a run groups of a shard's ring.

    An actor keeps its group for as long as nobody else needs it; where its number is that of a group, that one is its
    own from the start, in every session of the run. Else it gets a free one, or that of the actor that has been silent
    for longest, beyond the timeout. The rows of silent actors are readable until then.

    Args:
        shard: registers and retires.
        lane_timeout_seconds: silence after which an actor's group may be given to another one.
        now: seconds of a clock that never falls.
    """

    def __init__(self, shard: Shard, lane_timeout_seconds: float, now: float) -> None:
        self._shard, self._pool = shard, GroupPool(shard, lane_timeout_seconds, now)
        self._actors: dict[int, int] = {}  # of each group that an actor of this session has

    def register(self, actor: int, envs: int, now: float) -> Lease | None:
        """Begin a new incarnation of an actor; ``Lease.actor`` is its group. None where it has to wait and ask again:
        every group is in use, or the log's disk is behind with the rows of the one that it would get.

        Raises: ReplayError where the ring has no room for its environments.
        """
        held = self._group_of(actor)
        group = self._pool.available(now) if held is None else held
        if group is None:
            return None
        if not self._shard.may_register(group):
            if held is not None:
                self._pool.heard(held, now)  # it asks: nobody is to take its lanes for silence meanwhile
            return None
        if held is None:
            group = self._pool.take(now)
            if group in self._actors:
                log.warning("actor %d takes the lanes of actor %d, which is silent", actor, self._actors[group])
        self._actors[group] = actor
        self._pool.heard(group, now)
        return self._shard.register(group, envs)

    def heard(self, group: int, now: float) -> None:
        """The actor of a group inserts, or waits for its insertion."""
        if group in self._actors:
            self._pool.heard(group, now)

    @property
    def held(self) -> int:
        """Groups that actors of this session have."""
        return len(self._actors)

    def _group_of(self, actor: int) -> int | None:
        """The group that it has, or that has its number and nobody of this session in it."""
        for group, holder in self._actors.items():
            if holder == actor:
                return group
        return actor if actor < self._shard.layout.groups and actor not in self._actors else None
