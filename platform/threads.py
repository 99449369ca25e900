"""Holding BLAS, OpenMP and torch to few threads: many processes on few cores lose a factor of 8 without (measured)."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
"""Environment of every role's process. The libraries read it when they are loaded: before NumPy's first import."""


def hold_threads() -> None:
    """One thread in this process too, for what is loaded from now on, and for torch where it is loaded already."""
    os.environ.update(ONE_THREAD)
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)


@contextmanager
def one_thread_inherited() -> Iterator[None]:
    """One thread in the processes that are started meanwhile; this one's environment is then as it was."""
    before = {name: os.environ.get(name) for name in ONE_THREAD}
    os.environ.update(ONE_THREAD)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
