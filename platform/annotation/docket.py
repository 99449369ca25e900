"""What waits for one judge of the annotation desk: keys to label, and pairs of keys to compare."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from onibi.platform.annotation.annotator import AnnotationRequest, Request
from onibi.platform.annotation.caption_queue import CaptionQueue
from onibi.platform.annotation.captions import KeyIndex
from onibi.platform.annotation.labels import Preference
from onibi.platform.annotation.pair_queue import PairQueue


@dataclass(frozen=True)
class Docket:
    """The queues of one judge."""

    keys: CaptionQueue
    pairs: PairQueue
    unheard: dict[int, list[Preference]] = field(default_factory=dict)
    """Preferences read from elsewhere that name a key which this run has not heard yet, by that key's hash."""

    def offer(self, keys: NDArray[np.int32], missing: NDArray[np.int32], votes: int, now: float) -> None:
        """Keys [n] were met that lack ``missing`` [n] of ``votes`` labels: those that lack any wait."""
        first, further = keys[missing == votes], keys[(missing > 0) & (missing < votes)]
        if first.size:
            self.keys.offer(map(KeyIndex, first.tolist()), now)
        if further.size:
            self.keys.offer_further(map(KeyIndex, further.tolist()))

    def finish_pair(self, preference: Preference, first: KeyIndex | None, second: KeyIndex | None) -> bool:
        """A readable answer on a pair, whoever asked. Returns: whether both keys are known; else it waits for them."""
        if first is None or second is None:
            missing = preference.first_hash if first is None else preference.second_hash
            self.unheard.setdefault(missing, []).append(preference)
            return False
        self.pairs.finish([(first, second)])
        return True

    def give_back(self, requests: Iterable[Request], now: float) -> None:
        """Taken requests that will not be answered: they wait again, but for those that were handed on meanwhile."""
        for request in requests:
            if isinstance(request, AnnotationRequest):
                self.keys.give_back({request.key: request.lease}, now)
            else:
                self.pairs.give_back({(request.first.key, request.second.key): request.lease})

    def holds(self, request: Request) -> bool:
        """Whether a request is in flight under the lease that it was taken with."""
        if isinstance(request, AnnotationRequest):
            return self.keys.holds(request.key, request.lease)
        return self.pairs.holds((request.first.key, request.second.key), request.lease)

    def renew(self, requests: Iterable[Request], now: float) -> list[Request]:
        """Those of taken requests that are in flight still; their leases last as if they had begun now."""
        held = [request for request in requests if self.holds(request)]
        for request in held:
            if isinstance(request, AnnotationRequest):
                self.keys.renew(request.key, now)
            else:
                self.pairs.renew((request.first.key, request.second.key), now)
        return held
