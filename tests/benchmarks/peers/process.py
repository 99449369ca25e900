"""A contender's worker process, seen from the benchmark."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
from pathlib import Path

from peers.child_environment import one_thread_environment

HERE = Path(__file__).resolve().parents[1]
_PREPARE_SECONDS = 600.0
_ROUND_SECONDS = 120.0


class WorkerError(Exception):
    """A worker ended or answered with a traceback."""


class WorkerProcess:
    """One worker; ``begin`` does not wait, so that none is measured while another one still prepares: call ``ready``.

    It stands in a session of its own: Ctrl-C reaches the benchmark alone, which then ends its workers.
    """

    def __init__(self, python: Path, module: str, rows: int, folder: Path, log_path: Path) -> None:
        ours, theirs = socket.socketpair()
        environment = one_thread_environment()
        self._log_path = log_path
        with log_path.open("wb") as log_file:
            self._process = subprocess.Popen(
                [python, "-m", "peers.worker", module, str(theirs.fileno())],
                cwd=HERE,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log_file,
                stderr=log_file,
                pass_fds=[theirs.fileno()],
                start_new_session=True,
            )
        theirs.close()
        self._socket = ours
        self._stream = ours.makefile("rw")
        self._say({"rows": rows, "folder": str(folder)})

    def ready(self) -> dict:
        """Wait until it is prepared; its cases and what its check found.

        Raises: WorkerError.
        """
        return self._answer(_PREPARE_SECONDS)

    def measure(self, case: str, seconds: float, *, fresh: bool) -> dict[str, float]:
        """Rows, calls and seconds of one measurement.

        Raises: WorkerError.
        """
        self._say({"case": case, "seconds": seconds, "fresh": fresh})
        return self._answer(_ROUND_SECONDS)

    def close(self) -> None:
        """End it, kindly at first, with all that it started."""
        try:
            self._stream.close()
        except OSError:
            self._process.terminate()
        self._socket.close()
        try:
            self._process.wait(3)
        except subprocess.TimeoutExpired:
            os.killpg(self._process.pid, signal.SIGKILL)  # its own session: nobody else is in the group
            self._process.wait()

    def _say(self, order: dict) -> None:
        try:
            self._stream.write(json.dumps(order) + "\n")
            self._stream.flush()
        except OSError as error:
            raise WorkerError(self._last_words()) from error

    def _answer(self, seconds: float) -> dict:
        self._socket.settimeout(seconds)
        try:
            line = self._stream.readline()
        except TimeoutError:
            raise WorkerError(f"no answer within {seconds:.0f} s") from None
        if not line:
            raise WorkerError(self._last_words())
        answer = json.loads(line)
        if "error" in answer:
            raise WorkerError(answer["error"].strip().splitlines()[-1])
        return answer

    def _last_words(self) -> str:
        words = self._log_path.read_text(errors="replace").strip().splitlines()
        return f"its process ended ({self._process.poll()}): {words[-1] if words else 'without a word'}"
