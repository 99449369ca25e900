"""What messages tell people to type in a shell, so that it can be pasted there."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path


def path_as_typed(path: Path) -> str:
    """From the current folder where it lies in there, quoted where the shell asks for it."""
    here = Path.cwd()
    return shlex.quote(str(path.relative_to(here)) if path.is_relative_to(here) else str(path))


def pip_install(*arguments: str) -> str:
    """``pip install`` into the environment that this process runs in: another's pip would not mend it."""
    return f"{path_as_typed(Path(sys.executable))} -m pip install {shlex.join(arguments)}"
