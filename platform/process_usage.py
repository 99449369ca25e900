"""How much processor time and memory a process has used: the raw material of a run's profile."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class ProcessUsage:
    """Of one process, since its start. ``spent_seconds`` splits the wall time of its loop by what it was doing."""

    pid: int
    cpu_seconds: float  # user and system, all threads
    resident_bytes: int
    spent_seconds: dict[str, float]


def process_usage(spent_seconds: dict[str, float] | None = None) -> ProcessUsage:
    """Usage of the calling process."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return ProcessUsage(os.getpid(), time.process_time(), pages * os.sysconf("SC_PAGE_SIZE"), spent_seconds or {})
