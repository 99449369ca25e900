"""Which questions are this process's to ask: told between processes, whatever becomes of the file that tells it."""

from __future__ import annotations

import logging
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from onibi.platform.annotation.annotator import AnnotationRequest, PairRequest
from onibi.platform.annotation.captions import KeyIndex
from onibi.platform.annotation.claims import AnnotationClaims
from onibi.platform.annotation.labels import Judge

JUDGE = Judge("p1", "m", "win")
OTHER = Judge("p2", "m", "win")


def request(text, vote=0):
    return AnnotationRequest(key=KeyIndex(0), key_text=text, raw_text=text, vote=vote)


def pair(first, second):
    return PairRequest(first=request(first), second=request(second))


class Clock:
    now = 100.0

    def __call__(self):
        return self.now


def test_other_judges_votes_and_texts_are_other_questions_and_a_pair_is_one_in_either_order(tmp_path):
    one, two = AnnotationClaims(tmp_path, 60.0), AnnotationClaims(tmp_path, 60.0)
    assert one.claim(JUDGE, [request("door"), pair("door", "newt")]) == [True, True]
    assert one.claim(JUDGE, [request("door")]) == [True], "its own"
    asked = [request("door"), request("door", vote=1), request("newt"), pair("newt", "door"), pair("door", "gold")]
    assert two.claim(JUDGE, asked) == [False, True, True, False, True]
    assert two.claim(OTHER, [request("door"), pair("door", "newt")]) == [True, True]


CLAIMANT = """
import sys, time
from pathlib import Path
from onibi.platform.annotation.claims import AnnotationClaims
from onibi.platform.annotation.annotator import AnnotationRequest
from onibi.platform.annotation.labels import Judge
claims = AnnotationClaims(Path(sys.argv[1]), 3600.0)
print(claims.claim(Judge("p1", "m", "win"), [AnnotationRequest(key=0, key_text="door", raw_text="door")]), flush=True)
time.sleep(3600)
"""


