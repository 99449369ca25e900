"""Captions and their keys: texts on the outside, dense indices on the inside (docs/annotation.md).

A *caption* is the raw text of a step. A *key* is one of its normalised sentences: what is counted and labelled. Both
travel between processes as text or 64-bit hash, and are dense indices only within one run.
"""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Any, NewType

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from onibi.platform.errors import CaptionError
from onibi.platform.fragment import CaptionText, KeyText

CaptionIndex = NewType("CaptionIndex", int)
"""Dense number of a caption in a run; 0 is the empty caption."""
KeyIndex = NewType("KeyIndex", int)
"""Dense number of a caption key in a run."""

EMPTY_TEXT = CaptionText(text="", keys=())
"""The caption of a step that says nothing."""
NO_KEY = -1
"""Pads ``caption_keys`` where a caption has fewer than K keys."""


def storable(text: str) -> str:
    """``text`` with question marks for lone surrogates, which have no UTF-8 form: they could not be stored."""
    return text.encode(errors="replace").decode()


def printable(text: str) -> str:
    """``text`` on one line, with a blank for what a terminal or a reader could take for more than a text: control and
    formatting characters, lone surrogates, line ends.
    """
    # C: control, format (bidirectional overrides, zero-width), surrogate, private use, unassigned. Z: separators.
    plain = (" " if unicodedata.category(character)[0] in "CZ" else character for character in text)
    return " ".join("".join(plain).split())


def lost_caption(index: int) -> CaptionText:
    """Stands for a caption whose text died with the process that knew it."""
    return CaptionText(text=f"(caption {index} was lost with its process)", keys=())


@lru_cache(maxsize=1 << 16)
def text_hash(text: str) -> int:
    """Unsigned 64-bit BLAKE2b of the UTF-8 text, little-endian; 0 for the empty text and for no other."""
    if not text:
        return 0
    # "surrogatepass": a text that came from broken bytes still has a hash, and the same one in every process.
    digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "little") or 1


_CAPTIONS = pa.schema({"hash": pa.uint64(), "text": pa.string(), "keys": pa.list_(pa.string())})
_KEYS = pa.schema({"hash": pa.uint64(), "text": pa.string(), "askable": pa.bool_(), "example": pa.string()})
_CHUNKS_MOST = 64


def _extended(stored: pa.Table, new: Mapping[str, Sequence[Any]]) -> pa.Table:
    """``stored`` with rows behind it, not in ever more pieces."""
    table = pa.concat_tables([stored, pa.table(dict(new), schema=stored.schema)])
    return table.combine_chunks() if table.column(0).num_chunks > _CHUNKS_MOST else table


def _with_sightings(stored: pa.Table, sightings: NDArray[np.int64]) -> pa.Table:
    return stored.append_column("sightings", pa.array(sightings, pa.int64()))


