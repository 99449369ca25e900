"""What a measured process finds in its environment, whichever system it runs."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from peers.environments import ROOT

_ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
_FOLDERS = ("actors", "learners", "platform")


def one_thread_environment() -> dict[str, str]:
    """This process's variables, with threads of BLAS and OpenMP held to one and no folders to import from."""
    return {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | _ONE_THREAD


@contextmanager
def child_environment(python: Path) -> Iterator[dict[str, str]]:
    """``one_thread_environment`` for ``python``; a peer's also finds this checkout's folders as the package ``onibi``,
    for the views and networks that both systems are to have.
    """
    if python == Path(sys.executable):  # Onibi's own
        yield one_thread_environment()
        return
    with tempfile.TemporaryDirectory(prefix="onibi-benchmark-") as folder:
        (Path(folder) / "onibi").mkdir()
        for name in _FOLDERS:
            (Path(folder) / "onibi" / name).symlink_to(ROOT / name)
        yield {**one_thread_environment(), "PYTHONPATH": folder}
