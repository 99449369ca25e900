"""Whose a SystemExit is that leaves an environment: its own, which is a fault as any, or that of a signal's handler."""

from __future__ import annotations

from types import TracebackType

_HANDLERS = ("onibi", "ray")  # packages whose handlers of SIGTERM raise SystemExit, on top of whatever runs then


def is_by_signal(error: BaseException) -> bool:
    """Whether this process was told to end while an environment was at work.

    ``sys.exit()`` of an environment is none of that: nobody asked for the run's end.
    """
    if not isinstance(error, SystemExit):
        return False
    trace: TracebackType | None = error.__traceback__
    package = ""
    while trace is not None:
        package = str(trace.tb_frame.f_globals.get("__package__") or "")
        trace = trace.tb_next
    return package.partition(".")[0] in _HANDLERS
