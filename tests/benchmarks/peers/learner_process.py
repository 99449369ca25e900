"""One measured run of a whole training loop in a process of its own, as the benchmark sees it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import tempfile
import time
from dataclasses import asdict
from pathlib import Path

from peers.child_environment import child_environment
from peers.learner_cell import Measured, Order
from peers.machine import TreeLoad

HERE = Path(__file__).resolve().parents[1]
_START_SECONDS = 120.0  # processes, imports, the first rows


class CellError(Exception):
    """A run failed; the message is its last words."""


def run_cell(python: Path, module: str, order: Order) -> tuple[Measured, float]:
    """Run ``python -m peers.MODULE`` on the order, and end all that it left.

    Returns: what it measured, and how many cores other processes used meanwhile.

    Raises: CellError.
    """
    with tempfile.TemporaryDirectory(prefix="onibi-benchmark-") as folder, child_environment(python) as environment:
        told, answer, log = (Path(folder) / name for name in ("order.json", "answer.json", "log"))
        told.write_text(json.dumps(asdict(order)))
        with log.open("wb") as log_file:
            process = subprocess.Popen(
                [python, "-m", f"peers.{module}", str(told), str(answer)],
                cwd=HERE,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log_file,
                stderr=log_file,
                start_new_session=True,
            )
        limit = _START_SECONDS + order.warm_seconds + order.seconds
        load, end = TreeLoad(process.pid), time.monotonic() + limit
        try:
            while process.poll() is None and time.monotonic() < end:
                load.look()
                time.sleep(0.5)
        finally:
            _end_group(process)
        if not answer.exists():
            words = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
            raise CellError(words[-1][-300:] if words else f"gave no figures in {limit:.0f} s, and no word")
        return Measured(**json.loads(answer.read_text())), load.others_cores()


def _end_group(process: subprocess.Popen[bytes]) -> None:
    """What is left of its session is ended, kindly at first: nobody else is in the group."""
    for sign, patience in ((signal.SIGTERM, 10.0), (signal.SIGKILL, 10.0)):
        try:
            os.killpg(process.pid, sign)
        except ProcessLookupError:
            break
        end = time.monotonic() + patience
        while time.monotonic() < end and _group_lives(process):
            time.sleep(0.1)
    process.wait()


def _group_lives(process: subprocess.Popen[bytes]) -> bool:
    process.poll()  # a zombie would keep the group
    try:
        os.killpg(process.pid, 0)
    except ProcessLookupError:
        return False
    return True
