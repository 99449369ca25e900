from __future__ import annotations

import itertools
import logging
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import pytest

from onibi.platform.annotation.annotator import AnnotationRequest, PairRequest, label_for
from onibi.platform.annotation.captions import KeyIndex
from onibi.platform.annotation.claims import AnnotationClaims
from onibi.platform.annotation.desk import AnnotationDesk
from onibi.platform.annotation.labels import Judge
from onibi.platform.annotation.settings import AnnotationDeskSettings, AnnotationSettings
from onibi.platform.annotation.shared_annotations import SharedAnnotations
from onibi.platform.annotation.table import AnnotationTable
from onibi.platform.fragment import CaptionText, KeyText

JUDGE = Judge("p1", "m", "win")
OTHER = Judge("p2", "m", "win")


def request(text, vote=0, lease=0):
    return AnnotationRequest(key=KeyIndex(0), key_text=text, raw_text=text, vote=vote, lease=lease)


def pair(first, second):
    return PairRequest(first=request(first), second=request(second))


class Clock:
    now = 100.0

    def __call__(self):
        return self.now


class Run:
    """A desk with its share in a table, as each run has one."""

    def __init__(self, folder, texts, *, lease_seconds=60.0, keeping=(JUDGE,), asks="keys", seed=0):
        self.clock = Clock()
        self.table = AnnotationTable(folder)
        self.desk = AnnotationDesk(
            AnnotationSettings(desk=AnnotationDeskSettings(lease_seconds=lease_seconds)),
            keys_per_caption=1,
            key_version="k1",
            judges=[JUDGE],
            clock=self.clock,
            asks=asks,
            seed=seed,
        )
        self.news = 0
        self.shared = SharedAnnotations(self.desk, self.table, keeping, self.hear, self.clock)
        self.hears(texts)

    def hear(self):
        self.news += 1

    def hears(self, texts):
        self.desk.intern([CaptionText(text, (KeyText(text, askable=True),)) for text in texts])

    def takes(self, count=99):
        self.clock.now += 2.0
        return self.shared.take(JUDGE, count)

    def answers(self, requests, score=1.0):
        records = [label_for(JUDGE, each, score, clock=time.time) for each in requests]
        self.table.append(records)
        self.desk.put(records)

    @property
    def asked(self):
        return self.desk.statistics()["annotation/asked_keys"]


def texts_of(requests):
    return sorted(each.key_text for each in requests)


def test_a_question_that_another_run_is_asking_is_not_asked_and_its_answer_arrives(tmp_path):
    one, two = Run(tmp_path, ["door", "newt"]), Run(tmp_path, ["door", "newt", "gold"])
    mine = one.takes()
    assert texts_of(mine) == ["door", "newt"]
    assert texts_of(two.takes()) == ["gold"]
    assert (one.asked, two.asked) == (2, 1)
    assert two.takes() == []
    one.answers(mine)
    two.shared.read()
    assert two.news == 1
    assert two.desk.statistics()["annotation/keys_labelled"] == 2
    assert two.takes() == []
    assert two.asked == 1


def test_what_a_run_gives_back_another_asks_at_its_next_look(tmp_path):
    one, two = Run(tmp_path, ["door"]), Run(tmp_path, ["door"])
    mine = one.takes()
    assert two.takes() == []
    one.shared.give_back(mine, JUDGE)
    assert texts_of(two.takes()) == ["door"]
    assert one.takes() == [], "now it is the other's"
    assert (one.asked, two.asked) == (1, 1), "what it failed at it had asked"


def test_a_claim_ends_with_its_lease(tmp_path, monkeypatch):
    one, two = Run(tmp_path, ["door"], lease_seconds=30.0), Run(tmp_path, ["door"], lease_seconds=30.0)
    assert len(one.takes()) == 1
    assert two.takes() == []
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 31.0)
    assert texts_of(two.takes()) == ["door"]


def test_a_question_that_comes_free_late_is_handed_out_once_under_a_lease_of_its_own(tmp_path):
    one, two = Run(tmp_path, ["door"]), Run(tmp_path, ["door"], lease_seconds=5.0)
    mine = one.takes()
    for _ in range(4):
        two.clock.now += 1.5  # with takes' own 2 s: leases here would be over again and again
        assert two.takes() == []
    assert two.desk.statistics()["annotation/expired_leases"] == 0, "no annotator had it"
    one.shared.give_back(mine, JUDGE)
    (freed,) = two.takes()
    assert two.takes() == [], "2 s of its 5 are over"
    two.shared.give_back([freed], JUDGE)
    assert texts_of(two.takes()) == ["door"]


