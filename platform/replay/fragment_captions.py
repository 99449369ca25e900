"""Captions of fragments on their way into a ring: a hash becomes the run's dense id, its text having come with it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onibi.platform.annotation.captions import text_hash
from onibi.platform.errors import CaptionError, ReplayError
from onibi.platform.fragment import CaptionHash, CaptionText, Fragment


class FragmentCaptions:
    """The captions that fragments have brought to one ring.

    Args:
        path: of the ring, for messages.
        resolve: gives captions their dense ids in order; called once for all unknown ones of a fragment.
    """

    def __init__(self, path: Path, resolve: Callable[[list[CaptionText]], NDArray[np.uint32]]) -> None:
        self._path, self._resolve = path, resolve
        self._ids: dict[CaptionHash, int] = {0: 0}
        self._unresolved: dict[CaptionHash, CaptionText] = {}  # met in a fragment

    def __len__(self) -> int:
        """Distinct captions met, without the empty one."""
        return len(self._ids) - 1

    def take(self, fragment: Fragment, hashes: NDArray[Any]) -> tuple[NDArray[np.uint32], dict[int, CaptionText]]:
        """[E, R] caption ids of a fragment, rows behind a lane's head counting as empty; and by id the captions that
        were not known.

        Args:
            hashes: [E, R] as the fragment has them.
        Raises: CaptionError where a hash came without its text, ReplayError where ``hashes`` or the fragment's rows
            per lane are of another form.
        """
        given, lanes = np.asarray(hashes), np.asarray(fragment.rows_per_lane)
        came: tuple[Any, ...] = hashes, fragment.rows_per_lane
        arrays = all(isinstance(each, np.ndarray) for each in came)
        if not arrays or given.dtype != np.uint64 or given.ndim != 2 or lanes.shape != given.shape[:1]:
            raise ReplayError(
                f"{self._path}: fragment {fragment.sequence} of actor {fragment.actor} has the column 'caption_hash' "
                f"{given.dtype}{list(given.shape)} and rows_per_lane {lanes.tolist()}; allowed are NumPy arrays, "
                "uint64 [E, R] and one integer a lane"
            )
        for caption in fragment.new_captions:
            hashed = text_hash(caption.text)
            if hashed not in self._ids:
                self._unresolved[hashed] = caption
        ids = np.zeros(hashes.shape, np.uint32)
        behind = np.arange(hashes.shape[1]) < fragment.rows_per_lane[:, None]
        spoken = np.flatnonzero((hashes != 0) & behind)
        if not len(spoken):
            return ids, {}
        distinct, inverse = np.unique(hashes.reshape(-1)[spoken], return_inverse=True)
        names: list[CaptionHash] = distinct.tolist()
        unknown = [name for name in names if name not in self._ids]
        if missing := [name for name in unknown if name not in self._unresolved]:
            raise CaptionError(
                f"{self._path}: fragment {fragment.sequence} of actor {fragment.actor} has {len(missing)} caption "
                f"hashes without a text (first {missing[0]:#018x}). An actor sends each text in new_captions once "
                "after it registers; register it again"
            )
        new = {}
        if unknown:
            found = self._resolve([self._unresolved[name] for name in unknown])
            for name, caption_id in zip(unknown, found.tolist(), strict=True):
                self._ids[name] = caption_id
                new[caption_id] = self._unresolved.pop(name)
        ids.reshape(-1)[spoken] = np.array([self._ids[name] for name in names], np.uint32)[inverse]
        return ids, new
