"""Which reward table took effect at which update: a log beside the run, from which its rewards can be paid again.

A file for each learner process of a run, an Arrow IPC stream with a record batch for each table: what changed since the
one before it in the file. Keys go by their index; a checksum of the run's captions tells a replay that meets other
ones. A writer that was killed leaves a torn tail, which readers leave out.
"""

from __future__ import annotations

import logging
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from onibi.platform.errors import ConfigError, TrainingError
from onibi.platform.rewards.table import UNLABELLED, RewardTable

log = logging.getLogger(__name__)

FOLDER = "reward_tables"
"""In a run's folder."""
UNKNOWN_STEPS = -1
"""Env steps of an entry whose writer does not know them: a learner in a process of its own."""

_SCHEMA = pa.schema(
    [
        pa.field("version", pa.int64(), nullable=False),
        pa.field("updates", pa.int64(), nullable=False, metadata={"unit": "made before it took effect"}),
        pa.field("env_steps", pa.int64(), nullable=False, metadata={"unit": "env steps; -1 where not known"}),
        pa.field("captions", pa.int64(), nullable=False),
        pa.field(
            "captions_checksum", pa.uint32(), nullable=False, metadata={"of": "caption_keys, int32 [captions, K]"}
        ),
        pa.field("keys", pa.int64(), nullable=False, metadata={"unit": "length of the table's columns"}),
        pa.field("changed_key", pa.list_(pa.int32()), nullable=False),
        pa.field("value", pa.list_(pa.float32()), nullable=False),
        pa.field("labelled", pa.list_(pa.uint8()), nullable=False),
    ]
)


@dataclass(frozen=True)
class LoggedTable:
    """One table of a log.

    Args:
        version: of the table, in its run.
        updates: made when it took effect.
        env_steps: made by then; ``UNKNOWN_STEPS`` where the writer did not know.
        captions: that the run had met.
        captions_checksum: of their keys.
        value: [keys] float32.
        labelled: [keys] uint8.
    """

    version: int
    updates: int
    env_steps: int
    captions: int
    captions_checksum: int
    value: NDArray[np.float32]
    labelled: NDArray[np.uint8]


class TableLog:
    """Appends tables as they take effect. A disk that refuses ends the log with a warning, never the run.

    Args:
        folder: of the run's logs; made where it is missing, but not its parent: on another machine there is no run.
        incarnation: of the learner in its run: each session, and each learner of a session, has a file of its own.
    """

    def __init__(self, folder: Path, incarnation: int) -> None:
        self.path = folder / f"learner-{incarnation:06d}.arrows"
        self._value: NDArray[np.float32] = np.zeros(0, np.float32)
        self._labelled: NDArray[np.uint8] = np.zeros(0, np.uint8)
        self._sink: pa.OSFile | None = None
        self._stream: pa.RecordBatchStreamWriter | None = None
        try:
            folder.mkdir(exist_ok=True)
            self._sink = pa.OSFile(str(self.path), "wb")
            self._stream = pa.ipc.new_stream(self._sink, _SCHEMA)
        except OSError as error:
            self._give_up(error)

    def add(self, table: RewardTable, updates: int, env_steps: int) -> None:
        """``table`` takes effect after so many updates and env steps."""
        if self._stream is None or self._sink is None:
            return
        value = np.zeros(len(table.value), np.float32)
        labelled = np.full(len(table.value), UNLABELLED, np.uint8)
        kept = min(len(value), len(self._value))
        value[:kept], labelled[:kept] = self._value[:kept], self._labelled[:kept]
        # By their bits, so that a NaN or −0 is what it was.
        differs = (value.view(np.uint32) != table.value.view(np.uint32)) | (labelled != table.labelled)
        changed = np.flatnonzero(differs).astype(np.int32)
        row = {
            "version": [table.version],
            "updates": [updates],
            "env_steps": [env_steps],
            "captions": [len(table.caption_keys)],
            "captions_checksum": [_checksum(table.caption_keys)],
            "keys": [len(table.value)],
            "changed_key": [changed],
            "value": [table.value[changed]],
            "labelled": [table.labelled[changed]],
        }
        try:
            self._stream.write_batch(pa.RecordBatch.from_pydict(row, schema=_SCHEMA))
            self._sink.flush()
        except OSError as error:
            self._give_up(error)
        self._value, self._labelled = table.value.copy(), table.labelled.copy()

    def close(self) -> None:
        """End the file."""
        try:
            if self._stream is not None:
                self._stream.close()
            if self._sink is not None:
                self._sink.close()
        except OSError as error:
            self._give_up(error)
        self._stream = self._sink = None

    def _give_up(self, error: OSError) -> None:
        log.warning(
            "%s: reward tables are logged no more (%s); the run goes on and cannot be paid again", self.path, error
        )
        self._stream = self._sink = None


