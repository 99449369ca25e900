"""What the control groups of this process may still take: in a container often less than the machine has.

Shared memory counts against the group of the process that touches it first, so a ring beyond the limit ends in a kill.
"""

from __future__ import annotations

from pathlib import Path, PurePosixPath

GROUPS = Path("/sys/fs/cgroup")
OWN_GROUPS = Path("/proc/self/cgroup")
_V1 = "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"
_V2 = "memory.max", "memory.current", "inactive_file"


def headroom_bytes() -> int | None:
    """The least that any of the process's memory groups has left; None where none is limited or the system does not
    tell. Page cache that can be dropped counts as free.
    """
    found = [left for folder, names in _groups() if (left := _left(folder, *names)) is not None]
    return min(found, default=None)


def _groups() -> list[tuple[Path, tuple[str, str, str]]]:
    """Folders that may hold a limit: each group of this process and those above it. In a container the path that the
    system tells may be the host's; the root is the container's own group then.
    """
    try:
        lines = OWN_GROUPS.read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    found = []
    for line in [*lines, "0::/", "0:memory:/"]:  # "4:memory:/a/group" of version 1, "0::/a/group" of version 2
        _, controllers, group = line.split(":", 2)
        path = PurePosixPath(group)
        folders = [each.relative_to("/") for each in (path, *path.parents)]
        if "memory" in controllers.split(","):
            found += [(GROUPS / "memory" / each, _V1) for each in folders]
        elif not controllers:
            found += [(GROUPS / each, _V2) for each in folders]
    return found


def _left(folder: Path, limit: str, usage: str, cache: str) -> int | None:
    """Bytes that one group has left, 0 at least; None where it does not say or has no limit ("max")."""
    try:
        most = int((folder / limit).read_text(encoding="ascii"))
        used = int((folder / usage).read_text(encoding="ascii"))
        told = dict(line.split() for line in (folder / "memory.stat").read_text(encoding="ascii").splitlines())
    except (OSError, ValueError):
        return None
    return max(0, most - used + int(told.get(cache, 0)))
