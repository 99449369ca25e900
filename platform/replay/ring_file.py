"""The ring's file: where each word lies, how its memory is reserved and mapped, and which files nobody owns any more.

Layout (little-endian, every array 64-byte aligned, every column page-aligned)::

    preamble   magic, format version, file bytes, header bytes, groups, lanes per group, slots, window rows,
               owner pid, creation time, run id length, schema length, CRC-32 of all before, run id, Arrow schema message
    words      writing[G] committed[G]                                commit words, one 8-byte store each
               cursor[2, L] oldest[2, L] open[2, L]                   two records per group, used in turn
               incarnation[2, G] sequence[2, G] inserted[2, G]
    columns    one buffer [L, slots, ...] per column, usable as an Arrow buffer as it stands

L = G groups × lanes per group; lane = group × lanes_per_group + env.
"""

from __future__ import annotations

import fcntl
import logging
import mmap
import os
import struct
import time
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from onibi.platform.errors import OnibiError, ReplayError
from onibi.platform.replay.schema import arrow_schema, ring_columns, spec_from_arrow
from onibi.platform.spec import ReplaySpec

log = logging.getLogger(__name__)

RING_SUFFIX = ".ring"
"""How ring files end; ``orphans`` looks at these."""
UNFINISHED_SUFFIX = ".ring.new"
"""How a ring is named until its header is complete."""

_MAGIC = b"ONIBIRNG"
_FORMAT_VERSION = 1
_PREAMBLE = struct.Struct("<8s11qI4x")
_OWNER_FIELD, _OWNER_OFFSET = 8, 64
_LINE, _PAGE = 64, mmap.PAGESIZE
_MIB = 2**20


@dataclass(frozen=True, kw_only=True)
class RingLayout:
    """What a ring file holds, and with it where everything lies.

    ``window_rows`` is the longest reach of a draw in rows (look-back + n): with the fragments' length it bounds ``slots``.
    """

    spec: ReplaySpec
    groups: int
    lanes_per_group: int
    slots: int
    window_rows: int
    run_id: str

    def __post_init__(self) -> None:
        for name in ("groups", "lanes_per_group", "slots", "window_rows"):
            if getattr(self, name) < 1:
                raise ReplayError(f"ring: {name} is {getattr(self, name)}, it must be at least 1")
        if self.slots < smallest_slots(0, self.window_rows):
            raise ReplayError(
                f"ring: {self.slots} slots per lane are fewer than 4 x (1 head row + {self.window_rows} window rows) = "
                f"{smallest_slots(0, self.window_rows)}; raise replay.capacity_rows or lower the number of environments"
            )

    @property
    def lanes(self) -> int:
        """L."""
        return self.groups * self.lanes_per_group

    @property
    def identity_bytes(self) -> bytes:
        """Run id and Arrow schema, as they follow the preamble."""
        return self.run_id.encode() + self.schema_message

    @property
    def schema_message(self) -> bytes:
        """The row's Arrow schema as an IPC message."""
        return bytes(arrow_schema(self.spec).serialize())

    @property
    def word_shapes(self) -> dict[str, tuple[int, ...]]:
        """The int64 arrays of the header, in file order."""
        per_group, per_lane = (2, self.groups), (2, self.lanes)
        return {
            "writing": (self.groups,),
            "committed": (self.groups,),
            "cursor": per_lane,
            "oldest": per_lane,
            "open": per_lane,
            "incarnation": per_group,
            "sequence": per_group,
            "inserted": per_group,
        }

    def offsets(self) -> tuple[dict[str, int], dict[str, int], int]:
        """Byte offsets of the words, of the columns, and the file's size."""
        position = _aligned(_PREAMBLE.size + len(self.identity_bytes), _LINE)
        words = {}
        for name, shape in self.word_shapes.items():
            words[name] = position
            position = _aligned(position + 8 * int(np.prod(shape)), _LINE)
        columns = {}
        for column in ring_columns(self.spec):
            position = _aligned(position, _PAGE)
            columns[column.name] = position
            position += self.lanes * self.slots * column.row_bytes
        return words, columns, _aligned(position, _PAGE)

    def preamble(self, owner_pid: int, created_unix_ns: int) -> bytes:
        """The first bytes of the file."""
        words, _, size = self.offsets()
        head = (_FORMAT_VERSION, size, words["writing"], self.groups, self.lanes_per_group, self.slots, self.window_rows)
        lengths = (owner_pid, created_unix_ns, len(self.run_id.encode()), len(self.schema_message))
        crc = _checksum((_MAGIC, *head, *lengths), self.identity_bytes)
        return _PREAMBLE.pack(_MAGIC, *head, *lengths, crc) + self.identity_bytes


@dataclass(frozen=True, kw_only=True)
class RingHeader:
    """What a ring file's preamble says."""

    layout: RingLayout
    owner_pid: int
    created_unix_ns: int


