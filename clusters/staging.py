"""Code that a job takes along: copies of the package that this process imports, and of modules of one's own."""

from __future__ import annotations

import importlib
import importlib.util
import os
import shutil
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from onibi.platform.errors import ConfigError, SubmitError

_FOLDERS = ("platform", "actors", "learners", "clusters", "infra")
# Hidden files are where secrets lie (.env, .netrc), and bytecode is of no use to another Python.
_NOT_STAGED = shutil.ignore_patterns(".*", "__pycache__", "*.pyc")
_MOST_MODULE_BYTES = 100 * 2**20


def stage_package(target: Path) -> None:
    """Copy the imported package into ``target/onibi``: its folders as they are imported now, and ``__main__.py``.

    Works from a wheel, an editable install and a staged copy alike, since it asks the import system for the folders.
    """
    package = target / "onibi"
    for name in _FOLDERS:
        _copy_folders(importlib.import_module(f"onibi.{name}").__path__, package / name)
    main = importlib.util.find_spec("onibi.__main__")
    if main is None or main.origin is None:
        raise SubmitError("onibi.__main__ cannot be found: this installation is not whole. Install Onibi anew.")
    shutil.copy(main.origin, package / "__main__.py")


class OwnModule:
    """A module of one's own: a file, or a package's folder, found as an import would find it but not imported.

    Args:
        name: as it is imported; of a module inside a package the whole package is meant. Looked for where Python
            looks, and in the current folder.

    Raises: ConfigError where it is not found, is no Python source, or is larger than 100 MiB.
    """

    def __init__(self, name: str) -> None:
        self.name = name.partition(".")[0]
        if not self.name.isidentifier():
            raise ConfigError(f"module {name!r} is no name of a module; give it as it is imported: my_games")
        importlib.invalidate_caches()
        with _current_folder_first():
            spec = importlib.util.find_spec(self.name)
            # Here, as a namespace looks for its folders anew wherever it is asked for them.
            folders = [] if spec is None else [Path(each) for each in spec.submodule_search_locations or ()]
        if spec is None:
            raise ConfigError(
                f"module {self.name!r} is not found in {Path.cwd()} and where Python looks; go to its folder, or set "
                "PYTHONPATH to it"
            )
        self._folders = folders
        self._file = None if self._folders or spec.origin is None else Path(spec.origin)
        if not self._folders and (self._file is None or self._file.suffix != ".py"):
            raise ConfigError(
                f"module {self.name!r} is {spec.origin}, no Python source: install it on the cluster's nodes"
            )
        size = sum(map(_staged_bytes, self._folders))
        if size > _MOST_MODULE_BYTES:
            raise ConfigError(
                f"module {self.name!r} takes {size / 2**20:,.0f} MiB in {self._folders[0]}, and at most "
                f"{_MOST_MODULE_BYTES / 2**20:.0f} are sent: install it on the cluster's nodes, or move its data away"
            )

    def stage(self, target: Path) -> None:
        """Copy it into a folder from which it is imported under the same name."""
        if self._file is not None:
            shutil.copy(self._file, target / self._file.name)
        else:
            _copy_folders(self._folders, target / self.name)


@contextmanager
def _current_folder_first() -> Iterator[None]:
    sys.path.insert(0, str(Path.cwd()))
    try:
        yield
    finally:
        sys.path.remove(str(Path.cwd()))


def _staged_bytes(folder: Path) -> int:
    """Of the files that ``_copy_folders`` would copy."""
    size = 0
    for path, folders, names in os.walk(folder):
        left_out = _NOT_STAGED(path, [*folders, *names])
        folders[:] = [name for name in folders if name not in left_out]
        files = [Path(path, name) for name in names if name not in left_out]
        size += sum(each.stat().st_size for each in files if each.is_file())
    return size


def _copy_folders(folders: Iterable[str | Path], target: Path) -> None:
    """Copy the folders of one package; of a namespace, which may have several, the first counts: it is written last."""
    for path in reversed([Path(each) for each in folders if Path(each).is_dir()]):
        shutil.copytree(path, target, ignore=_NOT_STAGED, ignore_dangling_symlinks=True, dirs_exist_ok=True)
