"""Texts of Text spaces: in rows they are 64-bit hashes, here they are words again."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from onibi.platform.annotation.captions import text_hash
from onibi.platform.errors import SpecError
from onibi.platform.spec import TEXT_HASH, ReplaySpec

TEXT_SCHEMA = pa.schema(
    [pa.field("text_hash", pa.uint64(), nullable=False), pa.field("text", pa.string(), nullable=False)],
    metadata={"onibi_table": "texts"},
)
"""Columns of a table of texts, in memory and on disk."""


def text_columns(spec: ReplaySpec) -> tuple[str, ...]:
    """Names of the columns that hold hashes of texts."""
    return tuple(column.name for column in spec.columns if column.content == TEXT_HASH)


class TextTable:
    """Hash → text, append-only. Tables of several actors merge, as a hash means the same text everywhere.

    The empty text has the hash 0 and stands in every table unsaid. Two texts of one hash are an error, not a merge.
    """

    def __init__(self) -> None:
        self._texts: dict[int, str] = {}
        self._new: list[int] = []

    def __len__(self) -> int:
        return len(self._texts)

    def __contains__(self, hashed: int) -> bool:
        """Whether the text of a hash is known."""
        return not hashed or int(hashed) in self._texts

    def __getitem__(self, hashed: int) -> str:
        """The text of a hash. Raises: KeyError where it was never interned here."""
        return self._texts[int(hashed)] if hashed else ""

    def intern(self, texts: Iterable[str]) -> NDArray[np.uint64]:
        """Their hashes, [number of texts] uint64; texts not met before are kept.

        Raises: SpecError for what is no text, no valid Unicode, or shares its hash with another text.
        """
        return np.array([self._add(text) for text in texts], np.uint64)

    def take_new(self) -> pa.Table:
        """The texts added since the last call, for the fragment (or file) that goes out with their first rows."""
        taken, self._new = self._new, []
        return texts_table({hashed: self._texts[hashed] for hashed in taken})

    def to_arrow(self) -> pa.Table:
        """All texts: ``text_hash`` uint64, ``text`` string, in the order in which they came."""
        return texts_table(self._texts)

    @classmethod
    def from_arrow(cls, table: pa.Table) -> TextTable:
        """The table that ``to_arrow`` gave; its texts count as new to nobody. Raises: SpecError as ``merge``."""
        texts = cls()
        texts.merge(table)
        texts.take_new()
        return texts

    def merge(self, table: pa.Table) -> None:
        """Take over the texts of another table.

        Raises: SpecError where it is no table of texts, or a hash in it is not that of its text.
        """
        if not {"text_hash", "text"} <= set(table.schema.names):
            raise SpecError(
                f"a table with the columns {table.schema.names[:8]} holds no texts; pass what TextTable.to_arrow() gave"
            )
        for hashed, text in zip(table["text_hash"].to_pylist(), table["text"].to_pylist(), strict=True):
            # The groups of a log name the same texts again and again: what is known was hashed before.
            if self._texts.get(hashed) != text and self._add(text) != hashed:
                raise SpecError(
                    f"text table: the hash of {str(text)[:60]!r} is {text_hash(text):#018x}, the table says "
                    f"{hashed:#018x}; the table is damaged, or another version of Onibi wrote it"
                )

    def _add(self, text: str) -> int:
        if not isinstance(text, str):
            raise SpecError(f"a Text leaf holds {text!r} ({type(text).__name__}); it must be a str")
        hashed = text_hash(text)
        if hashed == 0:
            return 0
        known = self._texts.get(hashed)
        if known is None:
            try:
                text.encode()
            except UnicodeEncodeError as error:
                raise SpecError(
                    f"the text {text[:60]!r} cannot be stored: {error.reason}; replace lone surrogates in a wrapper"
                ) from error
            self._texts[hashed] = text
            self._new.append(hashed)
        elif known != text:
            raise SpecError(
                f"the texts {known[:60]!r} and {text[:60]!r} have one hash, {hashed:#018x}; change a character of one"
            )
        return hashed


def texts_table(texts: Mapping[int, str]) -> pa.Table:
    """Texts by their hash, as a table of ``TEXT_SCHEMA``."""
    return pa.table([pa.array(texts, pa.uint64()), pa.array(texts.values(), pa.string())], schema=TEXT_SCHEMA)
