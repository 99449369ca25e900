"""The ring's file: how its memory is reserved, locked and mapped, and which files nobody owns any more."""

from __future__ import annotations

import fcntl
import mmap
import os
import struct
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onibi.platform.errors import ReplayError
from onibi.platform.replay.ring.folder import free_bytes, in_memory, remedy, room, warn_of_disk
from onibi.platform.replay.ring.huge_pages import join_pages, map_in_step
from onibi.platform.replay.ring.layout import OWNER_OFFSET, RingLayout, current_boot, read_header
from onibi.platform.replay.ring.state_ring import StateRing
from onibi.platform.replay.schema import ring_columns

RING_SUFFIX = ".ring"
_MEETING = ".learners-"
"""How ring files end; ``orphans`` looks at these."""
UNFINISHED_SUFFIX = ".ring.new"
"""How a ring is named until its header is complete."""

_MIB = 2**20


class MappedRing:
    """A ring's memory, as views of the mapped file: words int64, columns ``[lanes × slots, ...]``, states' rings."""

    def __init__(self, path: Path, layout: RingLayout, *, writable: bool) -> None:
        self.path, self.layout = path, layout
        offsets = layout.offsets()
        size = offsets.file_bytes
        access = mmap.PROT_READ | (mmap.PROT_WRITE if writable else 0)
        self.in_memory = in_memory(path)
        descriptor = os.open(path, (os.O_RDWR if writable else os.O_RDONLY) | os.O_CLOEXEC)
        try:
            if self.in_memory:
                # MAP_POPULATE: without it the first lap through the ring faults page by page, several times slower.
                memory, begin = map_in_step(descriptor, size, mmap.MAP_SHARED | mmap.MAP_POPULATE, access)
            else:  # populating would read the whole file, which is here because it is larger than memory
                memory, begin = mmap.mmap(descriptor, size, flags=mmap.MAP_SHARED, prot=access), 0
        finally:
            os.close(descriptor)
        if not self.in_memory and not writable:
            memory.madvise(mmap.MADV_RANDOM)  # draws are: read-ahead would bring 32 pages for each that is wanted
        self.words: dict[str, NDArray[np.int64]] = {}
        for name, shape in layout.word_shapes.items():
            view = np.frombuffer(memory, np.dtype("<i8"), int(np.prod(shape)), begin + offsets.words[name]).reshape(
                shape
            )
            if view.ctypes.data % 8:
                raise ReplayError(
                    f"{path}: header word {name!r} is not 8-byte aligned in memory; stores to it could tear"
                )
            self.words[name] = view
        self.columns: dict[str, NDArray[Any]] = {}
        for column in ring_columns(layout.spec):
            count = layout.lanes * layout.slots * int(np.prod(column.shape, dtype=np.int64))
            flat = np.frombuffer(memory, np.dtype(column.dtype), count, begin + offsets.columns[column.name])
            self.columns[column.name] = flat.reshape(layout.lanes * layout.slots, *column.shape)
        self.states: dict[str, StateRing] = {}
        for state in layout.spec.states:
            shape = layout.lanes, layout.state_entries[state.name]
            kept_at, values_at = offsets.states[state.name]
            count = int(np.prod(shape + state.shape, dtype=np.int64))
            kept = np.frombuffer(memory, np.dtype("<i8"), int(np.prod(shape)), begin + kept_at).reshape(shape)
            values = np.frombuffer(memory, np.dtype(state.dtype), count, begin + values_at)
            self.states[state.name] = StateRing(state, kept, values.reshape(shape + state.shape))

    def release(self) -> None:
        """Drop the views; the memory is unmapped when the last array that was handed out is gone."""
        self.words, self.columns, self.states = {}, {}, {}


Fill = Callable[[MappedRing], None]
"""Puts rows into a ring that is being created."""


