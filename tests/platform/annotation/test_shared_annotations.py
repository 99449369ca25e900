from __future__ import annotations

import itertools
import threading
import time
from collections import Counter

from onibi.platform.annotation.annotator import label_for
from onibi.platform.annotation.claims import AnnotationClaims
from onibi.platform.annotation.desk import AnnotationDesk
from onibi.platform.annotation.labels import Judge
from onibi.platform.annotation.settings import AnnotationDeskSettings, AnnotationSettings
from onibi.platform.annotation.shared_annotations import SharedAnnotations
from onibi.platform.annotation.table import AnnotationTable
from onibi.platform.fragment import CaptionText, KeyText

JUDGE = Judge("p1", "m", "win")


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
