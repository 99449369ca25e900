"""``python -m onibi.clusters.experiments.worker``: does the runs that a runner sends it, one line of JSON each.

It ends with its runner, however that ends: its standard input is a pipe that the kernel closes when the runner is gone.
"""

from __future__ import annotations

import json
import logging
import os
import queue
import signal
import threading
import traceback
from types import FrameType
from typing import Any

from onibi.platform.errors import OnibiError
from onibi.platform.threads import hold_threads

_ORPHANED_EXIT = 3
_CALLED_OFF_EXIT = 128 + signal.SIGTERM


def main() -> None:
    """Answer each line on standard input by one on standard output: figures, or the error that the run ended with."""
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # whatever a library prints goes to the log, not among the replies
    signal.signal(signal.SIGTERM, _end)
    hold_threads()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    messages: queue.Queue[dict[str, Any]] = queue.Queue()
    threading.Thread(target=_listen, args=(messages,), daemon=True).start()
    while True:
        message = messages.get()
        replies.write(json.dumps(_answer(message), default=float) + "\n")
        replies.flush()
        if message["kind"] == "trained":  # one run a process: what a run leaves in memory is not the next one's
            return


def _end(_number: int, _frame: FrameType | None) -> None:
    """End as an exception, so that a run which is called off takes its ring and its folders with it.

    A trained run that has begun hears the signal itself; a called function has nothing of the kind.
    """
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # a second one would break into the clearing up
    raise SystemExit(_CALLED_OFF_EXIT)


def _answer(message: dict[str, Any]) -> dict[str, Any]:
    try:
        from onibi.clusters.experiments.trial_runs import run_trial

        return {"figures": run_trial(message)}
    except OnibiError as error:
        traceback.print_exc()
        return {"error": str(error)}
    except Exception as error:  # noqa: BLE001 - a run that fails is a row of the table, whatever it failed of
        traceback.print_exc()
        return {"error": f"{type(error).__name__}: {error}"}


def _listen(messages: queue.Queue[dict[str, Any]]) -> None:
    read = bytearray()
    while part := os.read(0, 1 << 16):  # not sys.stdin: its lock, held here, would trip the interpreter's end
        read += part
        while (end := read.find(b"\n")) >= 0:
            messages.put(json.loads(read[:end]))
            del read[: end + 1]
    os._exit(_ORPHANED_EXIT)  # the runner is gone: nobody would read what this run finds


if __name__ == "__main__":
    main()
