"""Until when nobody is to ask a server, told between the processes that ask it: one of them was told to wait.

What cannot be told here (a full disk, another machine's disk) costs a request that is refused, so nothing is raised.
"""

from __future__ import annotations

import fcntl
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

_TEXT_BYTES = 32  # of the file, always: written over in place, it is never empty for a reader
_CLOCKS_DIFFER_SECONDS = 60.0  # between machines at most


class SharedPause:
    """The end of a pause, in a file that may not be there.

    Args:
        file: of one server; its folder must be there.
        longest_seconds: of a pause; a file that tells of a longer one was written by a clock that was wrong.
        clock: seconds since 1970.
    """

    def __init__(self, file: Path, longest_seconds: float, clock: Callable[[], float] = time.time) -> None:
        self._file, self._longest_seconds, self._clock = file, longest_seconds, clock

    def extend(self, seconds: float) -> None:
        """Nobody is to ask for so long from now, or as long as was said before, whichever is longer."""
        with suppress(OSError), self._file.open("ab") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # released with the file
            end = self._clock() + min(max(seconds, self.left), self._longest_seconds)
            with self._file.open("r+b", buffering=0) as opened:
                opened.write(f"{end:.6f}".ljust(_TEXT_BYTES - 1).encode() + b"\n")

    @property
    def left(self) -> float:
        """Seconds until the end of the pause; 0 without one."""
        try:
            end = float(self._file.read_bytes())
        except (OSError, ValueError):
            return 0.0
        left = end - self._clock()
        return left if 0.0 < left <= self._longest_seconds + _CLOCKS_DIFFER_SECONDS else 0.0
