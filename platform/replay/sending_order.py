"""The order in which an actor sent its fragments, kept where calls may overtake one another on their way."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass, field

log = logging.getLogger(__name__)


@dataclass(kw_only=True)
class _Stream:
    """Fragments of one incarnation."""

    incarnation: int
    next_sequence: int
    waiting: dict[int, asyncio.Future[None]] = field(default_factory=dict)


class SendingOrder:
    """Holds a fragment back until all that were sent before it have passed.

    Ray promises no order of calls to an asyncio actor, not even of one caller's ("Actor Task Execution Order" in its
    documentation; with two calls under way about one in a thousand is overtaken). A ring takes an overtaken fragment
    for a repeated one and its successor for one after a gap: its rows would be lost.

    Args:
        patience_seconds: after so long an earlier fragment counts as lost, and the later one passes.
    """

    def __init__(self, patience_seconds: float = 30.0) -> None:
        self._patience = patience_seconds
        self._streams: dict[int, _Stream] = {}

    def begin(self, group: int, incarnation: int, next_sequence: int) -> None:
        """A group has a new incarnation; what waits of its earlier one passes, for the ring to refuse."""
        before = self._streams.get(group)
        self._streams[group] = _Stream(incarnation=incarnation, next_sequence=next_sequence)
        for waiting in () if before is None else before.waiting.values():
            _tell(waiting)

    async def turn(self, group: int, incarnation: int, sequence: int) -> None:
        """Return when it is this fragment's turn; at once where it is repeated, or of another incarnation.

        The caller queues it without waiting for anything else first: its successor passes right after.
        """
        stream = self._streams.get(group)
        if stream is None or stream.incarnation != incarnation:
            return
        if sequence > stream.next_sequence:
            # Sent twice, a fragment waits twice for one turn.
            told = stream.waiting.setdefault(sequence, asyncio.get_running_loop().create_future())
            while not (await asyncio.wait([told], timeout=self._patience))[0]:
                earliest = min(stream.waiting)
                if earliest == stream.next_sequence:
                    continue  # it has been told, and was not woken yet
                log.warning("fragment %d of actor %d has not come: %d passes", stream.next_sequence, group, earliest)
                stream.next_sequence = earliest
                _tell(stream.waiting[earliest])
            stream.waiting.pop(sequence, None)
        if sequence >= stream.next_sequence:
            stream.next_sequence = sequence + 1
            if (successor := stream.waiting.get(sequence + 1)) is not None:
                _tell(successor)


def _tell(waiting: asyncio.Future[None]) -> None:
    if not waiting.done():
        waiting.set_result(None)
