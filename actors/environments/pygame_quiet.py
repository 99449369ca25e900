"""What pygame says of itself on the terminals of those who only want its pictures."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def pygame_quiet() -> Iterator[None]:
    """Inside, a first import of pygame prints no greeting and no warning.

    Without a display and a sound card its own library would write errors to the terminal later: it gets dummies.
    """
    os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")
    os.environ.setdefault("SDL_AUDIODRIVER", "dummy")
    if not {"DISPLAY", "WAYLAND_DISPLAY"} & os.environ.keys():
        os.environ.setdefault("SDL_VIDEODRIVER", "dummy")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=DeprecationWarning)
        warnings.filterwarnings(
            "ignore", category=UserWarning, module="pygame"
        )  # it imports pkg_resources, which warns
        yield
