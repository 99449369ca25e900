"""Which questions are being asked right now, told between runs that share an annotation table.

    TABLE/claims.sqlite     question, asker, until when

A label on disk is asked by nobody again; this is for the time before it is there. A claim ends with its lease or with
its process, whichever is first. What cannot be told here (a full disk, a folder without locks) is asked all the same: a
question asked twice costs money, one never asked costs the run.
"""

from __future__ import annotations

import logging
import os
import sqlite3
import time
import uuid
from collections.abc import Sequence
from contextlib import closing
from functools import cache
from hashlib import blake2b
from pathlib import Path

from onibi.platform.annotator import AnnotationRequest, PairRequest
from onibi.platform.captions import text_hash
from onibi.platform.labels import Judge

log = logging.getLogger(__name__)

_FILE = "claims.sqlite"
_LOCK_SECONDS = 1.0  # how long to wait for other runs; each of them holds the lock for a millisecond
_MAKE = "CREATE TABLE IF NOT EXISTS claims (question BLOB PRIMARY KEY, asker TEXT, until REAL) WITHOUT ROWID"


class AnnotationClaims:
    """The claims of all runs on one annotation table, for one of them.

    Args:
        folder: of the table.
        lease_seconds: how long a claim holds.
    """

    def __init__(self, folder: Path, lease_seconds: float) -> None:
        self._path, self._lease_seconds = folder / _FILE, lease_seconds
        self._asker = f"{uuid.uuid4().hex} {_name_of_process(os.getpid())}"
        self._failed = False

    def claim(self, judge: Judge, requests: Sequence[AnnotationRequest | PairRequest]) -> list[bool]:
        """Which of these questions to a judge are this process's to ask now; all of them where claims cannot be told.

        Those of another process are not while their lease lasts and, on the same machine, while it lives.
        """
        questions = [_question(judge, request) for request in requests]
        try:
            with closing(self._connection()) as base, base:
                base.execute("BEGIN IMMEDIATE")
                mine = [self._is_free(base, question) for question in questions]
                until = time.time() + self._lease_seconds
                claimed = [(each, self._asker, until) for each, free in zip(questions, mine, strict=True) if free]
                base.executemany("INSERT OR REPLACE INTO claims VALUES (?, ?, ?)", claimed)
                base.execute("DELETE FROM claims WHERE until < ?", (time.time(),))
        except sqlite3.DatabaseError as error:
            self._give_up(error)
            return [True] * len(requests)
        self._failed = False
        return mine

    def release(self, judge: Judge, requests: Sequence[AnnotationRequest | PairRequest]) -> None:
        """Let others ask what this process claimed and got no answer to."""
        rows: list[tuple[object, ...]] = [(_question(judge, request), self._asker) for request in requests]
        self._change("DELETE FROM claims WHERE question = ? AND asker = ?", rows)

    def close(self) -> None:
        """Let others ask all that this object claimed."""
        self._change("DELETE FROM claims WHERE asker = ?", [(self._asker,)])

    def _change(self, statement: str, rows: list[tuple[object, ...]]) -> None:
        try:
            with closing(self._connection()) as base, base:
                base.executemany(statement, rows)
        except sqlite3.DatabaseError as error:
            self._give_up(error)

    def _connection(self) -> sqlite3.Connection:
        # Opened for each call: claims are told a few times a second at most, and a file that somebody deletes or
        # replaces is found again. A power cut may cost the file: it holds nothing of worth.
        base = sqlite3.connect(self._path, timeout=_LOCK_SECONDS, isolation_level=None)
        base.execute("PRAGMA synchronous = OFF")
        base.execute(_MAKE)
        return base

    def _is_free(self, base: sqlite3.Connection, question: bytes) -> bool:
        found = base.execute("SELECT asker, until FROM claims WHERE question = ?", (question,)).fetchone()
        if found is None:
            return True
        asker, until = found
        return asker == self._asker or until <= time.time() or not _may_live(asker)

    def _give_up(self, error: sqlite3.DatabaseError) -> None:
        if not self._failed:
            log.warning(
                "annotation table %s: %s cannot be used (%s). Runs that ask the same judge at the same time may ask it "
                "the same question",
                self._path.parent,
                _FILE,
                error,
            )
        self._failed = True
        if not isinstance(error, sqlite3.OperationalError):  # not a database: torn by a power cut, say
            self._path.unlink(missing_ok=True)


def _question(judge: Judge, request: AnnotationRequest | PairRequest) -> bytes:
    """Tells one question from another, in 16 bytes; a pair is the same in either order."""
    if isinstance(request, AnnotationRequest):
        what = [str(text_hash(request.key_text)), str(request.vote)]
    else:
        what = ["pair", *sorted(str(text_hash(key.key_text)) for key in (request.first, request.second))]
    whole = "\0".join([judge.prompt_version, judge.model, judge.goal, *what])
    return blake2b(whole.encode(), digest_size=16).digest()


@cache
def _machine() -> str:
    """This machine since it was started, and its space of process numbers (containers have their own)."""
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return f"{boot} {Path('/proc/self/ns/pid').readlink()}"


def _name_of_process(pid: int) -> str | None:
    """Names a process of this machine for good, as numbers are used again; None where it is no more."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except FileNotFoundError:
        return None
    state, started_ticks = fields[0], fields[19]
    return None if state in "ZX" else f"{_machine()} {pid} {started_ticks}"


def _may_live(asker: str) -> bool:
    """Whether the process of an asker lives, or may: one of another machine cannot be seen from here."""
    _, _, process = asker.partition(" ")
    machine, pid, _ = process.rsplit(" ", 2)
    return machine != _machine() or _name_of_process(int(pid)) == process
