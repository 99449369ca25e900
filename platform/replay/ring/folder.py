"""What kind of folder a ring lies in: memory, or a disk whose files are mapped (spill)."""

from __future__ import annotations

import logging
import os
from pathlib import Path

from onibi.platform.replay.ring.memory_limit import headroom_bytes

log = logging.getLogger(__name__)

_MEMORY_FILE_SYSTEMS = {"tmpfs", "ramfs", "hugetlbfs", "devtmpfs"}
_MIB = 2**20


def in_memory(path: Path) -> bool:
    """Whether a file or folder lies on a memory file system; False also where the system does not tell."""
    device = path.stat().st_dev
    number = f"{os.major(device)}:{os.minor(device)}"
    try:
        mounts = Path("/proc/self/mountinfo").read_text(encoding="utf-8")
    except OSError:
        return False
    for line in mounts.splitlines():
        # "36 35 98:0 /root /mount/point options [tags] - type source super-options"
        before, _, after = line.partition(" - ")
        if before.split()[2] == number:
            return after.split()[0] in _MEMORY_FILE_SYSTEMS
    return False


def free_bytes(folder: Path) -> int:
    """Bytes that a process may still reserve in a folder; in memory no more than its memory limit leaves."""
    status = os.statvfs(folder)
    free = status.f_bavail * status.f_frsize
    return _within_limit(free) if in_memory(folder) else free


def available_memory_bytes() -> int:
    """What the machine, or this process's memory limit, can still give without swapping: for page cache, too; 0 where
    the system does not tell.
    """
    try:
        lines = Path("/proc/meminfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return 0
    found = [int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")]
    return _within_limit(found[0]) if found else 0


def _within_limit(free: int) -> int:
    left = headroom_bytes()
    return free if left is None else min(free, left)


def room(folder: Path) -> str:
    """What a folder's room is called in messages."""
    return "shared memory" if in_memory(folder) else "disk space"


def remedy(folder: Path) -> str:
    """What to do where a folder is too small for a ring."""
    if in_memory(folder):
        return (
            "Lower replay.capacity_rows, enlarge the folder's memory (docker run --shm-size=...) and the container's "
            "memory limit where it has one (--memory=...), or set replay.folder to a folder on a disk"
        )
    return "Lower replay.capacity_rows, or set replay.folder to a folder on a larger disk"


def warn_of_disk(path: Path, ring_bytes: int) -> None:
    """Say what a ring on a disk costs; silent for one in memory."""
    if in_memory(path.parent):
        return
    memory = available_memory_bytes()
    log.warning(
        "%s lies on a disk: its %.0f MiB are cached as far as memory goes (now %.0f MiB). What does not fit is read "
        "from the disk at each draw, and every row is written to it. Set replay.folder to /dev/shm if it fits there",
        path,
        ring_bytes / _MIB,
        memory / _MIB,
    )