def create_ring_file(path: Path, layout: RingLayout, fill: Fill | None = None) -> int:
    """Reserve the memory, let ``fill`` put rows into it, write the header, and give the file its name only then.

    Returns: the locked descriptor (``lock_ring``), owned by the caller.
    Raises: ReplayError where the file exists or the memory is not there, and what ``fill`` raises; nothing is left
        behind then.
    """
    size = layout.offsets().file_bytes
    if path.suffix != RING_SUFFIX:
        raise ReplayError(f"{path}: a ring file's name ends in {RING_SUFFIX!r}; choose such a path")
    if path.exists():
        raise _exists(path)
    unfinished = path.with_name(path.stem + UNFINISHED_SUFFIX)
    try:
        descriptor = os.open(unfinished, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except FileExistsError:
        raise ReplayError(
            f"{unfinished} exists: another process creates this ring now, or died at it; remove it then"
        ) from None
    except OSError as error:
        raise ReplayError(
            f"{unfinished} cannot be created: {error}; set replay.folder to a folder that can be written"
        ) from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)  # `orphans` may hold it for an instant
        if path.exists():  # asked again, as whoever else made it had this unfinished file until then
            raise _exists(path)
        _reserve(descriptor, path, layout, size)
        if fill is not None:  # before the header: whoever is killed here leaves what nobody takes for a ring
            ring = MappedRing(unfinished, layout, writable=True)
            try:
                fill(ring)
            finally:
                ring.release()
        os.pwrite(descriptor, layout.preamble(os.getpid(), time.time_ns(), current_boot()), 0)
        unfinished.rename(path)
    except BaseException:
        os.close(descriptor)
        unfinished.unlink(missing_ok=True)
        raise
    return descriptor


def _exists(path: Path) -> ReplayError:
    return ReplayError(
        f"{path} exists already. Reopen it to go on with its rows, or remove it: `onibi doctor` lists rings without an "
        "owner"
    )


def _reserve(descriptor: int, path: Path, layout: RingLayout, size: int) -> None:
    free = free_bytes(path.parent)
    sums = (
        f"{layout.lanes} lanes x {layout.slots} slots x {layout.spec.row_bytes} bytes a row + header and states = "
        f"{size / _MIB:,.1f} MiB, "
        f"free in {path.parent} are {free / _MIB:,.1f} MiB"
    )
    missing = f"too little {room(path.parent)} for the replay ring"
    if size > free:
        raise ReplayError(f"{missing}: {sums}. {remedy(path.parent)}")
    if in_memory(path.parent):
        join_pages(descriptor, size)
    try:
        # ftruncate alone would succeed on a full tmpfs and die later of SIGBUS, without a Python error.
        os.posix_fallocate(descriptor, 0, size)
    except OSError as error:
        raise ReplayError(f"{missing} ({error.strerror}): {sums}. {remedy(path.parent)}") from error
    warn_of_disk(path, size)


def lock_ring(path: Path, wait_seconds: float = 5.0) -> int:
    """Take the writer's lock on a descriptor of its own: a mapping's would keep the lock alive in forked children.

    Returns: the descriptor; closing it, or the death of the process, frees the lock.
    Raises: ReplayError where another process holds it for longer than ``wait_seconds`` (``orphans`` holds it for an
    instant, one that was killed until its memory is taken down).
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


def write_owner(path: Path) -> None:
    """Write this process as the owner into the preamble; only for the holder of the lock."""
    descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        os.pwrite(descriptor, struct.pack("<q", os.getpid()), OWNER_OFFSET)
    finally:
        os.close(descriptor)


def may_lack_rows(path: Path) -> bool:
    """Whether the machine was started anew since a ring on a disk was made.

    Mapped pages reach a disk in any order, so after a loss of power rows may be missing although their commit is there.
    A ring in memory is gone then.

    Raises: ReplayError as ``read_header``.
    """
    return not in_memory(path) and read_header(path).boot != current_boot()


@dataclass(frozen=True, kw_only=True)
class OrphanRing:
    """A ring file that no process writes. ``run_id`` is None and ``owner_pid`` 0 where the header cannot be read."""

    path: Path
    bytes: int
    run_id: str | None
    owner_pid: int
    created_unix_ns: int


def orphans(folder: Path) -> list[OrphanRing]:
    """Ring files in ``folder`` whose writer is gone, by name; also foreign and damaged files of that name."""
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
    for meeting in path.parent.glob(f"{path.name}{_MEETING}*"):
        meeting.unlink(missing_ok=True)


def meeting_path(ring_path: Path, incarnation: int) -> Path:
    """The file by which several learners of a ring find each other."""
    return ring_path.with_name(f"{ring_path.name}{_MEETING}{incarnation}")


def drawn_path(ring_path: Path) -> Path:
    """Where the learner's drawn word of a ring lies."""
    return ring_path.with_name(ring_path.name + ".drawn")