def test_a_killed_runs_claims_end_with_its_process(tmp_path):
    mine = AnnotationClaims(tmp_path, 60.0)
    process = subprocess.Popen([sys.executable, "-c", CLAIMANT, tmp_path], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout.readline() == "[True]\n"
        assert mine.claim(JUDGE, [request("door")]) == [False]
        process.send_signal(signal.SIGKILL)
        deadline = time.monotonic() + 30.0
        while (free := mine.claim(JUDGE, [request("door")])) == [False] and time.monotonic() < deadline:
            time.sleep(0.05)  # until the system has ended it; it stays a zombie meanwhile, for nobody waits for it
        assert free == [True]
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def claim_of(folder, *, asker=None, since=0.0, until=60.0):
    """Put a claim on "door" by another object of this process, changed afterwards."""
    one = AnnotationClaims(folder, 60.0)
    assert one.claim(JUDGE, [request("door")]) == [True]
    with sqlite3.connect(folder / "claims.sqlite") as base:
        ((found,),) = base.execute("SELECT asker FROM claims").fetchall()
        now = time.time()
        asker = found if asker is None else asker(found)
        base.execute("UPDATE claims SET asker = ?, since = ?, until = ?", (asker, now + since, now + until))


def test_a_number_that_another_process_has_now_is_not_the_one_that_claimed(tmp_path):
    claim_of(tmp_path, asker=lambda found: found.rsplit(" ", 1)[0] + " 17")  # ticks after the start of the machine
    assert AnnotationClaims(tmp_path, 60.0).claim(JUDGE, [request("door")]) == [True]


def test_a_claim_that_a_wrong_clock_made_for_years_from_now_holds_nobody_up(tmp_path):
    claim_of(tmp_path, since=4 * 365 * 86400.0, until=4 * 365 * 86400.0 + 60.0)
    assert AnnotationClaims(tmp_path, 60.0).claim(JUDGE, [request("door")]) == [True]


@pytest.mark.parametrize("asker", ["", "nobody", "a b c d", "\0", "x" * 5000])
def test_an_asker_that_cannot_be_read_costs_no_question(tmp_path, asker):
    claim_of(tmp_path, asker=lambda _: asker)
    assert AnnotationClaims(tmp_path, 60.0).claim(JUDGE, [request("door")]) in ([True], [False])


@pytest.mark.parametrize("fault", [PermissionError, ProcessLookupError, FileNotFoundError])
def test_where_processes_are_hidden_claims_hold_and_nothing_is_raised(tmp_path, monkeypatch, fault):
    """As under `hidepid`, or where a process ends between two looks at it."""
    claim_of(tmp_path)
    two = AnnotationClaims(tmp_path, 60.0)

    def hidden(*_, **__):
        raise fault("hidden")

    monkeypatch.setattr(Path, "read_text", hidden)
    assert two.claim(JUDGE, [request("door")]) == [False]


def test_claims_that_are_over_are_deleted(tmp_path):
    claim_of(tmp_path, until=-1.0)
    AnnotationClaims(tmp_path, 60.0).claim(JUDGE, [request("newt")])
    with sqlite3.connect(tmp_path / "claims.sqlite") as base:
        assert base.execute("SELECT count(*) FROM claims").fetchone() == (1,)


def test_a_file_that_somebody_holds_costs_one_short_wait_and_then_none(tmp_path, caplog):
    clock = Clock()
    one = AnnotationClaims(tmp_path, 60.0, clock, lock_seconds=0.1)
    assert one.claim(JUDGE, [request("door")]) == [True]
    with sqlite3.connect(tmp_path / "claims.sqlite", isolation_level=None) as holder:
        holder.execute("BEGIN EXCLUSIVE")
        with caplog.at_level(logging.WARNING):
            assert one.claim(JUDGE, [request("newt")]) == [True]
            opened = []
            one._connection = lambda: opened.append(1)
            assert one.claim(JUDGE, [request("gold")]) == [True]
            one.release(JUDGE, [request("gold")])
        assert opened == [], "it is left alone for a while"
        holder.execute("ROLLBACK")
    del one._connection
    clock.now += 31.0
    assert one.claim(JUDGE, [request("gold")]) == [True]
    assert AnnotationClaims(tmp_path, 60.0).claim(JUDGE, [request("gold")]) == [False]
    assert caplog.text.count("cannot be used") == 1


def test_whoever_loses_its_core_for_a_second_while_it_claims_makes_nobody_ask_twice(tmp_path):
    one, two = (AnnotationClaims(tmp_path, 60.0) for _ in range(2))
    began = threading.Event()

    def slow(_base, _question, _now, is_free=one._is_free):
        began.set()
        time.sleep(1.0)  # with the lock
        return is_free(_base, _question, _now)

    one._is_free = slow
    with ThreadPoolExecutor(1) as pool:
        claimed = pool.submit(one.claim, JUDGE, [request("door")])
        assert began.wait(30)
        assert two.claim(JUDGE, [request("door")]) == [False]
        assert claimed.result() == [True]


def test_a_claim_of_another_machine_holds_as_nobody_can_see_whether_it_lives(tmp_path):
    one, two = AnnotationClaims(tmp_path, 60.0), AnnotationClaims(tmp_path, 60.0)
    one.claim(JUDGE, [request("door")])
    with sqlite3.connect(tmp_path / "claims.sqlite") as base:
        ((asker,),) = base.execute("SELECT asker FROM claims").fetchall()
        elsewhere = asker.replace(asker.split()[1], "another-boot").replace(f" {os.getpid()} ", " 999999999 ")
        base.execute("UPDATE claims SET asker = ?", (elsewhere,))
    assert two.claim(JUDGE, [request("door")]) == [False]
    with sqlite3.connect(tmp_path / "claims.sqlite") as base:
        base.execute("UPDATE claims SET asker = ?", (asker.replace(f" {os.getpid()} ", " 999999999 "),))
    assert two.claim(JUDGE, [request("door")]) == [True], "no such process on this machine"


@pytest.mark.parametrize("content", [b"not a database at all, " * 50, b""])
def test_a_damaged_file_of_claims_is_made_anew_and_costs_no_question(tmp_path, content, caplog):
    one, two = AnnotationClaims(tmp_path, 60.0), AnnotationClaims(tmp_path, 60.0)
    (tmp_path / "claims.sqlite").write_bytes(content)
    with caplog.at_level(logging.WARNING):
        assert one.claim(JUDGE, [request("door")]) == [True]
    assert ("cannot be used" in caplog.text) == bool(content)
    assert one.claim(JUDGE, [request("door")]) == [True]
    assert two.claim(JUDGE, [request("door")]) == [False]


def test_where_claims_cannot_be_told_everything_is_asked_and_it_is_said_once(tmp_path, caplog):
    (tmp_path / "claims.sqlite").mkdir()
    one = AnnotationClaims(tmp_path, 60.0)
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            assert one.claim(JUDGE, [request("door"), request("newt")]) == [True, True]
            one.release(JUDGE, [request("door")])
        one.close()
    assert caplog.text.count("claims.sqlite cannot be used") == 1
