"""The annotation table: every label and preference that was ever answered, on disk, shared by runs.

    table.json                              the table's name for itself
    labels-WRITER.journal                   being written, or left by a writer that was killed
    labels-WRITER-ROWS-CRC32.arrow          sealed: an Arrow IPC file, its CRC-32 in the name
    preferences-WRITER….journal, ….arrow    likewise

Each writing process has files of its own, so runs that write at the same time never meet in one. Rows are found by what
they say (key, judge, vote); nothing here depends on a run.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import uuid
import zlib
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from onibi.platform.annotation.label_journal import JournalWriter, lock_abandoned, read_journal
from onibi.platform.annotation.labels import (
    LABEL_SCHEMA,
    PREFERENCE_SCHEMA,
    Judge,
    Label,
    Preference,
    conformed,
    labels_from_arrow,
    labels_to_arrow,
    preferences_from_arrow,
    preferences_to_arrow,
)
from onibi.platform.durable import sync_folder, write_durably
from onibi.platform.errors import CaptionError

log = logging.getLogger(__name__)

_FORMAT = 1
_IDENTITY = "table.json"
_SCHEMAS = {"labels": LABEL_SCHEMA, "preferences": PREFERENCE_SCHEMA}
_NAME = re.compile(r"(labels|preferences)-([0-9a-f]{16})(?:\.journal|-(\d+)-([0-9a-f]{8})\.arrow)")
_SEAL_BYTES = 16 << 20
_LISTINGS = 3  # of the folder, where files vanish from it; a link that leads nowhere does for good


@dataclass(frozen=True)
class TableFile:
    """A file of the table; ``rows`` and ``checksum`` where it is sealed."""

    path: Path
    kind: str
    writer: str
    rows: int | None
    checksum: str | None


class AnnotationTable:
    """Labels and preferences in a folder that other processes read and write at the same time.

    Args:
        folder: made where it is missing; where it is there, journals of writers that were killed are sealed at the
            first ``append``, and what is torn or damaged in them is cut, logged and told in ``damage``.
    Raises: CaptionError where the folder cannot be made, or is of another format.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.damage: list[str] = []
        """What could not be read so far, in words."""
        self.table_id = self._open()
        self._writers: dict[str, JournalWriter] = {}  # by kind
        self._own: set[str] = set()  # writers of this object
        self._rows_read: dict[tuple[str, str], int] = {}  # by kind and writer
        self._bytes_read: dict[tuple[str, str], int] = {}
        self._recovered = False

    @staticmethod
    def is_at(folder: Path) -> bool:
        """Whether there is a table in a folder."""
        return (folder / _IDENTITY).is_file()

    def append(self, records: Iterable[Label | Preference]) -> None:
        """Add replies; when this returns, ``kill -9`` does not lose them. A power cut may lose the last second's.

        Raises: OSError where the disk refuses them; what was appended before stays.
        """
        records = list(records)
        labels = [record for record in records if isinstance(record, Label)]
        preferences = [record for record in records if isinstance(record, Preference)]
        for kind, table in (("labels", labels_to_arrow(labels)), ("preferences", preferences_to_arrow(preferences))):
            if len(table):
                self._writer(kind).append(table)
                if self._writers[kind].size >= _SEAL_BYTES:
                    self._try_to_seal(kind)  # the rows are kept: whoever calls must not take them for refused

    def refresh(self, judges: Collection[Judge] | None = None) -> list[Label | Preference]:
        """What other writers added since the last call of this, by the given judges (None: by all).

        At the first call: all that there is. Replies that this object appended are left out; what cannot be read is
        told in ``damage``. Raises: OSError where the folder cannot be read.
        """
        news: list[Label | Preference] = []
        for file, table in self._unread_of_others():
            news += self._records(file, _by_judges(table, judges))
        return sorted(news, key=lambda record: record.time_seconds)  # files are in no order; the newest is to count

    def labels(
        self, prompt_version: str | None = None, model: str | None = None, goal: str | None = None
    ) -> list[Label]:
        """All labels of the judges that fit what is given, each writer's in order."""
        wanted = {"prompt_version": prompt_version, "model": model, "goal": goal}
        return [record for record in self._all_records("labels", wanted) if isinstance(record, Label)]

    def preferences(
        self, prompt_version: str | None = None, model: str | None = None, goal: str | None = None
    ) -> list[Preference]:
        """All preferences of the judges that fit what is given, each writer's in order."""
        wanted = {"prompt_version": prompt_version, "model": model, "goal": goal}
        return [record for record in self._all_records("preferences", wanted) if isinstance(record, Preference)]

    def all_labels(self) -> list[Label]:
        """All labels."""
        return self.labels()

    def all_preferences(self) -> list[Preference]:
        """All preferences."""
        return self.preferences()

    def to_parquet(self, folder: Path) -> list[Path]:
        """Write ``labels.parquet`` and, where there are some, ``preferences.parquet``; files of that name are replaced.

        Returns: what was written. Raises: OSError.
        """
        from pyarrow import parquet

        folder.mkdir(parents=True, exist_ok=True)
        written = []
        for kind in _SCHEMAS:
            table = pa.concat_tables([_SCHEMAS[kind].empty_table(), *(each for _, each in self._all(kind))])
            if kind == "labels" or len(table):
                sink = pa.BufferOutputStream()
                parquet.write_table(table, sink, compression="zstd")
                written.append(folder / f"{kind}.parquet")
                write_durably(written[-1], sink.getvalue().to_pybytes())
        return written

    def recover(self) -> list[str]:
        """Seal the journals of writers that were killed. Returns: what was cut from them, in words."""
        cut = []
        for file in self._files().values():
            if file.rows is not None or file.writer in self._own:
                continue
            descriptor = lock_abandoned(file.path)
            if descriptor is None:
                continue
            try:
                told = self._seal(file, report=True)
                cut += [told] if told else []
            except OSError as error:  # a full disk, say: the journal stays and is read as it is
                log.warning("annotation table %s: %s cannot be sealed: %s", self.folder, file.path.name, error)
            finally:
                os.close(descriptor)
        return cut

    def close(self) -> None:
        """Seal what this object wrote. Raises nothing: what cannot be sealed stays as a journal."""
        for kind in list(self._writers):
            self._try_to_seal(kind)

    def _open(self) -> str:
        path = self.folder / _IDENTITY
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            if not path.exists():
                fresh = self.folder / f".{_IDENTITY}.{uuid.uuid4().hex}"
                write_durably(fresh, json.dumps({"format": _FORMAT, "table_id": uuid.uuid4().hex}).encode())
                try:
                    os.link(fresh, path)  # unlike a rename it fails where another process was first
                    sync_folder(self.folder)
                except FileExistsError:
                    log.debug("annotation table %s: another process made it at the same time", self.folder)
                finally:
                    fresh.unlink()
            identity = json.loads(path.read_text(encoding="utf-8"))
            if identity["format"] != _FORMAT:
                raise CaptionError(
                    f"annotation table {self.folder}: its format is {identity['format']}, this Onibi reads {_FORMAT}. "
                    "Name another folder in annotation.table, or use the version of Onibi that wrote it"
                )
            return str(identity["table_id"])
        except (ValueError, KeyError, TypeError) as error:
            raise CaptionError(
                f"annotation table {self.folder}: {_IDENTITY} is damaged ({type(error).__name__}: {error}). The labels "
                f"are in other files: delete {path}, and it is made anew"
            ) from error
        except OSError as error:
            raise CaptionError(
                f"annotation table {self.folder} cannot be opened: {error}. Name a folder that can be written in "
                "annotation.table, or none to share no labels"
            ) from error

    def _files(self) -> dict[tuple[str, str], TableFile]:
        """By kind and writer; of a journal and the sealed file that it became, the sealed one."""
        files: dict[tuple[str, str], TableFile] = {}
        for name in sorted(path.name for path in self.folder.iterdir()):
            match = _NAME.fullmatch(name)
            if match:
                rows = None if match[3] is None else int(match[3])
                if rows is not None or (match[1], match[2]) not in files:
                    files[match[1], match[2]] = TableFile(self.folder / name, match[1], match[2], rows, match[4])
        return files

    def _unread_of_others(self, kinds: Collection[str] = tuple(_SCHEMAS)) -> list[tuple[TableFile, pa.Table]]:
        """Rows that were not read yet, by file.

        A journal that is sealed between the listing and its reading is looked for under its new name at once: whoever
        wrote it has given up its claims by now, and what it was answered would be asked again.
        """
        found = []
        for _ in range(_LISTINGS):
            vanished = False
            for file in self._files().values():
                if file.writer in self._own or file.kind not in kinds:
                    continue
                try:
                    found.append((file, self._unread(file)))
                except FileNotFoundError:
                    vanished = True
            if not vanished:
                break
        return found

    def _unread(self, file: TableFile) -> pa.Table:
        """Rows of a file that were not read yet. Raises: FileNotFoundError."""
        name = (file.kind, file.writer)
        schema, read = _SCHEMAS[file.kind], self._rows_read.get(name, 0)
        try:
            if file.rows is not None:
                if file.rows == read:
                    return schema.empty_table()
                content = file.path.read_bytes()
                self._rows_read[name] = file.rows  # once, damaged or not
                return conformed(_sealed_rows(file, content), schema, source=file.path.name).slice(read)
            start = self._bytes_read.get(name, 0)
            if start == file.path.stat().st_size:
                return schema.empty_table()
            piece = read_journal(file.path, start, schema)
        except FileNotFoundError:
            raise  # sealed meanwhile, which is no damage
        except CaptionError as error:  # of another program: it names the file
            self._tell(str(error))
            return schema.empty_table()
        except (OSError, ValueError, pa.ArrowException) as error:
            self._tell(f"{file.path.name} cannot be read: {error}")
            return schema.empty_table()
        if piece.damaged_bytes:
            self._tell(f"{file.path.name}: {piece.damaged_bytes} bytes are damaged and were passed over")
        table = pa.Table.from_batches(piece.batches, schema=schema)
        self._bytes_read[name], self._rows_read[name] = piece.end, read + len(table)
        return table

    def _all(self, kind: str) -> list[tuple[TableFile, pa.Table]]:
        """Every row of a kind, by file; as another reader finds them, so that ``refresh`` goes on where it was."""
        reader = AnnotationTable(self.folder)
        found = reader._unread_of_others([kind])
        self.damage += [told for told in reader.damage if told not in self.damage]
        return found

    def _all_records(self, kind: str, wanted: Mapping[str, str | None]) -> list[Label | Preference]:
        return [record for file, table in self._all(kind) for record in self._records(file, _where(table, wanted))]

    def _records(self, file: TableFile, table: pa.Table) -> Sequence[Label | Preference]:
        read = labels_from_arrow if file.kind == "labels" else preferences_from_arrow
        try:
            return read(table, source=file.path.name)
        except CaptionError as error:  # of another program, as its checksum fits: the other files count still
            self._tell(str(error))
            return []

    def _writer(self, kind: str) -> JournalWriter:
        if not self._recovered:
            self._recovered = True
            self.recover()
        while kind not in self._writers:
            writer = uuid.uuid4().hex[:16]
            with contextlib.suppress(FileExistsError):
                self._own.add(writer)
                self._writers[kind] = JournalWriter(self.folder / f"{kind}-{writer}.journal", _SCHEMAS[kind])
                sync_folder(self.folder)
        return self._writers[kind]

    def _try_to_seal(self, kind: str) -> None:
        try:
            self._seal_own(kind)
        except OSError as error:  # a full disk, say: the journal stays, and is read as it is
            log.warning("annotation table %s: %s cannot be sealed: %s", self.folder, kind, error)

    def _seal_own(self, kind: str) -> None:
        writer = self._writers.pop(kind)
        try:
            writer.sync()
            name = writer.path.stem.rpartition("-")[2]
            self._seal(TableFile(writer.path, kind, name, None, None), report=False)
        finally:
            writer.close()

    def _seal(self, file: TableFile, *, report: bool) -> str | None:
        """Make a sealed file of a journal that nobody else writes. Returns: what was cut, in words."""
        schema = _SCHEMAS[file.kind]
        try:
            piece = read_journal(file.path, 0, schema)
        except (ValueError, pa.ArrowException) as error:
            self._tell(f"{file.path.name} cannot be read: {error}; it stays as it is")
            return None
        table = pa.Table.from_batches(piece.batches, schema=schema)
        if len(table):
            sink = pa.BufferOutputStream()
            options = pa.ipc.IpcWriteOptions(compression="zstd")
            with pa.ipc.new_file(sink, schema, options=options) as writer:
                writer.write_table(table.combine_chunks())
            content = sink.getvalue().to_pybytes()
            name = f"{file.kind}-{file.writer}-{len(table)}-{zlib.crc32(content):08x}.arrow"
            write_durably(self.folder / name, content)
        file.path.unlink()
        sync_folder(self.folder)
        if not report or not (piece.torn_bytes or piece.damaged_bytes):
            return None
        told = (
            f"{file.path.name}, of a writer that was killed: {piece.torn_bytes} torn bytes at its end and "
            f"{piece.damaged_bytes} damaged ones were cut, {len(table)} rows kept"
        )
        self._tell(told)
        return told

    def _tell(self, text: str) -> None:
        if text not in self.damage:
            self.damage.append(text)
            log.warning("annotation table %s: %s", self.folder, text)


def _by_judges(table: pa.Table, judges: Collection[Judge] | None) -> pa.Table:
    if judges is None or not len(table):
        return table
    wanted = [
        _where(table, {"prompt_version": judge.prompt_version, "model": judge.model, "goal": judge.goal})
        for judge in judges
    ]
    return pa.concat_tables([table.slice(0, 0), *wanted])


def _where(table: pa.Table, values: Mapping[str, str | None]) -> pa.Table:
    for column, value in values.items():
        if value is not None and len(table):
            table = table.filter(pc.equal(table[column], value))
    return table


def _sealed_rows(file: TableFile, content: bytes) -> pa.Table:
    if f"{zlib.crc32(content):08x}" != file.checksum:
        raise ValueError(f"its content does not fit its checksum {file.checksum}")
    return pa.ipc.open_file(pa.py_buffer(content)).read_all()