class MappedRing:
    """A ring's memory: header words as int64 views and columns as ``[lanes × slots, ...]`` views of the mapped file."""

    def __init__(self, path: Path, layout: RingLayout, *, writable: bool) -> None:
        self.path, self.layout = path, layout
        words, columns, size = layout.offsets()
        access = mmap.PROT_READ | (mmap.PROT_WRITE if writable else 0)
        # MAP_POPULATE: without it the first lap through the ring faults page by page, several times slower.
        descriptor = os.open(path, (os.O_RDWR if writable else os.O_RDONLY) | os.O_CLOEXEC)
        try:
            memory = mmap.mmap(descriptor, size, flags=mmap.MAP_SHARED | mmap.MAP_POPULATE, prot=access)
        finally:
            os.close(descriptor)
        self.words: dict[str, NDArray[np.int64]] = {}
        for name, shape in layout.word_shapes.items():
            view = np.frombuffer(memory, np.dtype("<i8"), int(np.prod(shape)), words[name]).reshape(shape)
            if view.ctypes.data % 8:
                raise ReplayError(f"{path}: header word {name!r} is not 8-byte aligned in memory; stores to it could tear")
            self.words[name] = view
        self.columns: dict[str, NDArray[Any]] = {}
        for column in ring_columns(layout.spec):
            count = layout.lanes * layout.slots * int(np.prod(column.shape, dtype=np.int64))
            flat = np.frombuffer(memory, np.dtype(column.dtype), count, columns[column.name])
            self.columns[column.name] = flat.reshape(layout.lanes * layout.slots, *column.shape)

    def release(self) -> None:
        """Drop the views; the memory is unmapped when the last array that was handed out is gone."""
        self.words, self.columns = {}, {}


def smallest_slots(fragment_rows: int, window_rows: int) -> int:
    """Fewest slots per lane for fragments of ``fragment_rows`` committed rows a lane: 4 × (rows + head + window rows)."""
    return 4 * (fragment_rows + 1 + window_rows)


