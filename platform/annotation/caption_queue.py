"""Which keys wait for an annotator: bounded, in a stated order, and nothing dropped for good."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from onibi.platform.annotation.captions import KeyIndex
from onibi.platform.errors import CaptionError

_DELAYS_KEPT = 1_000

Rank = Callable[[NDArray[np.int32]], NDArray[Any]]
"""Keys [n] → numbers [n]: what is asked first has the highest."""


class Lease(NamedTuple):
    """Under which something is in flight: a number that no other has in its queue, and when it ends."""

    number: int
    end: float


@dataclass(frozen=True, kw_only=True)
class QueueState:
    """What a checkpoint keeps. In-flight keys are in ``waiting`` here: their annotator does not outlive the run."""

    waiting: list[tuple[KeyIndex, float, int]] = field(default_factory=list)
    """(key, time first offered, invalid replies), oldest first."""
    parked: list[KeyIndex] = field(default_factory=list)
    dropped: int = 0
    expired: int = 0

    def later(self, seconds: float) -> QueueState:
        """The same with all times moved: as another clock tells them."""
        return replace(self, waiting=[(key, first + seconds, replies) for key, first, replies in self.waiting])


class CaptionQueue:
    """Queue of keys with an in-flight set. A key is in one place: waiting, in flight, parked, or nowhere.

        offer ──▶ waiting ──take──▶ in flight ──finish──▶ (labelled)
                   ▲   │               │  │ └─retry──▶ waiting, or parked after ``max_attempts`` invalid replies
                   │   └─overflow──▶   │  │
                   └─────expire────────┘  └ lease over: the annotator died or hangs

    Keys that have a label and want a further one wait behind all that have none. What overflows is forgotten and
    counted; it comes back when its caption is met again and offered. The clock is the caller's: every ``now`` is in
    seconds and must not fall.

    Args:
        capacity_keys: most keys waiting; the one met longest ago makes room.
        lease_seconds: how long a taken key stays in flight before it waits again.
        max_attempts: invalid replies after which a key is parked and asked no more.
    """

    def __init__(self, *, capacity_keys: int, lease_seconds: float, max_attempts: int) -> None:
        if capacity_keys < 1 or lease_seconds <= 0 or max_attempts < 1:
            raise CaptionError(
                f"caption queue: capacity_keys {capacity_keys} and max_attempts {max_attempts} must be 1 or more, "
                f"lease_seconds {lease_seconds} above 0"
            )
        self._capacity_keys = capacity_keys
        self._lease_seconds = lease_seconds
        self._max_attempts = max_attempts
        self._waiting: OrderedDict[KeyIndex, None] = OrderedDict()  # met last comes last
        self._further: OrderedDict[KeyIndex, None] = OrderedDict()  # likewise, of keys that have a label
        self._in_flight: OrderedDict[KeyIndex, Lease] = OrderedDict()  # the one that ends soonest first
        self._leases = 0  # so far
        self._invalid_replies: dict[KeyIndex, int] = {}
        self._first_offered: dict[KeyIndex, float] = {}  # unlabelled keys, dropped ones included, in order of time
        self._parked: dict[KeyIndex, None] = {}
        self.delays_seconds: deque[float] = deque(maxlen=_DELAYS_KEPT)
        """From first offer to first label, of the keys that were labelled last."""
        self.dropped = 0
        """Keys pushed out by newer ones so far."""
        self.expired = 0
        """Leases that ended without a label so far."""

    def __len__(self) -> int:
        return len(self._waiting) + len(self._further)

    @property
    def in_flight(self) -> int:
        """Keys that an annotator has and has not answered."""
        return len(self._in_flight)

    @property
    def parked(self) -> int:
        """Keys given up after ``max_attempts`` invalid replies."""
        return len(self._parked)

    def oldest_age_seconds(self, now: float) -> float:
        """Time since the key that waits longest was first offered, dropped keys included; 0 where none waits."""
        return max(now - next(iter(self._first_offered.values())), 0.0) if self._first_offered else 0.0

    def offer(self, keys: Iterable[KeyIndex], now: float) -> None:
        """Let unlabelled keys wait, the last one foremost; one that waits already was met again and comes to the front.

        Keys in flight and parked ones are left where they are.
        """
        for key in keys:
            if key in self._in_flight or key in self._parked:
                continue
            self._first_offered.setdefault(key, now)
            self._further.pop(key, None)
            self._waiting[key] = None
            self._waiting.move_to_end(key)
        self._make_room()

    def offer_further(self, keys: Iterable[KeyIndex]) -> None:
        """As ``offer``, for keys that have a label and want another."""
        for key in keys:
            if key in self._in_flight or key in self._parked or key in self._waiting:
                continue
            self._further[key] = None
            self._further.move_to_end(key)
        self._make_room()

    def take(self, count: int, now: float, rank: Rank | None = None) -> list[KeyIndex]:
        """At most ``count`` keys, in flight until ``finish``, ``retry`` or the end of their lease.

        Args:
            count: most keys.
            now: the time.
            rank: what is asked first; None and among equals: what was met last.
        """
        taken = self._pop(self._waiting, count, rank)
        taken += self._pop(self._further, count - len(taken), rank)
        for key in taken:
            self._leases += 1
            self._in_flight[key] = Lease(self._leases, now + self._lease_seconds)
        return taken

    def renew(self, key: KeyIndex, now: float) -> None:
        """Let the lease of a key in flight last as if it had begun now; its number stays."""
        self._in_flight[key] = Lease(self.lease(key), now + self._lease_seconds)
        self._in_flight.move_to_end(key)

    def lease(self, key: KeyIndex) -> int:
        """Number of the lease of a key in flight, to be named when it is given back."""
        return self._in_flight[key].number

    def holds(self, key: KeyIndex, lease: int) -> bool:
        """Whether a key is in flight under the lease of this number."""
        return key in self._in_flight and self.lease(key) == lease

    def finish(self, keys: Iterable[KeyIndex], now: float) -> None:
        """Forget keys that have their labels now, wherever they are: late answers count."""
        for key in keys:
            if key in self._first_offered:
                self.delays_seconds.append(max(now - self._first_offered[key], 0.0))
            for place in (self._waiting, self._further, self._in_flight, self._parked):
                place.pop(key, None)
            self._invalid_replies.pop(key, None)
            self._first_offered.pop(key, None)

    def retry(self, keys: Iterable[KeyIndex], now: float) -> None:
        """Keys whose reply was invalid: they wait again, or are parked after ``max_attempts`` such replies."""
        again: list[KeyIndex] = []
        further: list[KeyIndex] = []
        for key in keys:
            if self._in_flight.pop(key, None) is None and key not in self._waiting and key not in self._further:
                continue  # labelled or parked meanwhile: a second reply to the same question changes nothing
            self._invalid_replies[key] = self._invalid_replies.get(key, 0) + 1
            if self._invalid_replies[key] < self._max_attempts:
                (again if key in self._first_offered else further).append(key)
                continue
            self._waiting.pop(key, None)
            self._further.pop(key, None)
            self._first_offered.pop(key, None)
            self._parked[key] = None
        self.offer(again, now)
        self.offer_further(further)

    def expire(self, now: float) -> list[KeyIndex]:
        """Let keys wait again whose lease is over; an annotator's death is not a key's fault and no attempt."""
        over = []
        while self._in_flight and next(iter(self._in_flight.values())).end <= now:
            over.append(self._in_flight.popitem(last=False)[0])
        self._back(over, now)
        return over

    def give_back(self, leases: Mapping[KeyIndex, int], now: float) -> None:
        """Taken keys that their annotator will not judge, with their leases: they wait again at once.

        A key whose lease ended and that was taken again is left to its new annotator.
        """
        mine = [key for key, number in leases.items() if self.holds(key, number)]
        for key in mine:
            del self._in_flight[key]
        self._back(mine, now)

    def state(self) -> QueueState:
        """For a checkpoint; taken keys count as waiting, and those that want a further label are found again there."""
        order = [key for key in [*self._waiting, *self._in_flight] if key in self._first_offered]
        return QueueState(
            waiting=[(key, self._first_offered[key], self._invalid_replies.get(key, 0)) for key in order],
            parked=list(self._parked),
            dropped=self.dropped,
            expired=self.expired,
        )

    def restore(self, state: QueueState) -> None:
        """Replace everything by a checkpoint's state, but for parked keys: they wait again when they are met, as what
        made their replies unreadable may be mended since.
        """
        self._in_flight.clear()
        self._further.clear()
        self._waiting = OrderedDict((key, None) for key, _, _ in state.waiting)
        self._invalid_replies = {key: replies for key, _, replies in state.waiting if replies}
        self._first_offered = {key: first for key, first, _ in sorted(state.waiting, key=lambda entry: entry[1])}
        self._parked.clear()
        self.dropped, self.expired = state.dropped, state.expired

    def _back(self, keys: list[KeyIndex], now: float) -> None:
        """Keys that were taken, newest first: they wait behind all that were met since, in their order."""
        self.expired += len(keys)
        self.offer([key for key in keys if key in self._first_offered], now)
        self.offer_further([key for key in keys if key not in self._first_offered])
        for key in keys:
            for place in (self._waiting, self._further):
                if key in place:
                    place.move_to_end(key, last=False)

    def _make_room(self) -> None:
        while len(self) > self._capacity_keys:
            (self._further or self._waiting).popitem(last=False)
            self.dropped += 1

    @staticmethod
    def _pop(place: OrderedDict[KeyIndex, None], count: int, rank: Rank | None) -> list[KeyIndex]:
        if rank is None or count <= 0 or not place:
            return [place.popitem()[0] for _ in range(min(count, len(place)))]
        keys = np.fromiter(place, np.int32, len(place))
        order = np.lexsort((np.arange(len(keys)), rank(keys)))[::-1][:count]
        taken = [KeyIndex(int(key)) for key in keys[order]]
        for key in taken:
            del place[key]
        return taken
