"""Which pairs are asked once there are many: new captions go on being compared, known ones not for ever."""

from __future__ import annotations

from collections import Counter

import numpy as np

from onibi.platform.annotation.pair_queue import PairQueue, RecentCaptions
from onibi.platform.annotation.settings import PairSettings


def met(*keys):
    recent = RecentCaptions(capacity=100)
    for key in keys:
        recent.see(key, np.array([key], np.int32))
    return recent


def ask_all(queue, recent):
    asked, empty = [], 0
    while empty < 20:  # pairs are drawn by chance, and not always is one among them that may be asked
        pairs = queue.take(1, 0.0, recent)
        empty = 0 if pairs else empty + 1
        asked += pairs
        queue.finish(pairs)
    return asked


def test_beyond_the_free_pairs_only_keys_in_few_pairs_are_compared():
    queue = PairQueue(PairSettings(free_pairs=5, key_pairs=2), lease_seconds=9.0, max_attempts=3, seed=0)
    old = range(6)
    asked = ask_all(queue, met(*old))
    among = Counter(key for pair in asked for key in pair)
    assert set(among) == set(old) and min(among.values()) >= 2, "each key until it is in two pairs"
    assert len(asked) < 15, "and not all of the pairs that there are"
    again = ask_all(queue, met(*old, 6))
    assert len(again) == 2 and all(6 in pair for pair in again)
    assert ask_all(queue, met(*old, 6)) == []


def test_without_free_pairs_left_to_come_all_pairs_are_asked():
    queue = PairQueue(PairSettings(), lease_seconds=9.0, max_attempts=3, seed=0)
    assert len(ask_all(queue, met(*range(6)))) == 15