def create_ring_file(path: Path, layout: RingLayout) -> int:
    """Reserve the memory, write the header, and give the file its name only then.

    Returns: the locked descriptor (``lock_ring``), owned by the caller.
    Raises: ReplayError where the file exists or the memory is not there; nothing is left behind then.
    """
    size = layout.offsets()[2]
    if path.suffix != RING_SUFFIX:
        raise ReplayError(f"{path}: a ring file's name ends in {RING_SUFFIX!r}; choose such a path")
    if path.exists():
        raise ReplayError(
            f"{path} exists already. Reopen it to go on with its rows, or remove it: `onibi doctor` lists rings without an owner"
        )
    unfinished = path.with_name(path.stem + UNFINISHED_SUFFIX)
    try:
        descriptor = os.open(unfinished, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except FileExistsError:
        raise ReplayError(f"{unfinished} exists: another process creates this ring now, or died at it; remove it then") from None
    except OSError as error:
        raise ReplayError(f"{unfinished} cannot be created: {error}; set replay.folder to a folder that can be written") from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        _reserve(descriptor, path, layout, size)
        os.pwrite(descriptor, layout.preamble(os.getpid(), time.time_ns()), 0)
        os.rename(unfinished, path)
    except BaseException:
        os.close(descriptor)
        unfinished.unlink(missing_ok=True)
        raise
    return descriptor


def _reserve(descriptor: int, path: Path, layout: RingLayout, size: int) -> None:
    free = _free_bytes(path.parent)
    sums = (
        f"{layout.lanes} lanes x {layout.slots} slots x {layout.spec.row_bytes} bytes a row + header = {size / _MIB:,.1f} MiB, "
        f"free in {path.parent} are {free / _MIB:,.1f} MiB"
    )
    remedy = "Lower replay.capacity_rows, or enlarge the folder's memory (docker run --shm-size=...)"
    if size > free:
        raise ReplayError(f"too little shared memory for the replay ring: {sums}. {remedy}")
    try:
        # ftruncate alone would succeed on a full tmpfs and die later of SIGBUS, without a Python error.
        os.posix_fallocate(descriptor, 0, size)
    except OSError as error:
        raise ReplayError(f"too little shared memory for the replay ring ({error.strerror}): {sums}. {remedy}") from error


def _free_bytes(folder: Path) -> int:
    status = os.statvfs(folder)
    return status.f_bavail * status.f_frsize


def lock_ring(path: Path, wait_seconds: float = 1.0) -> int:
    """Take the writer's lock on a descriptor of its own: a mapping's would keep the lock alive in forked children.

    Returns: the descriptor; closing it, or the death of the process, frees the lock.
    Raises: ReplayError where another process holds it for longer than ``wait_seconds`` (``orphans`` holds it for an instant).
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    deadline = time.monotonic() + wait_seconds
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return descriptor
        except BlockingIOError:
            if time.monotonic() > deadline:
                os.close(descriptor)
                raise ReplayError(
                    f"{path}: another process writes this ring (pid {read_header(path).owner_pid} opened it last). "
                    "A ring has one writer; end that process or use another run name"
                ) from None
            time.sleep(0.01)


def read_header(path: Path) -> RingHeader:
    """Read and check a ring's preamble without mapping the file.

    Raises: ReplayError for a missing, foreign, older, damaged or cut-off file.
    """
    try:
        with path.open("rb") as file:
            head = file.read(_PREAMBLE.size)
            if len(head) < _PREAMBLE.size or not head.startswith(_MAGIC):
                raise ReplayError(
                    f"{path} is not a replay ring: it begins with {head[:8]!r}, a ring with {_MAGIC!r}. Give the path of a {RING_SUFFIX} file"
                )
            _, version, size, words, groups, lanes, slots, window, pid, created, run_length, schema_length, crc = _PREAMBLE.unpack(head)
            if version != _FORMAT_VERSION:
                raise ReplayError(
                    f"{path} has ring format {version}, this version of Onibi reads {_FORMAT_VERSION}; start a new ring"
                )
            length = run_length + schema_length
            found = os.fstat(file.fileno()).st_size
            identity = file.read(length) if 0 <= length <= found else b""
    except OSError as error:
        raise ReplayError(f"{path} cannot be read: {error.strerror}; has the run's shard been started?") from error
    damaged = f"{path}: the header is damaged"
    if _checksum(_PREAMBLE.unpack(head)[:-1], identity) != crc:
        raise ReplayError(f"{damaged} (its checksum differs). Remove the file; its rows cannot be trusted")
    try:
        spec = spec_from_arrow(pa.ipc.read_schema(pa.py_buffer(identity[run_length:])))
        run_id = identity[:run_length].decode()
        layout = RingLayout(
            spec=spec, groups=groups, lanes_per_group=lanes, slots=slots, window_rows=window, run_id=run_id
        )
    except (OnibiError, pa.ArrowInvalid, UnicodeDecodeError, KeyError) as error:
        raise ReplayError(f"{damaged}: {error}") from error
    offsets, _, expected = layout.offsets()
    if size != expected or words != offsets["writing"]:
        raise ReplayError(f"{damaged}: it says {size} bytes, its columns make {expected}; remove the file")
    if found != size:  # checked before mapping: reading behind a file's end is SIGBUS, not an exception
        raise ReplayError(f"{path} is cut off: {found} bytes, its header says {size}. Remove the file")
    return RingHeader(layout=layout, owner_pid=pid, created_unix_ns=created)


def write_owner(path: Path) -> None:
    """Write this process as the owner into the preamble; only for the holder of the lock."""
    descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        os.pwrite(descriptor, struct.pack("<q", os.getpid()), _OWNER_OFFSET)
    finally:
        os.close(descriptor)


def _checksum(fields: tuple[Any, ...], identity: bytes) -> int:
    """CRC-32 of the preamble without its owner, which changes while others read."""
    return zlib.crc32(_PREAMBLE.pack(*fields[:_OWNER_FIELD], 0, *fields[_OWNER_FIELD + 1 :], 0) + identity)


@dataclass(frozen=True, kw_only=True)
class OrphanRing:
    """A ring file that no process writes. ``run_id`` is None and ``owner_pid`` 0 where the header cannot be read."""

    path: Path
    bytes: int
    run_id: str | None
    owner_pid: int
    created_unix_ns: int


def orphans(folder: Path) -> list[OrphanRing]:
    """Ring files in ``folder`` whose writer is gone, by name. Foreign and damaged files of that name are listed, too."""
    found = []
    for path in sorted([*folder.glob(f"*{RING_SUFFIX}"), *folder.glob(f"*{UNFINISHED_SUFFIX}")]):
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            continue  # removed meanwhile, or another user's
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
            size = os.fstat(descriptor).st_size
        except BlockingIOError:
            continue  # it has a living writer
        finally:
            os.close(descriptor)
        try:
            header = read_header(path)
        except ReplayError:
            found.append(OrphanRing(path=path, bytes=size, run_id=None, owner_pid=0, created_unix_ns=0))
            continue
        found.append(
            OrphanRing(
                path=path,
                bytes=size,
                run_id=header.layout.run_id,
                owner_pid=header.owner_pid,
                created_unix_ns=header.created_unix_ns,
            )
        )
    return found


def remove_orphan(orphan: OrphanRing) -> bool:
    """Remove a ring and its drawn word if still nobody writes it. Returns: whether it was removed."""
    try:
        descriptor = lock_ring(orphan.path, wait_seconds=0)
    except (ReplayError, FileNotFoundError):
        return False
    try:
        remove_ring(orphan.path)
    finally:
        os.close(descriptor)
    return True


def remove_ring(path: Path) -> None:
    """Remove a ring's files; the memory is freed when the last process has unmapped it."""
    path.unlink(missing_ok=True)
    drawn_path(path).unlink(missing_ok=True)


def drawn_path(ring_path: Path) -> Path:
    """Where the learner's drawn word of a ring lies."""
    return ring_path.with_name(ring_path.name + ".drawn")


def _aligned(position: int, alignment: int) -> int:
    return -(-position // alignment) * alignment
