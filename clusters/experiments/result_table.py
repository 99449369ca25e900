"""The CSV of an experiment: one row for each run, found by config hash and seed; whole after a crash at any moment."""

from __future__ import annotations

import csv
import fcntl
import hashlib
import io
import json
import logging
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any, TypeAlias

from onibi.platform.durable import write_durably
from onibi.platform.errors import ConfigError

log = logging.getLogger(__name__)

ResultRow: TypeAlias = dict[str, str]

_HASH_DIGITS = 12
_MOST_FIELD = 2**31 - 1  # characters: curves of long runs and texts of called functions pass csv's own 131,072
_KEYS = ("config_hash", "seed")


def config_hash(mapping: Mapping[str, Any]) -> str:
    """Twelve hexadecimal digits that change when any setting does; the order of keys does not count."""
    return hashlib.sha256(json.dumps(mapping, sort_keys=True).encode()).hexdigest()[:_HASH_DIGITS]


def read_rows(path: Path) -> list[ResultRow]:
    """All whole rows in order; none where there is no file.

    A file that was cut within its last line, or lines with too few or too many fields, lose these rows with a warning:
    their runs are then run again. Raises: ConfigError where it is there and cannot be read, or is no such table: the
    next row would be written over it.
    """
    try:
        text = path.read_bytes().decode("utf-8-sig", errors="replace")
    except FileNotFoundError:
        return []
    except OSError as error:
        raise ConfigError(f"{path}: not read ({error.strerror}). Name a CSV, or one that is not there yet.") from error
    whole = text[: text.rfind("\n") + 1]
    csv.field_size_limit(_MOST_FIELD)
    table = csv.DictReader(io.StringIO(whole, newline=""))
    if text.strip() and not set(_KEYS) <= set(table.fieldnames or ()):
        raise ConfigError(
            f"{path}: its first line names no columns {' and '.join(_KEYS)}, so it is no experiment's table, or "
            "one that was saved in another form; allowed: commas, and UTF-8. Name another file: this one would be lost."
        )
    if len(whole) < len(text):
        log.warning("%s: the last line is torn and is left out; its run is run again", path)
    rows: list[ResultRow] = []
    damaged = 0
    for row in table:
        if None in row or None in row.values() or not all(row.get(key) for key in _KEYS):
            damaged += 1
        else:
            rows.append(dict(row))
    if damaged:
        log.warning("%s: damaged lines left out: %d; their runs are run again", path, damaged)
    return rows


def write_rows(path: Path, rows: Iterable[Mapping[str, str]]) -> None:
    """Replace the file whole: what a crash leaves is the old or the new one. Raises: OSError where it cannot be."""
    rows = list(rows)
    names = list(dict.fromkeys(name for row in rows for name in row))
    buffer = io.StringIO(newline="")
    writer = csv.DictWriter(buffer, names)
    writer.writeheader()
    writer.writerows(rows)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_durably(path, buffer.getvalue().encode())


def check_place(path: Path) -> None:
    """Whether a file can be put there: asked before hours of runs, not after. Raises: ConfigError where it cannot."""
    with _refusing(path), TemporaryFile(dir=path.parent):
        return


class ResultTable:
    """Rows of a file, each written as soon as it is added; other processes may add theirs to the same file.

    Args:
        path: the CSV; read now where it is there.
    Raises: ConfigError where it is there and cannot be read.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._by_key: dict[tuple[str, str], ResultRow] = {}
        self.refresh()

    @property
    def rows(self) -> list[ResultRow]:
        """In the order in which they were added."""
        return list(self._by_key.values())

    def find(self, config: str, seed: int) -> ResultRow | None:
        """The row of this config hash and seed."""
        return self._by_key.get((config, str(seed)))

    def refresh(self) -> None:
        """Take over what others have written; rows that somebody took out of the file stay known here."""
        self._by_key |= {_key(row): row for row in read_rows(self.path)}

    def check_writable(self) -> None:
        """Whether rows can be added: what ``add`` does, without a row. Raises: ConfigError where they cannot."""
        with _refusing(self.path), _locked(self.path):
            check_place(self.path)

    def add(self, row: Mapping[str, Any]) -> ResultRow:
        """Append a row, in place of an earlier one of the same key, and write the file with the rows of all.

        Raises: ConfigError where the file cannot be written.
        """
        added = _as_text(row)
        with _refusing(self.path), _locked(self.path):
            self.refresh()
            self._by_key.pop(_key(added), None)
            self._by_key[_key(added)] = added
            write_rows(self.path, self.rows)
        return added

    def update(self, row: ResultRow, columns: Mapping[str, Any]) -> bool:
        """Set columns of a row that is there, in its place; whether it changed anything.

        Raises: ConfigError where the file cannot be written.
        """
        wanted = _as_text(columns)
        if all(row.get(name, "") == text for name, text in wanted.items()):
            return False
        with _refusing(self.path), _locked(self.path):
            self.refresh()
            self._by_key[_key(row)] = row | wanted
            write_rows(self.path, self.rows)
        return True


@contextmanager
def _refusing(path: Path) -> Iterator[None]:
    """A file that cannot be written is told as such, with what to do."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        raise ConfigError(
            f"{path}: not writable ({reason}). Make its folder or room for it, or name another file."
        ) from error


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Be the only writer of the file. Each write puts another file in its place: a lock counts if it is on that one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            if path.exists() and os.path.samestat(os.fstat(descriptor), path.stat()):
                yield
                return
        finally:
            os.close(descriptor)


def _key(row: Mapping[str, str]) -> tuple[str, str]:
    return row["config_hash"], row["seed"]


def _as_text(row: Mapping[str, Any]) -> ResultRow:
    return {name: _text(value) for name, value in row.items()}


def _text(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.6g}"
    text = value if isinstance(value, str) else json.dumps(value)
    # Names of files that are no UTF-8 come as lone surrogates, which cannot be written.
    text = text.encode(errors="backslashreplace").decode()
    return " | ".join(text.splitlines())  # one line a row: so a torn one is seen
