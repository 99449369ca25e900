"""Episodic counts of caption keys, per lane: the N of the reward's 1 / N^β, and the observation that tells of it."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from onibi.platform.annotation.captions import text_hash
from onibi.platform.errors import CaptionError
from onibi.platform.fragment import CaptionText

BAG_BITS = 64
"""Width of the hashed bag of keys heard in an episode."""

_MOST = (1 << 16) - 1
_LOG2_ONE_MORE = np.log2(1 + np.arange(_MOST + 1, dtype=np.float64)).astype(np.float32).tolist()


class CaptionCounter:
    """Counts for E lanes. An episode's first caption is counted, too; that it pays nobody is the rollout's business.

    Args:
        envs: E.
        keys_per_caption: K.
    """

    def __init__(self, envs: int, keys_per_caption: int) -> None:
        self._envs, self._width = envs, keys_per_caption
        self._counts: list[dict[str, int]] = [{} for _ in range(envs)]
        self._feature = np.zeros((envs, keys_per_caption + BAG_BITS), np.float32)
        self._present: list[int] = []  # lanes whose feature shows counts of the last caption

    def count(self, captions: Sequence[CaptionText], lanes: NDArray[np.bool_] | None = None) -> NDArray[np.uint16]:
        """Count what was just heard.

        Args:
            captions: [E], one for each lane.
            lanes: [E], the lanes that heard theirs; None: all. Others keep their counts and get 0 here.
        Returns: [E, K] uint16, N of each key of a lane's caption, this time included (from 1, saturating at 65,535);
            0 behind its last key. The caller's to keep.
        Raises: CaptionError where there is not one caption for each lane, or one has more than K keys.
        """
        if len(captions) != self._envs:
            raise CaptionError(f"{len(captions)} captions for {self._envs} lanes; a captioner gives one for each")
        counts = np.zeros((self._envs, self._width), np.uint16)
        if self._present:
            stale = self._present if lanes is None else [lane for lane in self._present if lanes[lane]]
            self._feature[stale, : self._width] = 0
            self._present = [] if lanes is None else [lane for lane in self._present if not lanes[lane]]
        for lane, caption in enumerate(captions):
            if caption.keys and (lanes is None or lanes[lane]):
                self._count_lane(lane, caption, counts)
        return counts

    def reset(self, lane: int) -> None:
        """A new episode begins in this lane."""
        self._counts[lane] = {}
        self._feature[lane] = 0

    def feature(self) -> NDArray[np.float32]:
        """[E, K + 64] float32, the observation ``caption_counts``; the caller's to keep.

        log2(1 + N) of the present keys, then a hashed bag (0 or 1) of the keys heard in this episode: without it a
        reward by N is not Markov. Never-asked keys, worth 0 at any N, show in neither.
        """
        return self._feature.copy()

    def _count_lane(self, lane: int, caption: CaptionText, counts: NDArray[np.uint16]) -> None:
        if len(caption.keys) > self._width:
            raise CaptionError(
                f"caption {caption.text!r} has {len(caption.keys)} keys; this counter holds {self._width}"
            )
        heard, feature = self._counts[lane], self._feature[lane]
        for position, key in enumerate(caption.keys):
            number = heard.get(key.text, 0)
            if number < _MOST:
                number += 1
                heard[key.text] = number
            counts[lane, position] = number
            if key.askable:
                feature[position] = _LOG2_ONE_MORE[number]
                feature[self._width + bag_bit(key.text)] = 1.0
        self._present.append(lane)


@lru_cache(maxsize=1 << 16)
def bag_bit(key_text: str) -> int:
    """Place of a key in the hashed bag, 0 to 63: the same in every process and run."""
    return text_hash(key_text) % BAG_BITS
