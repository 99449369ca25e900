"""Which questions are being asked right now, told between runs that share an annotation table.

    TABLE/claims.sqlite     question, asker, since when, until when

A label on disk is asked by nobody again; this is for the time before it is there. A claim ends with its lease or with
its process, whichever is first. What cannot be told here (a full disk, a folder without locks, a file that somebody
holds) is asked all the same: a question asked twice costs money, one never asked costs the run.
"""

from __future__ import annotations

import itertools
import logging
import math
import os
import sqlite3
import time
import uuid
from collections.abc import Callable, Sequence
from contextlib import closing, suppress
from functools import cache
from hashlib import blake2b
from pathlib import Path

from onibi.platform.annotation.annotator import AnnotationRequest, Request
from onibi.platform.annotation.captions import text_hash
from onibi.platform.annotation.labels import Judge

log = logging.getLogger(__name__)

_FILE = "claims.sqlite"
_LOCK_SECONDS = 2.0  # each asker holds the lock for a millisecond, but on a busy disk or without a core for longer
_REST_SECONDS = 30.0  # without claims, after they could not be told: whoever asks must not wait each time
_CLOCKS_DIFFER_SECONDS = 60.0  # between machines at most; a claim of a later time was made by a clock that was wrong
_MAKE = (
    "CREATE TABLE IF NOT EXISTS claims (question BLOB PRIMARY KEY, asker TEXT NOT NULL, since REAL NOT NULL, "
    "until REAL NOT NULL) WITHOUT ROWID"
)
_FAULTS = (sqlite3.Error, OSError, ValueError, TypeError)


class AnnotationClaims:
    """The claims of all runs on one annotation table, for one of them.

    Args:
        folder: of the table.
        lease_seconds: how long a claim holds.
        clock: seconds, never falling.
        lock_seconds: how long to wait for others that hold the file, before they are taken for stuck.
    """

    def __init__(
        self,
        folder: Path,
        lease_seconds: float,
        clock: Callable[[], float] = time.monotonic,
        lock_seconds: float = _LOCK_SECONDS,
    ) -> None:
        self._path, self._lease_seconds, self._clock = folder / _FILE, lease_seconds, clock
        self._lock_seconds = lock_seconds
        self._asker = f"{uuid.uuid4().hex} {_name_of_process(os.getpid())}"
        self._rests_until = -math.inf
        self._told = False

    def claim(self, judge: Judge, requests: Sequence[Request]) -> list[bool]:
        """Which of these questions to a judge are this process's to ask now; all of them where claims cannot be told.

        Those of another process are not while their lease lasts and, on the same machine, while it lives.
        """
        everything = [True] * len(requests)
        if self._clock() < self._rests_until:
            return everything
        questions = [_question(judge, request) for request in requests]
        try:
            with closing(self._connection()) as base, base:
                base.execute("BEGIN IMMEDIATE")
                now = time.time()
                mine = [self._is_free(base, question, now) for question in questions]
                claimed = [
                    (each, self._asker, now, now + self._lease_seconds)
                    for each, free in zip(questions, mine, strict=True)
                    if free
                ]
                base.executemany("INSERT OR REPLACE INTO claims VALUES (?, ?, ?, ?)", claimed)
                base.execute("DELETE FROM claims WHERE until < ?", (now,))
        except _FAULTS as error:
            self._rest(error)
            return everything
        self._told = False
        return mine

    def divide(self, judge: Judge, requests: Sequence[Request]) -> tuple[list[Request], list[Request]]:
        """``claim``; those that are this process's to ask now, and those that another one asks."""
        mine = self.claim(judge, requests)
        others = [not is_mine for is_mine in mine]
        return list(itertools.compress(requests, mine)), list(itertools.compress(requests, others))

    def release(self, judge: Judge, requests: Sequence[Request]) -> None:
        """Let others ask what this process claimed and got no answer to."""
        rows: list[tuple[object, ...]] = [(_question(judge, request), self._asker) for request in requests]
        self._change("DELETE FROM claims WHERE question = ? AND asker = ?", rows)

    def close(self) -> None:
        """Let others ask all that this object claimed."""
        self._change("DELETE FROM claims WHERE asker = ?", [(self._asker,)])

    def _change(self, statement: str, rows: list[tuple[object, ...]]) -> None:
        if self._clock() < self._rests_until:
            return  # the lease ends it
        try:
            with closing(self._connection()) as base, base:
                base.executemany(statement, rows)
        except _FAULTS as error:
            self._rest(error)

    def _connection(self) -> sqlite3.Connection:
        # Opened for each call: claims are told a few times a second at most, and a file that somebody deletes or
        # replaces is found again. A power cut may cost the file: it holds nothing of worth.
        base = sqlite3.connect(self._path, timeout=self._lock_seconds, isolation_level=None)
        try:
            base.execute("PRAGMA synchronous = OFF")
            base.execute(_MAKE)
        except BaseException:
            base.close()
            raise
        return base

    def _is_free(self, base: sqlite3.Connection, question: bytes, now: float) -> bool:
        found = base.execute("SELECT asker, since, until FROM claims WHERE question = ?", (question,)).fetchone()
        if found is None:
            return True
        asker, since, until = found
        if asker == self._asker or until <= now or since > now + _CLOCKS_DIFFER_SECONDS:
            return True
        return not _may_live(asker)

    def _rest(self, error: Exception) -> None:
        if not self._told:
            log.warning(
                "annotation table %s: %s cannot be used (%s). Runs that ask the same judge at the same time may ask it "
                "the same question",
                self._path.parent,
                _FILE,
                error,
            )
        self._told = True
        if isinstance(error, sqlite3.DatabaseError) and not isinstance(error, sqlite3.OperationalError):
            with suppress(OSError):
                self._path.unlink()  # no database, torn by a power cut, say: the next call makes it anew
                return
        self._rests_until = self._clock() + _REST_SECONDS


def _question(judge: Judge, request: Request) -> bytes:
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
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return f"unknown-{uuid.uuid4().hex} -"  # nobody can see then whether this process lives


def _name_of_process(pid: int) -> str:
    """Names a process of this machine for good, as numbers are used again.

    Raises: OSError where nothing is told of it.
    """
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    state, started_ticks = fields[0], fields[19]
    return f"{_machine()} {pid} {'ended' if state in 'ZX' else started_ticks}"


def _may_live(asker: str) -> bool:
    """Whether the process of an asker lives, or may: one of another machine cannot be seen from here."""
    _, _, process = asker.partition(" ")
    machine, pid, _ = process.rsplit(" ", 2)
    if machine != _machine():
        return True
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass  # another user's
    try:
        return _name_of_process(int(pid)) == process
    except OSError:
        return True  # hidden, or just ended: the next look tells
