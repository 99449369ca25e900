"""Packages that only some commands need: imported when they are used, named by one message where they are missing."""

from __future__ import annotations

import importlib
from types import ModuleType

from onibi.platform.errors import ConfigError
from onibi.platform.shell_words import pip_install

EXTRA = "datasets"
"""The extra of this package that brings them."""


def load_package(name: str, purpose: str) -> ModuleType:
    """Import a package of the extra. Raises: ConfigError that names the extra where it is missing."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ConfigError(
            f"{purpose} needs the package {name.partition('.')[0]!r}, which cannot be imported ({error}). "
            f"Install it with: {pip_install(f'onibi[{EXTRA}]')}"
        ) from error
