"""A file that grows by whole Arrow record batches: what a process wrote before ``kill -9`` is read back, whole.

    frame    = "OBJ1" | bytes of the payload, u32 | CRC-32 of the payload, u32 | CRC-32 of these 12 bytes, u32 | payload
    payloads = the schema, then record batches, as Arrow IPC messages

A frame is written by one call. A torn one at the end is left out; one that is damaged further in is passed over, and
reading goes on at the next that is whole.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
import time
import zlib
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

_MAGIC = b"OBJ1"
_HEADER = struct.Struct("<4sIII")
_SYNC_SECONDS = 1.0


@dataclass(frozen=True)
class JournalPiece:
    """What was read of a journal from some byte on."""

    batches: list[pa.RecordBatch]
    end: int
    """Where to go on reading: behind the last whole frame."""
    damaged_bytes: int
    """Bytes passed over before ``end``."""
    torn_bytes: int
    """Bytes behind ``end``, of a frame that is not whole: still being written, or torn."""


class JournalWriter:
    """The one writer of a journal, which is locked while it is open. Raises: OSError, also FileExistsError.

    Args:
        path: a new file.
        schema: of all batches.
    """

    def __init__(self, path: Path, schema: pa.Schema) -> None:
        self.path = path
        self.rows = 0
        self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC, 0o644)
        self._size = 0
        self._synced_at = time.monotonic()
        try:
            _lock(self._descriptor, fcntl.LOCK_EX)
            if os.fstat(self._descriptor).st_nlink == 0:  # somebody took it for that of a dead writer, and removed it
                raise FileExistsError(errno.EEXIST, "the new journal was removed by another process", str(path))
            self._write(frame(schema.serialize()))
        except BaseException:
            os.close(self._descriptor)
            raise

    @property
    def size(self) -> int:
        """Bytes."""
        return self._size

    def append(self, table: pa.Table) -> None:
        """Rows; a ``kill -9`` from here on does not lose them, a power cut may lose those of the last second.

        Raises: OSError where the disk refuses; the file is then as it was.
        """
        batches = table.combine_chunks().to_batches()
        self._write(b"".join(frame(batch.serialize()) for batch in batches))
        self.rows += len(table)
        now = time.monotonic()
        if now - self._synced_at >= _SYNC_SECONDS:
            os.fsync(self._descriptor)
            self._synced_at = now

    def sync(self) -> None:
        """From now on all rows survive a power cut."""
        os.fsync(self._descriptor)

    def close(self) -> None:
        """Free the lock; the file stays."""
        os.close(self._descriptor)

    def _write(self, content: bytes) -> None:
        written = 0
        try:
            while written < len(content):
                written += os.write(self._descriptor, content[written:])
        except OSError:
            os.ftruncate(self._descriptor, self._size)
            raise
        self._size += written


def frame(payload: bytes | pa.Buffer) -> bytes:
    """A payload with its header."""
    content = bytes(payload)
    head = struct.pack("<4sII", _MAGIC, len(content), zlib.crc32(content))
    return head + struct.pack("<I", zlib.crc32(head)) + content


def read_journal(path: Path, start: int, schema: pa.Schema) -> JournalPiece:
    """The whole frames from byte ``start`` on.

    Args:
        path: the journal, which may be growing.
        start: 0, or the ``end`` of an earlier piece.
        schema: that every batch must have.
    Raises: OSError where it cannot be read; ValueError where its schema is another one.
    """
    with path.open("rb") as file:
        file.seek(start)
        content = file.read()
    batches: list[pa.RecordBatch] = []
    at = damaged = pending = 0
    while at < len(content):
        payload = _payload(content, at)
        if payload is None:
            # Behind a frame that is not whole there may be whole ones: then it is damaged, else it is the torn end.
            following = content.find(_MAGIC, at + 1)
            if following < 0:
                break
            pending += following - at
            at = following
            continue
        damaged, pending = damaged + pending, 0
        at += _HEADER.size + len(payload)
        message = pa.ipc.read_message(pa.py_buffer(payload))
        if message.type == "schema":
            found = pa.ipc.read_schema(message)
            if not found.equals(schema):
                raise ValueError(f"its columns are {found.names}, expected {schema.names}")
            continue
        batches.append(pa.ipc.read_record_batch(message, schema))
    whole = at - pending
    return JournalPiece(batches, start + whole, damaged, len(content) - whole)


def lock_abandoned(path: Path) -> int | None:
    """A descriptor that holds the lock of a journal whose writer is gone; None where it writes still, or is unknown.

    The caller closes it.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:  # removed, another user's, a link that leads nowhere: no reason to refuse what is to be written
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.fstat(descriptor).st_nlink > 0:
            return descriptor
    except OSError:  # held, or a file system without locks, on which nobody knows
        os.close(descriptor)
        return None
    os.close(descriptor)
    return None


def _payload(content: bytes, at: int) -> bytes | None:
    """The payload of the frame at a byte; None where there is no whole one."""
    head = content[at : at + _HEADER.size]
    if len(head) < _HEADER.size:
        return None
    magic, length, payload_sum, head_sum = _HEADER.unpack(head)
    if magic != _MAGIC or zlib.crc32(head[:12]) != head_sum:
        return None
    payload = content[at + _HEADER.size : at + _HEADER.size + length]
    return payload if len(payload) == length and zlib.crc32(payload) == payload_sum else None


def _lock(descriptor: int, operation: int) -> None:
    try:
        fcntl.flock(descriptor, operation)
    except OSError as error:
        if error.errno not in (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL):
            raise
