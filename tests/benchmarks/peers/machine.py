"""What machine a measurement was made on, and how much of it others used meanwhile."""

from __future__ import annotations

import os
import platform
import time
from pathlib import Path

import psutil

BUSY_CORES = 0.15
"""Of others, above which a machine is called loaded."""


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
        if cores > BUSY_CORES:
            return f"**LOADED machine: others used {cores:.2f} cores meanwhile**"
        return f"quiet machine: others used {max(cores, 0.0):.2f} cores meanwhile"


class TreeLoad:
    """Processor time of a process and all that it starts, however they come and go, beside that of the machine.

    Look about once a second: what a process used after the last look before its end counts as others'.
    """

    def __init__(self, root: int) -> None:
        self._root = root
        self._start, self._all = time.monotonic(), _machine_seconds()
        self._used: dict[tuple[int, float], float] = {}

    def look(self) -> None:
        """Note what the tree's processes have used."""
        try:
            root = psutil.Process(self._root)
            tree = [root, *root.children(recursive=True)]
        except psutil.NoSuchProcess:
            return
        for process in tree:
            try:
                times = process.cpu_times()
                self._used[process.pid, process.create_time()] = times.user + times.system
            except psutil.NoSuchProcess:
                continue

    def tree_seconds(self) -> float:
        """Processor time of the tree up to the last look."""
        return sum(self._used.values())

    def others_cores(self) -> float:
        """Cores that all other processes have used since the start."""
        used = _machine_seconds() - self._all - self.tree_seconds()
        return max(0.0, used) / (time.monotonic() - self._start)


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
