"""Texts of Text leaves on their way into a ring: whatever hash a row shows, its text has come before or with it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa

from onibi.platform.errors import ReplayError
from onibi.platform.fragment import Fragment
from onibi.platform.replay.text_table import TextTable, text_columns
from onibi.platform.spec import ReplaySpec


class FragmentTexts:
    """The texts that fragments have brought to one ring.

    Args:
        path: of the ring, for messages.
        spec: row layout; without Text columns nothing is kept.
    """

    def __init__(self, path: Path, spec: ReplaySpec) -> None:
        self._path, self._columns = path, text_columns(spec)
        self._table = TextTable()

    def take(self, fragment: Fragment) -> dict[int, str]:
        """Learn a fragment's texts. Returns: those that were not known, by hash.

        Raises:
            ReplayError: a row or head has a hash whose text never came.
            SpecError: what came is no text, or shares its hash with another text.
        """
        if not self._columns:
            return {}
        self._table.intern(fragment.new_texts)
        self._check(fragment)
        new = self._table.take_new()
        return dict(zip(new["text_hash"].to_pylist(), new["text"].to_pylist(), strict=True))

    def merge(self, texts: pa.Table) -> None:
        """Texts that are known from elsewhere, as from the log of an earlier session; new to nobody."""
        self._table.merge(texts)
        self._table.take_new()

    def to_arrow(self) -> pa.Table:
        """All texts: ``TEXT_SCHEMA``."""
        return self._table.to_arrow()

    def _check(self, fragment: Fragment) -> None:
        for name in self._columns:
            hashes = fragment.columns.get(name)
            if not isinstance(hashes, np.ndarray) or hashes.ndim != 2 or len(hashes) != fragment.envs:
                continue  # the writer refuses it, and says why
            read = np.arange(hashes.shape[1]) <= np.asarray(fragment.rows_per_lane)[:, None]  # the heads, too
            missing = [hashed for hashed in np.unique(hashes[read]).tolist() if hashed not in self._table]
            if missing:
                raise ReplayError(
                    f"{self._path}: fragment {fragment.sequence} of actor {fragment.actor} has {len(missing)} hashes "
                    f"in {name!r} without a text (first {missing[0]:#018x}). An actor sends each text in new_texts "
                    "once after it registers; register it again"
                )
