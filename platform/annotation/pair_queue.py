"""Which pairs of keys an annotator is asked to compare: drawn from the captions met last, none twice."""

from __future__ import annotations

from collections import Counter, OrderedDict, deque
from collections.abc import Iterable, Mapping

import numpy as np
from numpy.typing import NDArray

from onibi.platform.annotation.caption_queue import Lease
from onibi.platform.annotation.settings import PairSettings

Pair = tuple[int, int]
"""Two key indices, in the order in which they are asked."""
_TRIES_PER_PAIR = 10


class RecentCaptions:
    """The distinct captions that were met last and have something to ask.

    Args:
        capacity: most captions; the one met longest ago makes room.
    """

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._keys: OrderedDict[int, NDArray[np.int32]] = OrderedDict()  # by caption; met last comes last

    def __len__(self) -> int:
        return len(self._keys)

    def see(self, caption: int, keys: NDArray[np.int32]) -> None:
        """A caption was met; ``keys`` are those of its keys that may be asked about."""
        if not len(keys):
            return
        self._keys[caption] = keys
        self._keys.move_to_end(caption)
        if len(self._keys) > self._capacity:
            self._keys.popitem(last=False)

    def draw(self, count: int, rng: np.random.Generator) -> list[Pair]:
        """``count`` pairs of keys of captions drawn uniformly, with repeats; a pair may be of one key with itself."""
        keys = list(self._keys.values())
        if not keys:
            return []
        captions = rng.integers(len(keys), size=(count, 2))
        places = rng.random((count, 2))

        def key(draw: int, side: int) -> int:
            of_caption = keys[captions[draw, side]]
            return int(of_caption[int(places[draw, side] * len(of_caption))])

        return [(key(draw, 0), key(draw, 1)) for draw in range(count)]


class PairQueue:
    """Draws pairs for one judge; whichever key comes first, a pair is asked until it has a readable answer, once.

    Args:
        settings: how many pairs.
        lease_seconds: how long a taken pair stays in flight before it may be asked again.
        max_attempts: invalid replies after which a pair is asked no more.
        seed: of the draws.
    """

    def __init__(self, settings: PairSettings, *, lease_seconds: float, max_attempts: int, seed: int) -> None:
        self._settings = settings
        self._lease_seconds = lease_seconds
        self._max_attempts = max_attempts
        self._seed = seed
        self._judged: set[Pair] = set()  # with the lower index first; parked pairs, too
        self._pairs_of: Counter[int] = Counter()  # judged ones, by key
        self._in_flight: OrderedDict[Pair, tuple[Pair, Lease]] = OrderedDict()  # as asked
        self._leases = 0  # so far
        self._again: deque[Pair] = deque()
        self._invalid_replies: dict[Pair, int] = {}
        self.draws = 0
        """Calls of ``take`` that drew; each has random numbers of its own."""

    @property
    def judged(self) -> int:
        """Pairs that are asked no more."""
        return len(self._judged)

    @property
    def in_flight(self) -> int:
        """Pairs that an annotator has and has not answered."""
        return len(self._in_flight)

    def take(self, count: int, now: float, recent: RecentCaptions) -> list[Pair]:
        """At most ``count`` pairs of two keys each, in flight until an answer or the end of their lease."""
        self._expire(now)
        if self._settings.max_pairs is not None:
            count = min(count, self._settings.max_pairs - len(self._judged) - len(self._in_flight))
        taken: list[Pair] = []
        while self._again and len(taken) < count:
            self._take(self._again.popleft(), now, taken)
        if len(taken) < count and len(recent) > 0:
            rng = np.random.default_rng([self._seed, self.draws])
            self.draws += 1
            for pair in recent.draw(_TRIES_PER_PAIR * (count - len(taken)), rng):
                if len(taken) < count:
                    self._take(pair, now, taken)
        return taken

    def renew(self, pair: Pair, now: float) -> None:
        """Let the lease of a pair in flight last as if it had begun now; its number stays."""
        self._in_flight[_name(pair)] = (pair, Lease(self.lease(pair), now + self._lease_seconds))
        self._in_flight.move_to_end(_name(pair))

    def finish(self, pairs: Iterable[Pair]) -> None:
        """Pairs that have a readable answer, whoever asked."""
        for pair in pairs:
            name = _name(pair)
            self._count(name)
            self._in_flight.pop(name, None)
            self._invalid_replies.pop(name, None)

    def retry(self, pairs: Iterable[Pair]) -> None:
        """Pairs whose reply was invalid: asked again, or no more after ``max_attempts`` such replies."""
        for pair in pairs:
            name = _name(pair)
            if self._in_flight.pop(name, None) is None:
                continue  # answered meanwhile
            self._invalid_replies[name] = self._invalid_replies.get(name, 0) + 1
            if self._invalid_replies[name] < self._max_attempts:
                self._again.append(pair)
            else:
                self._count(name)

    def lease(self, pair: Pair) -> int:
        """Number of the lease of a pair in flight, to be named when it is given back."""
        return self._in_flight[_name(pair)][1].number

    def holds(self, pair: Pair, lease: int) -> bool:
        """Whether a pair is in flight under the lease of this number."""
        return _name(pair) in self._in_flight and self.lease(pair) == lease

    def give_back(self, leases: Mapping[Pair, int]) -> None:
        """Taken pairs that their annotator will not judge, with their leases: asked again, unless taken anew."""
        for pair, number in leases.items():
            if self.holds(pair, number):
                del self._in_flight[_name(pair)]
                self._again.append(pair)

    def _is_free(self) -> bool:
        return len(self._judged) + len(self._in_flight) < self._settings.free_pairs

    def _count(self, name: Pair) -> None:
        if name not in self._judged:
            self._judged.add(name)
            self._pairs_of.update(name)

    def _expire(self, now: float) -> None:
        while self._in_flight:
            name, (pair, lease) = next(iter(self._in_flight.items()))
            if lease.end > now:
                return
            del self._in_flight[name]
            self._again.append(pair)

    def _take(self, pair: Pair, now: float, taken: list[Pair]) -> None:
        name = _name(pair)
        if pair[0] == pair[1] or name in self._judged or name in self._in_flight:
            return
        if self._is_free() or min(self._pairs_of[key] for key in pair) < self._settings.key_pairs:
            self._leases += 1
            self._in_flight[name] = (pair, Lease(self._leases, now + self._lease_seconds))
            taken.append(pair)


def _name(pair: Pair) -> Pair:
    return (min(pair), max(pair))
