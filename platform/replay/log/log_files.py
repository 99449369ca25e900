"""Where a log's files lie: a local folder, or anything with an address that pyarrow.fs or fsspec reaches.

A file is immutable once it has its name. On a local disk it gets the name when its content is on the disk (write,
fsync the file, rename, fsync the folder: docs/replay-log.md); in an object store an upload that has ended is the file.
"""

from __future__ import annotations

import errno
import fcntl
import os
import weakref
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from onibi.platform.durable import sync_folder
from onibi.platform.errors import ReplayError

if TYPE_CHECKING:
    from onibi.platform.replay.log.log_settings import LogSettings

PART_SUFFIX = ".part"
"""Ends the name of a local file whose content may not be on the disk yet."""


class Disk(Protocol):
    """What is done to a local folder, down to the operations behind each of which the power may fail."""

    def names(self) -> dict[str, int]:
        """Files and their bytes."""

    def read(self, name: str) -> bytes:
        """All of a file."""

    def write(self, name: str, content: bytes | memoryview) -> None:
        """Create or replace a file; nothing of it has to survive a power cut yet."""

    def sync(self, name: str) -> None:
        """From now on the file's content survives a power cut, if its name does."""

    def rename(self, name: str, new: str) -> None:
        """Give a file another name."""

    def remove(self, name: str) -> None:
        """Remove a file; one that is not there is no fault."""

    def sync_folder(self) -> None:
        """From now on the names survive a power cut."""


class LogFiles(Protocol):
    """Sealed files of one folder, local or remote. All calls raise OSError where the disk or store fails."""

    location: str

    def lock(self, shard: int = 0) -> FolderLock | None:
        """Keep other writers of this shard out while it is held, where the place can; None where it cannot."""

    def names(self) -> dict[str, int]:
        """Files and their bytes, unfinished ones included."""

    def read(self, name: str) -> bytes:
        """All of a file."""

    def seal(self, files: Sequence[tuple[str, bytes | memoryview]]) -> None:
        """Write files that are there, whole and for good, when this returns."""

    def remove(self, names: Sequence[str]) -> None:
        """Remove files for good."""


class FolderDisk:
    """A folder of the operating system."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def names(self) -> dict[str, int]:
        """Files and their bytes, without those that are renamed or removed meanwhile."""
        found = {}
        with os.scandir(self.path) as entries:
            for entry in entries:
                with suppress(FileNotFoundError):  # a run seals and removes segments while its log is read
                    if entry.is_file():
                        found[entry.name] = entry.stat().st_size
        return found

    def read(self, name: str) -> bytes:
        """All of a file."""
        return (self.path / name).read_bytes()

    def write(self, name: str, content: bytes | memoryview) -> None:
        """Create or replace a file."""
        with (self.path / name).open("wb") as file:
            file.write(content)

    def sync(self, name: str) -> None:
        """Fsync of the content."""
        descriptor = os.open(self.path / name, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def rename(self, name: str, new: str) -> None:
        """Atomic, as POSIX has it."""
        (self.path / name).rename(self.path / new)

    def remove(self, name: str) -> None:
        """Unlink."""
        (self.path / name).unlink(missing_ok=True)

    def sync_folder(self) -> None:
        """Fsync of the folder."""
        sync_folder(self.path)


class FolderLock:
    """One writer of a shard at a time: an advisory lock, which the kernel frees when the process dies.

    The first shard's is of the folder itself; others, which write beside it, have a file there.

    A forked child holds none: else it would keep the lock for as long as it lives, whatever became of its parent.
    """

    def __init__(self, folder: Path, shard: int = 0) -> None:
        """Raises: ReplayError where another writer has it. File systems without locks are written without one."""
        if shard:
            self._descriptor = os.open(
                folder / f"writer-{shard:04d}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666
            )
        else:
            self._descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        _locks.add(self)
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self.release()
            if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
                raise ReplayError(
                    f"the replay log in {folder} is being written by another process. Wait until it has ended, or "
                    "choose another place (replay.log.url)"
                ) from error

    def release(self) -> None:
        """Let others write; may be called again."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def __del__(self) -> None:
        self.release()


_locks: weakref.WeakSet[FolderLock] = weakref.WeakSet()


def _release_in_child() -> None:
    for lock in list(_locks):
        lock.release()


os.register_at_fork(after_in_child=_release_in_child)