def test_an_annotator_that_fails_after_its_lease_releases_nothing_that_another_one_asks(tmp_path):
    one, two = Run(tmp_path, ["door"], lease_seconds=5.0), Run(tmp_path, ["door"], lease_seconds=5.0)
    late = one.takes()
    one.clock.now += 10.0
    assert texts_of(one.takes()) == ["door"], "another worker of the same run"
    one.shared.give_back(late, JUDGE)
    assert two.takes() == []


def test_what_another_run_asks_is_looked_at_once_a_second_and_in_turns(tmp_path, monkeypatch):
    texts = [f"thing {number}" for number in range(6)]
    one, two = Run(tmp_path, texts), Run(tmp_path, texts)
    mine = {each.key_text: each for each in one.takes()}
    assert two.takes(2) == []
    looks = []
    claim = AnnotationClaims.claim

    def noted(self, judge, requests):
        looks.append(texts_of(requests))
        return claim(self, judge, requests)

    monkeypatch.setattr(AnnotationClaims, "claim", noted)
    for _ in range(3):
        assert two.takes(2) == []
        assert two.shared.take(JUDGE, 2) == [], "at the same moment: no second look"
    assert len(looks) == 3
    assert sorted(itertools.chain(*looks)) == texts, "each of the six once"
    one.answers([mine["thing 0"], mine["thing 1"]])
    two.shared.read()
    looks.clear()
    for _ in range(4):
        assert two.takes(2) == []
    assert not {"thing 0", "thing 1"} & set(itertools.chain(*looks)), "they have their answers"


def test_an_answer_that_came_before_its_claim_ended_is_seen_before_anything_is_asked(tmp_path):
    one, two = Run(tmp_path, ["door"]), Run(tmp_path, [])
    mine = one.takes()
    two.shared.read()
    two.hears(["door"])
    one.answers(mine)
    one.shared.close()  # free again, and two has not read the table since
    assert two.takes() == []
    assert two.asked == 0
    assert two.desk.statistics()["annotation/keys_labelled"] == 1


def test_a_run_that_ends_leaves_no_claim(tmp_path):
    one, two = Run(tmp_path, ["door"]), Run(tmp_path, ["door"])
    assert len(one.takes()) == 1
    one.shared.close()
    assert texts_of(two.takes()) == ["door"]


def test_other_judges_votes_and_texts_are_other_questions_and_a_pair_is_one_in_either_order(tmp_path):
    one, two = AnnotationClaims(tmp_path, 60.0), AnnotationClaims(tmp_path, 60.0)
    assert one.claim(JUDGE, [request("door"), pair("door", "newt")]) == [True, True]
    assert one.claim(JUDGE, [request("door")]) == [True], "its own"
    asked = [request("door"), request("door", vote=1), request("newt"), pair("newt", "door"), pair("door", "gold")]
    assert two.claim(JUDGE, asked) == [False, True, True, False, True]
    assert two.claim(OTHER, [request("door"), pair("door", "newt")]) == [True, True]


def test_a_judge_whose_labels_are_not_kept_is_asked_by_every_run(tmp_path):
    runs = [Run(tmp_path, ["door"], keeping=()) for _ in range(2)]
    assert [texts_of(run.takes()) for run in runs] == [["door"], ["door"]]


def test_pairs_are_asked_by_one_run_at_a_time(tmp_path):
    texts = [f"thing {number}" for number in range(4)]  # six pairs
    one, two = (Run(tmp_path, texts, asks="pairs", seed=seed) for seed in (1, 2))
    names = [
        frozenset((each.first.key_text, each.second.key_text)) for run in (one, two, one, two) for each in run.takes(3)
    ]
    assert len(names) == len(set(names)) == 6


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
    one = AnnotationClaims(tmp_path, 60.0, clock)
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


def test_many_runs_that_ask_at_once_ask_each_question_once(tmp_path):
    texts = [f"thing {number}" for number in range(200)]
    told, lock = Counter(), threading.Lock()

    def live(seed):
        run = Run(tmp_path, texts[seed:] + texts[:seed])
        while run.desk.statistics()["annotation/keys_labelled"] < len(texts):
            run.shared.read()
            requests = run.takes(7)
            with lock:
                told.update(texts_of(requests))
            run.answers(requests)
            time.sleep(0.001)
        run.shared.close()
        run.table.close()

    threads = [threading.Thread(target=live, args=(seed,)) for seed in (0, 30, 60, 90)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=120)
    assert not any(thread.is_alive() for thread in threads)
    assert sorted(told) == sorted(texts)
    assert set(told.values()) == {1}


def test_an_invalid_reply_is_asked_again_by_the_same_run(tmp_path):
    one, two = Run(tmp_path, ["door"]), Run(tmp_path, ["door"])
    for _ in range(2):
        (asked,) = one.takes()
        one.answers([asked], score=None)
        assert two.takes() == []
    assert one.asked == 2
