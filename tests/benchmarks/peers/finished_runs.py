"""Runs that a benchmark need not make again: what was ordered, with which version, and what came of it."""

from __future__ import annotations

import argparse
import functools
import hashlib
import json
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from peers.environments import LEARNERS

_ROOT = Path(__file__).resolve().parents[3]


class FinishedRuns:
    """Kept in a JSON file by what they were ordered to do; written after each one, so that none is lost to Ctrl-C."""

    def __init__(self, path: Path, *, fresh: bool = False) -> None:
        """Open the file; ``fresh`` forgets what is in it."""
        self._path = path
        if fresh:
            path.unlink(missing_ok=True)
        self._done: dict[str, dict[str, Any]] = json.loads(path.read_text()) if path.exists() else {}
        self._in_use = threading.Lock()

    def take(self, spec: dict[str, Any], make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """What was found of ``spec``, made now where it was not before; ``spec`` itself and the time are in it.

        Threads may make several at a time.
        """
        key = hashlib.sha256(json.dumps(spec, sort_keys=True).encode()).hexdigest()[:16]
        if key not in self._done:
            made = {**spec, **make(), "at": time.strftime("%F %T")}
            with self._in_use:
                self._done[key] = made
                self._path.parent.mkdir(parents=True, exist_ok=True)
                part = self._path.with_suffix(".part")
                part.write_text(json.dumps(self._done, indent=1))
                part.replace(self._path)
        return self._done[key]


def add_options(parser: argparse.ArgumentParser, name: str) -> None:
    """``--fresh``, ``--peers-folder`` and ``--cells``, whose file is called ``name`` in that folder."""
    parser.add_argument("--fresh", action="store_true", help="forget finished runs")
    parser.add_argument("--peers-folder", type=Path, default=Path("~/.cache/onibi-benchmarks").expanduser())
    parser.add_argument("--cells", type=Path, help=f"finished runs; {name} in --peers-folder")
    parser.set_defaults(cells_name=name)


def finished_runs(arguments: argparse.Namespace) -> FinishedRuns:
    """Those that the options of ``add_options`` speak of."""
    return FinishedRuns(arguments.cells or arguments.peers_folder / arguments.cells_name, fresh=arguments.fresh)


def version_of(system: str) -> str:
    """What a finished run was made with: of Onibi its commit."""
    return _commit() if system == "onibi" else LEARNERS[system].title


@functools.cache
def _commit() -> str:
    command = ["git", "describe", "--always", "--dirty", "--abbrev=12"]
    found = subprocess.run(command, cwd=_ROOT, capture_output=True, text=True, check=False)
    return found.stdout.strip() or "unknown"
