"""A process that measures one contender whenever it is told to: ``python -m peers.worker NAME FD``.

It speaks lines of JSON over the socket FD: first ``{"cases": [...], "wrong": {...}}`` or ``{"error": ...}``; then for
each ``{"case": ..., "seconds": ...}`` one ``{"rows": ..., "calls": ..., "seconds": ...}``. It ends with the
socket.
"""

from __future__ import annotations

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
    try:
        contender: Contender = importlib.import_module(f"peers.{name}").prepare(order["rows"], Path(order["folder"]))
    except Exception:  # noqa: BLE001 - whatever it is, the table shows it
        say({"error": traceback.format_exc(limit=-3)})
        return
    say({"cases": list(contender.cases), "wrong": contender.wrong})
    while line := stream.readline():
        order = json.loads(line)
        try:
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
