"""A process that measures one contender whenever it is told to: ``python -m peers.worker NAME FD``.

It speaks lines of JSON over the socket FD: first ``{"cases": [...], "wrong": {...}}`` or ``{"error": ...}``; then for
each ``{"case": ..., "seconds": ..., "fresh": ...}`` one ``{"rows": ..., "calls": ..., "seconds": ...}``.
It ends when the socket does.
"""

from __future__ import annotations

import ctypes
import importlib
import json
import os
import socket
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

BATCH = 256
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h


@dataclass(frozen=True)
class Case:
    """One thing to measure: ``call`` makes one batch or inserts one fragment, and returns its rows."""

    call: Callable[[], int]
    warm_calls: int = 2
    """Calls before the clock starts: caches, and what a peer has fetched in advance."""
    settle_seconds: float = 0.0
    """How long threads in the background may work on after a measurement before another contender is measured."""
    before: Callable[[], None] = field(default=lambda: None)


@dataclass(frozen=True)
class Contender:
    """What a contender's module returns from ``prepare``."""

    cases: dict[str, Case]
    wrong: dict[str, list[str]]
    """What the check of one batch of each case found: [] where every transition was right."""
    close: Callable[[], None] = field(default=lambda: None)


def set_allocator(*, fresh: bool) -> None:
    """What glibc does with the megabytes of a batch that is let go of.

    It keeps them once anything larger has been freed in the process, as in a learner with a network, and as while these
    stores were filled: the next batch finds its pages in place. In a process that does nothing but sample it hands them
    back to the system, and each batch is paid for in page faults: that is ``fresh``.
    """
    libc = ctypes.CDLL(None)
    libc.mallopt(_M_MMAP_THRESHOLD, 128 << 10 if fresh else 32 << 20)
    libc.mallopt(_M_TRIM_THRESHOLD, 128 << 10 if fresh else 1 << 30)


def measure(case: Case, seconds: float) -> dict[str, float]:
    """Call it for so long, at least once."""
    case.before()
    for _ in range(case.warm_calls):
        case.call()
    rows = calls = 0
    begin = time.perf_counter()
    while (passed := time.perf_counter() - begin) < seconds or not calls:
        rows += case.call()
        calls += 1
    time.sleep(case.settle_seconds)
    return {"rows": rows, "calls": calls, "seconds": passed}


def main() -> None:
    """Prepare, report, measure until the other end closes."""
    name, stream = sys.argv[1], socket.socket(fileno=int(sys.argv[2])).makefile("rw")

    def say(answer: dict) -> None:
        stream.write(json.dumps(answer) + "\n")
        stream.flush()

    order = json.loads(stream.readline())
    set_allocator(fresh=True)  # else the holes that filling leaves in the heap would serve every batch
    try:
        contender: Contender = importlib.import_module(f"peers.{name}").prepare(order["rows"], Path(order["folder"]))
    except Exception:  # noqa: BLE001 - whatever it is, the table shows it
        say({"error": traceback.format_exc(limit=-3)})
        return
    say({"cases": list(contender.cases), "wrong": contender.wrong})
    while line := stream.readline():
        order = json.loads(line)
        try:
            set_allocator(fresh=order["fresh"])
            say(measure(contender.cases[order["case"]], order["seconds"]))
        except BrokenPipeError:
            break
        except Exception:  # noqa: BLE001
            say({"error": traceback.format_exc(limit=-3)})
    contender.close()
    # Servers and pools of some peers wait in their destructors for threads that no longer answer.
    os._exit(0)


if __name__ == "__main__":
    main()
