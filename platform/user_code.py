"""Where an error came from in code that is not Onibi's: an environment or a judge of the user's."""

from __future__ import annotations

import sysconfig
from pathlib import Path
from types import TracebackType

_INSTALLED = tuple({str(Path(sysconfig.get_path(name))) for name in ("stdlib", "platstdlib", "purelib", "platlib")})
_BETWEEN = ("onibi", "gymnasium")  # packages that stand between the run and the user's code


def raised_at(error: BaseException) -> str:
    """The line of the user's code that was reached last before ``error``, as " (/home/me/sensors.py:12)".

    That of a package that was installed where no other is among the frames; "" where all are Onibi's or Gymnasium's.
    """
    own, installed = _lines(error)
    return own or installed


def raised_in_own_code(error: BaseException) -> str:
    """As ``raised_at``; "" where the user's code that was reached is that of packages alone."""
    own, _ = _lines(error)
    return "" if "-packages" in own else own


def _lines(error: BaseException) -> tuple[str, str]:
    """The lines reached last in code that was not installed, and in packages that were."""
    own, installed = "", ""
    trace: TracebackType | None = error.__traceback__
    while trace is not None:
        frame, line = trace.tb_frame, trace.tb_lineno
        trace = trace.tb_next
        file = frame.f_code.co_filename
        if str(frame.f_globals.get("__name__", "")).partition(".")[0] in _BETWEEN or file.startswith("<"):
            continue
        if not file.startswith(_INSTALLED):
            own = f" ({file}:{line})"
        elif "-packages" in file:
            installed = f" ({file}:{line})"
    return own, installed