class LocalFiles:
    """The log's files on a local disk."""

    def __init__(self, location: str, disk: Disk, folder: Path | None = None) -> None:
        """``folder``: of the operating system, that writers lock; None leaves that to the caller."""
        self.location, self._disk, self._folder = location, disk, folder

    def lock(self, shard: int = 0) -> FolderLock | None:
        """Keep other writers of this shard out. Raises: ReplayError where one is there."""
        return None if self._folder is None else FolderLock(self._folder, shard)

    def names(self) -> dict[str, int]:
        """Files and their bytes, unfinished ones included."""
        return self._disk.names()

    def read(self, name: str) -> bytes:
        """All of a file."""
        return self._disk.read(name)

    def seal(self, files: Sequence[tuple[str, bytes | memoryview]]) -> None:
        """Content first, names after; where the disk refuses, no unfinished file stays that it lets us remove."""
        try:
            for name, content in files:
                self._disk.write(name + PART_SUFFIX, content)
                self._disk.sync(name + PART_SUFFIX)
            for name, _ in files:
                self._disk.rename(name + PART_SUFFIX, name)
            self._disk.sync_folder()
        except OSError:
            for name, _ in files:
                _try_remove(self._disk, name + PART_SUFFIX)
            raise

    def remove(self, names: Sequence[str]) -> None:
        """Unlink, and make it last."""
        for name in names:
            self._disk.remove(name)
        self._disk.sync_folder()


class StoreFiles:
    """The log's files in an object store or any other ``pyarrow.fs`` file system: one whole upload each."""

    def __init__(self, location: str, filesystem: Any, prefix: str) -> None:
        self.location, self._filesystem, self._prefix = location, filesystem, prefix.rstrip("/")

    def lock(self, shard: int = 0) -> FolderLock | None:  # noqa: ARG002 (as the others)
        """None: object stores have no locks; a run's own lock keeps its sessions apart."""
        return None

    def names(self) -> dict[str, int]:
        """Files and their bytes."""
        from pyarrow.fs import FileSelector, FileType

        found = self._filesystem.get_file_info(FileSelector(self._prefix, allow_not_found=True))
        return {info.base_name: int(info.size or 0) for info in found if info.type == FileType.File}

    def read(self, name: str) -> bytes:
        """All of an object."""
        with self._filesystem.open_input_file(f"{self._prefix}/{name}") as file:
            content: bytes = file.readall()
        return content

    def seal(self, files: Sequence[tuple[str, bytes | memoryview]]) -> None:
        """Upload one after the other; closing the stream completes an upload."""
        self._filesystem.create_dir(self._prefix, recursive=True)
        for name, content in files:
            with self._filesystem.open_output_stream(f"{self._prefix}/{name}") as stream:
                stream.write(content)

    def remove(self, names: Sequence[str]) -> None:
        """Delete objects; one that is not there is no fault."""
        there = self.names()
        for name in names:
            if name in there:
                self._filesystem.delete_file(f"{self._prefix}/{name}")


def local_folder(location: str | Path) -> Path | None:
    """The local folder that a location names, None where it is an address of something else."""
    text = str(location)
    if text.startswith("file://"):
        return Path(text.removeprefix("file://"))
    return None if "://" in text else Path(text)


def arrow_filesystem(location: str | Path) -> tuple[Any, str]:
    """(file system, path in it) of a location, for pyarrow's own readers.

    Raises: ReplayError where neither pyarrow nor fsspec knows the address.
    """
    import pyarrow as pa
    from pyarrow import fs

    folder = local_folder(location)
    if folder is not None:
        return fs.LocalFileSystem(), str(folder.absolute())
    address = str(location)
    try:
        filesystem, path = fs.FileSystem.from_uri(address)
        return filesystem, path
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        pass  # an address of fsspec's
    except OSError as error:
        raise ReplayError(f"the replay log at {address} cannot be reached: {error}") from error
    try:
        import fsspec

        remote, path = fsspec.core.url_to_fs(address)
    except (ImportError, ValueError) as error:
        raise ReplayError(
            f"the replay log's address {address!r} is known neither to pyarrow nor to fsspec ({error}). Use a folder, "
            "s3://, gs://, or install the fsspec package of this scheme"
        ) from error
    return fs.PyFileSystem(fs.FSSpecHandler(remote)), path


def open_files(location: str | Path, *, create: bool = False) -> LogFiles:
    """The files at a location.

    Args:
        create: make the folder where it is missing, its name durable.
    Raises: ReplayError where the address is unknown, OSError where the folder cannot be made.
    """
    folder = local_folder(location)
    if folder is None:
        filesystem, path = arrow_filesystem(location)
        return StoreFiles(str(location), filesystem, path)
    if create and not folder.is_dir():
        made = [parent for parent in (folder, *folder.parents) if not parent.exists()]
        folder.mkdir(parents=True, exist_ok=True)
        for each in made:
            sync_folder(each.parent)
    return LocalFiles(str(folder), FolderDisk(folder), folder)


def _try_remove(disk: Disk, name: str) -> None:
    try:
        disk.remove(name)
    except OSError:  # it is torn, and the next opening removes it
        return


def location_of(settings: LogSettings, run_folder: Path, run_id: str) -> str | None:
    """Where a run's log lies: a folder (absolute) or an address; None where it is off."""
    if not settings.enabled:
        return None
    if settings.url is None:
        return str((run_folder / "replay").absolute())
    if local_folder(settings.url) is None:
        address, mark, options = settings.url.partition("?")  # s3://bucket/logs?region=eu-central-1
        return f"{address.rstrip('/')}/{run_id}{mark}{options}"
    return str((Path(settings.url.removeprefix("file://")).expanduser() / run_id).absolute())
