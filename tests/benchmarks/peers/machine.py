"""What machine a measurement was made on, and how much of it others used meanwhile."""

from __future__ import annotations

import os
import platform
import time
from pathlib import Path

import psutil

_BUSY_CORES = 0.15


def describe() -> str:
    """Processor, cores, memory, interpreter."""
    models = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    model = models[0].split(":", 1)[1].strip() if models else platform.machine()
    memory = psutil.virtual_memory().total / 2**30
    return f"{model}, {os.cpu_count()} cores, {memory:.0f} GiB, Python {platform.python_version()}"


class Load:
    """Processor time that processes other than this one and its children took, from now on."""

    def __init__(self) -> None:
        self._start, self._all, self._ours = time.monotonic(), _machine_seconds(), _own_seconds()

    def others(self) -> str:
        """A sentence for the table; call it while the children still live."""
        passed = time.monotonic() - self._start
        cores = (_machine_seconds() - self._all - (_own_seconds() - self._ours)) / passed
        if cores > _BUSY_CORES:
            return f"**LOADED machine: others used {cores:.2f} cores meanwhile**"
        return f"quiet machine: others used {max(cores, 0.0):.2f} cores meanwhile"


def _machine_seconds() -> float:
    times = psutil.cpu_times()
    return times.user + times.nice + times.system + times.irq + times.softirq + times.steal


def _own_seconds() -> float:
    me = psutil.Process()
    total = 0.0
    for process in (me, *me.children(recursive=True)):
        try:
            used = process.cpu_times()
        except psutil.NoSuchProcess:
            continue
        total += used.user + used.system
    return total