class CaptionTable:
    """Interns captions and keys, append-only: an index once given keeps its meaning for the whole run.

    Args:
        keys_per_caption: K, the most keys that a caption may have.
        key_version: names the rules by which the captioner makes keys; tables of different versions never mix.
    """

    def __init__(self, keys_per_caption: int, key_version: str) -> None:
        if keys_per_caption < 1:
            raise CaptionError(f"captions: keys_per_caption is {keys_per_caption}; it must be 1 or more")
        self.keys_per_caption = keys_per_caption
        self.key_version = key_version
        self._caption_of_hash: dict[int, CaptionIndex] = {}
        self._key_of_hash: dict[int, KeyIndex] = {}
        self._captions: list[CaptionText] = []
        self._keys: list[KeyText] = []
        self._examples: list[str] = []
        self._caption_keys = np.full((256, keys_per_caption), NO_KEY, np.int32)
        self._caption_sightings = np.zeros(256, np.int64)
        self._key_sightings = np.zeros(256, np.int64)
        # What to_arrow has written so far, and would write again: texts never change, and may be hundreds of thousands.
        self._captions_stored = _CAPTIONS.empty_table()
        self._keys_stored = _KEYS.empty_table()
        self._add_caption(0, EMPTY_TEXT)

    def __len__(self) -> int:
        return len(self._captions)

    @property
    def key_count(self) -> int:
        """Number of keys."""
        return len(self._keys)

    @property
    def caption_keys(self) -> NDArray[np.int32]:
        """[captions, K], key indices of each caption, ``NO_KEY`` behind its last one; rows never change. Read-only."""
        view = self._caption_keys[: len(self._captions)]
        view.flags.writeable = False
        return view

    @property
    def askable(self) -> NDArray[np.bool_]:
        """[keys], whether an annotator may be asked about the key."""
        return np.fromiter((key.askable for key in self._keys), np.bool_, len(self._keys))

    @property
    def caption_sightings(self) -> NDArray[np.int64]:
        """[captions], rows in which each caption was reported by ``count_sightings``; a copy."""
        return self._caption_sightings[: len(self._captions)].copy()

    @property
    def key_sightings(self) -> NDArray[np.int64]:
        """[keys], rows in which each key was reported by ``count_sightings``; a copy."""
        return self._key_sightings[: len(self._keys)].copy()

    def intern(self, captions: Iterable[CaptionText]) -> NDArray[np.uint32]:
        """Dense indices of captions, given to new ones in the order in which they come.

        Args:
            captions: texts with their keys; the empty text is caption 0.
        Returns: [len(captions)] uint32.
        Raises: CaptionError for two texts with one hash, one text with two sets of keys, one key both askable and not,
            or more than K keys. What came before the fault stays interned.
        """
        indices = []
        for caption in captions:
            caption_hash = text_hash(caption.text)
            index = self._caption_of_hash.get(caption_hash)
            if index is None:
                index = self._add_caption(caption_hash, caption)
            elif self._captions[index] != caption:
                self._refuse(caption, self._captions[index], caption_hash)
            indices.append(index)
        return np.array(indices, np.uint32)

    def caption(self, index: int) -> CaptionText:
        """The caption with this index. Raises: CaptionError where there is none."""
        if not 0 <= index < len(self._captions):
            raise CaptionError(f"caption index {index} is unknown; this table has 0 to {len(self._captions) - 1}")
        return self._captions[index]

    def key(self, index: int) -> KeyText:
        """The key with this index. Raises: CaptionError where there is none."""
        if not 0 <= index < len(self._keys):
            raise CaptionError(f"key index {index} is unknown; this table has {len(self._keys)} keys")
        return self._keys[index]

    def key_texts(self, keys: Iterable[int]) -> list[str]:
        """Texts of keys. Raises: CaptionError for an index that there is not."""
        return [self.key(key).text for key in keys]

    def example(self, key: int) -> str:
        """The first raw caption that brought this key: what an annotator reads."""
        self.key(key)
        return self._examples[key]

    def caption_index(self, caption_hash: int) -> CaptionIndex | None:
        """Index of a caption by its hash; None for one that was never interned."""
        return self._caption_of_hash.get(caption_hash)

    def key_index(self, key_hash: int) -> KeyIndex | None:
        """Index of a key by its hash; None for one that was never interned."""
        return self._key_of_hash.get(key_hash)

    def keys_of(self, captions: NDArray[Any]) -> NDArray[np.int32]:
        """Distinct key indices of these captions, ascending.

        Args:
            captions: caption indices of any shape and unsigned or signed integer dtype.
        Raises: CaptionError for an index that is not in the table.
        """
        keys = np.unique(self._caption_keys[self._checked(captions)])
        present: NDArray[np.int32] = keys[keys != NO_KEY]
        return present

    def count_sightings(self, captions: NDArray[Any], rows: NDArray[Any] | None = None) -> None:
        """Add rows in which captions occurred.

        Args:
            captions: [N] caption indices, with repeats or not.
            rows: [N] rows for each of them; None counts each entry once.
        Raises: CaptionError for an index that is not in the table.
        """
        captions = self._checked(captions)
        weights = np.ones(len(captions), np.int64) if rows is None else np.asarray(rows, np.int64)
        np.add.at(self._caption_sightings, captions, weights)
        keys = self._caption_keys[captions]
        present = keys != NO_KEY
        np.add.at(self._key_sightings, keys[present], np.broadcast_to(weights[:, None], keys.shape)[present])

    def to_arrow(self) -> dict[str, pa.Table]:
        """``captions`` (hash, text, keys, sightings), ``keys`` (hash, text, askable, example, sightings), by index."""
        metadata = {"keys_per_caption": str(self.keys_per_caption), "key_version": self.key_version}
        captions = _with_sightings(self._stored_captions(), self.caption_sightings)
        keys = _with_sightings(self._stored_keys(), self.key_sightings)
        return {"captions": captions.replace_schema_metadata(metadata), "keys": keys.replace_schema_metadata(metadata)}

    def _stored_captions(self) -> pa.Table:
        new = self._captions[len(self._captions_stored) :]
        self._captions_stored = _extended(
            self._captions_stored,
            {
                "hash": [text_hash(caption.text) for caption in new],
                "text": [caption.text for caption in new],
                "keys": [[key.text for key in caption.keys] for caption in new],
            },
        )
        return self._captions_stored

    def _stored_keys(self) -> pa.Table:
        begin = len(self._keys_stored)
        new = self._keys[begin:]
        self._keys_stored = _extended(
            self._keys_stored,
            {
                "hash": [text_hash(key.text) for key in new],
                "text": [key.text for key in new],
                "askable": [key.askable for key in new],
                "example": self._examples[begin:],
            },
        )
        return self._keys_stored

    @classmethod
    def from_arrow(cls, tables: dict[str, pa.Table]) -> CaptionTable:
        """The table that ``to_arrow`` wrote, with the same indices.

        Raises: CaptionError where a table or column is missing, or a text does not fit its hash.
        """
        captions = _checked_table(tables, "captions", ("hash", "text", "keys", "sightings"))
        keys = _checked_table(tables, "keys", ("hash", "text", "askable", "example", "sightings"))
        metadata = {name.decode(): value.decode() for name, value in (captions.schema.metadata or {}).items()}
        if not {"keys_per_caption", "key_version"} <= set(metadata):
            raise CaptionError(
                f"caption table: the schema's metadata has {sorted(metadata)}, not 'keys_per_caption' and "
                "'key_version'; was it written by CaptionTable.to_arrow?"
            )
        table = cls(int(metadata["keys_per_caption"]), metadata["key_version"])
        for row in keys.to_pylist():
            table._add_key(row["hash"], KeyText(row["text"], row["askable"]), row["example"])
        known = {key.text: key for key in table._keys}
        for row in captions.to_pylist():
            try:
                caption = CaptionText(row["text"], tuple(known[text] for text in row["keys"]))
            except KeyError as error:
                raise CaptionError(
                    f"caption table: caption {row['text']!r} has the key {error}, which the table of keys lacks; "
                    "the two tables are not of one checkpoint"
                ) from error
            if text_hash(caption.text) != row["hash"]:
                raise CaptionError(
                    f"caption table: hash {row['hash']} does not fit the text {caption.text!r}; it is damaged"
                )
            table.intern([caption])
        if len(table) != captions.num_rows or table.key_count != keys.num_rows:
            raise CaptionError(
                f"caption table: {captions.num_rows} rows hold only {len(table)} different captions; it is damaged"
            )
        table._caption_sightings[: len(table)] = captions["sightings"].to_numpy()
        table._key_sightings[: table.key_count] = keys["sightings"].to_numpy()
        return table

    def _add_caption(self, caption_hash: int, caption: CaptionText) -> CaptionIndex:
        if len(caption.keys) > self.keys_per_caption:
            raise CaptionError(
                f"caption {caption.text!r} has {len(caption.keys)} keys, this run stores {self.keys_per_caption} "
                "per caption; raise keys_per_caption in the captioner's settings"
            )
        keys = [self._key_index(key, caption.text) for key in caption.keys]
        index = CaptionIndex(len(self._captions))
        if index == len(self._caption_keys):
            # Old arrays stay as they are: reward tables that were built on them keep their views.
            self._caption_keys = np.concatenate([self._caption_keys, np.full_like(self._caption_keys, NO_KEY)])
            self._caption_sightings = np.concatenate([self._caption_sightings, np.zeros_like(self._caption_sightings)])
        self._caption_keys[index, : len(keys)] = keys
        self._captions.append(caption)
        self._caption_of_hash[caption_hash] = index
        return index

    def _key_index(self, key: KeyText, example: str) -> KeyIndex:
        key_hash = text_hash(key.text)
        index = self._key_of_hash.get(key_hash)
        if index is None:
            return self._add_key(key_hash, key, example)
        known = self._keys[index]
        if known.text != key.text:
            raise CaptionError(_collision("keys", known.text, key.text, key_hash))
        if known.askable != key.askable:
            raise CaptionError(
                f"caption key {key.text!r} comes as askable={key.askable}, it was interned as askable={known.askable}; "
                "one run needs one captioner and one key_version"
            )
        return index

    def _add_key(self, key_hash: int, key: KeyText, example: str) -> KeyIndex:
        if not key.text:
            raise CaptionError(f"caption {example!r} has an empty key; a captioner leaves empty sentences out")
        if text_hash(key.text) != key_hash:
            raise CaptionError(f"caption table: hash {key_hash} does not fit the key {key.text!r}; it is damaged")
        index = KeyIndex(len(self._keys))
        if index == len(self._key_sightings):
            self._key_sightings = np.concatenate([self._key_sightings, np.zeros_like(self._key_sightings)])
        self._keys.append(key)
        self._examples.append(example)
        self._key_of_hash[key_hash] = index
        return index

    def _refuse(self, caption: CaptionText, known: CaptionText, caption_hash: int) -> None:
        if caption.text != known.text:
            raise CaptionError(_collision("captions", known.text, caption.text, caption_hash))
        raise CaptionError(
            f"caption {caption.text!r} comes with the keys {[key.text for key in caption.keys]}, it was interned with "
            f"{[key.text for key in known.keys]}; one run needs one captioner and one key_version "
            f"({self.key_version!r} here)"
        )

    def _checked(self, captions: NDArray[Any]) -> NDArray[np.int64]:
        indices = np.asarray(captions).astype(np.int64).ravel()
        if indices.size and (int(indices.max()) >= len(self._captions) or int(indices.min()) < 0):
            raise CaptionError(
                f"caption indices reach from {indices.min()} to {indices.max()}, this table has 0 to "
                f"{len(self._captions) - 1}; intern captions before reporting them"
            )
        return indices


def _collision(what: str, known: str, new: str, shared_hash: int) -> str:
    return (
        f"two {what} have the hash {shared_hash:#018x}: {known!r} and {new!r}. A merge would give one the "
        "other's label; change the captioner's normalisation so that one of them reads differently"
    )


def _checked_table(tables: dict[str, pa.Table], name: str, columns: tuple[str, ...]) -> pa.Table:
    if name not in tables:
        raise CaptionError(f"caption table: {name!r} is missing among {sorted(tables)}")
    missing = sorted(set(columns) - set(tables[name].column_names))
    if missing:
        raise CaptionError(f"caption table {name!r}: columns {missing} are missing among {tables[name].column_names}")
    return tables[name]