def read_tables(path: Path) -> list[LoggedTable]:
    """The tables of a log file in the order in which they took effect; what a torn tail holds is left out.

    Raises: ConfigError where the file is missing or no such log.
    """
    try:
        content = path.read_bytes()
        stream = pa.ipc.open_stream(pa.BufferReader(content))
    except (OSError, pa.ArrowInvalid) as error:
        raise ConfigError(f"{path}: cannot be read as a log of reward tables ({error})") from error
    if not stream.schema.equals(_SCHEMA):
        raise ConfigError(f"{path}: has the fields {stream.schema.names}; a log of reward tables has {_SCHEMA.names}")
    value: NDArray[np.float32] = np.zeros(0, np.float32)
    labelled: NDArray[np.uint8] = np.zeros(0, np.uint8)
    found = []
    for row in _rows(stream, path):
        grown = max(0, row["keys"] - len(value))
        value = np.concatenate([value, np.zeros(grown, np.float32)])[: row["keys"]]
        labelled = np.concatenate([labelled, np.full(grown, UNLABELLED, np.uint8)])[: row["keys"]]
        value[row["changed_key"]] = np.array(row["value"], np.float32)
        labelled[row["changed_key"]] = np.array(row["labelled"], np.uint8)
        names = ("version", "updates", "env_steps", "captions", "captions_checksum")
        found.append(LoggedTable(**{name: row[name] for name in names}, value=value.copy(), labelled=labelled.copy()))
    return found


class RecordedTables:
    """Pays a run again by the tables of another one of the same settings and seed, each from the same moment on.

    Args:
        path: the log of a serial run's first session.
    Raises: ConfigError where it cannot be read, or was not written by a serial run.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._tables = read_tables(path)
        if not self._tables or any(table.env_steps == UNKNOWN_STEPS for table in self._tables):
            what = "holds no table" if not self._tables else "was written by a learner in a process of its own"
            raise ConfigError(
                f"{path}: {what}; only a serial run can be paid again, from its own log. Record it with --serial."
            )
        self._next = 0

    def take(self, updates: int, env_steps: int, caption_keys: NDArray[np.int32]) -> RewardTable | None:
        """The newest table that is due now; None where no new one is.

        Args:
            updates: made so far.
            env_steps: made so far.
            caption_keys: [captions, K] of the run that is paid.
        Raises: TrainingError where this run is not the recorded one: it came by other updates or captions.
        """
        due = self._next
        while due < len(self._tables) and self._tables[due].env_steps <= env_steps:
            due += 1
        if due == self._next:
            return None
        table = self._tables[due - 1]
        self._next = due
        here = (updates, env_steps, len(caption_keys), _checksum(caption_keys))
        there = (table.updates, table.env_steps, table.captions, table.captions_checksum)
        if here != there:
            raise TrainingError(
                f"{self._path}: table {table.version} took effect at (updates, env steps, captions, their checksum) "
                f"{there}, this run stands at {here}: it is not the recorded one. Use its settings, seed and code."
            )
        return RewardTable(table.version, caption_keys, table.value, table.labelled)


def _rows(stream: pa.RecordBatchStreamReader, path: Path) -> Iterator[dict[str, Any]]:
    while True:
        try:
            batch = stream.read_next_batch()
        except StopIteration:
            return
        except (pa.ArrowInvalid, OSError):
            log.warning("%s: the last table is torn and is left out", path)
            return
        yield from batch.to_pylist()


def _checksum(caption_keys: NDArray[np.int32]) -> int:
    return zlib.crc32(np.ascontiguousarray(caption_keys, np.int32).tobytes())
