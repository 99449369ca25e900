"""Onibi for a peer's Python: views and networks that both systems are to have."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from peers.environments import ROOT

_FOLDERS = ("actors", "learners", "platform")


@contextmanager
def onibi_package() -> Iterator[str]:
    """A folder for PYTHONPATH in which this checkout's folders are the package ``onibi``."""
    with tempfile.TemporaryDirectory(prefix="onibi-benchmark-") as folder:
        (Path(folder) / "onibi").mkdir()
        for name in _FOLDERS:
            (Path(folder) / "onibi" / name).symlink_to(ROOT / name)
        yield folder
