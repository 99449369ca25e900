from __future__ import annotations

import pytest

from onibi.platform.annotation.annotator import label_for
from onibi.platform.annotation.desk import AnnotationDesk
from onibi.platform.annotation.labels import Judge
from onibi.platform.annotation.settings import AnnotationDeskSettings, AnnotationSettings
from onibi.platform.annotation.shared_annotations import SharedAnnotations
from onibi.platform.annotation.table import AnnotationTable
from onibi.platform.annotation.worker_requests import Worker, WorkerRequests
from onibi.platform.errors import ConfigError
from onibi.platform.fragment import CaptionText, KeyText

JUDGE = Judge("p1", "m", "win")
FIRST, SECOND = Worker("lexicon", 0), Worker("lexicon", 1)
LEASE_SECONDS = 12.0


class Clock:
    now = 100.0

    def __call__(self):
        return self.now


class Run:
    """A desk, its share in a table where a folder is given, and its workers."""

    def __init__(self, texts, folder=None, asks="keys"):
        self.clock = Clock()
        settings = AnnotationSettings(desk=AnnotationDeskSettings(lease_seconds=LEASE_SECONDS))
        self.desk = AnnotationDesk(
            settings, keys_per_caption=1, key_version="k1", judges=[JUDGE], clock=self.clock, asks=asks
        )
        table = None if folder is None else AnnotationTable(folder)
        self.shared = SharedAnnotations(self.desk, table, [JUDGE], clock=self.clock)
        self.workers = WorkerRequests(self.shared, {"lexicon": JUDGE}, LEASE_SECONDS, self.clock)
        self.desk.intern([CaptionText(text, (KeyText(text, askable=True),)) for text in texts])

    def takes(self, worker, shift, count=9):
        return self.workers.take(worker, shift, count)

    def waits(self, seconds, *alive):
        """Time passes, in which these workers show signs of life once a second."""
        for _ in range(int(seconds)):
            self.clock.now += 1.0
            for worker in alive:
                self.workers.renew(worker)


@pytest.fixture(params=["keys", "pairs"])
def run(request):
    return Run(["door", "newt"], asks=request.param)


def test_what_a_lost_worker_had_waits_again_at_once(run):
    run.workers.begin(FIRST, "a")
    run.workers.begin(SECOND, "b")
    taken = run.takes(FIRST, "a")
    assert taken and run.takes(SECOND, "b") == []
    run.workers.end(FIRST)
    assert len(run.takes(SECOND, "b")) == len(taken)


def test_a_worker_that_is_set_to_work_anew_lets_go_of_what_it_had_before(run):
    run.workers.begin(FIRST, "a")
    taken = run.takes(FIRST, "a")
    run.workers.begin(FIRST, "b")
    assert run.takes(FIRST, "a") is None, "a call of its former life leases nothing to nobody"
    assert len(run.takes(FIRST, "b")) == len(taken)


def test_a_worker_that_was_never_set_to_work_or_was_lost_gets_nothing(run):
    assert run.takes(FIRST, "a") is None
    run.workers.begin(FIRST, "a")
    run.workers.end(FIRST)
    run.workers.end(FIRST)
    assert run.takes(FIRST, "a") is None
    assert not run.workers.is_at_work(FIRST, "a")


def test_leases_last_as_long_as_the_worker_shows_signs_of_life(run):
    run.workers.begin(FIRST, "a")
    run.workers.begin(SECOND, "b")
    taken = run.takes(FIRST, "a")
    run.waits(5 * LEASE_SECONDS, FIRST)
    assert run.takes(SECOND, "b") == []
    run.waits(LEASE_SECONDS, SECOND)
    assert len(run.takes(SECOND, "b")) == len(taken), "its last sign of life is a lease ago"


def test_answers_and_returns_count_under_a_lease_that_was_renewed():
    run = Run(["door", "newt"])
    run.workers.begin(FIRST, "a")
    newest, oldest = run.takes(FIRST, "a")
    run.waits(5 * LEASE_SECONDS, FIRST)
    run.desk.put([label_for(JUDGE, newest, 1.0, clock=run.clock)])
    run.shared.give_back([oldest], JUDGE)
    run.waits(5 * LEASE_SECONDS, FIRST)
    assert [each.key_text for each in run.takes(FIRST, "a")] == [oldest.key_text]
    assert run.desk.statistics()["annotation/expired_leases"] == 1, "one was given back"


def test_what_a_worker_left_out_without_a_word_comes_back_when_its_lease_ends_and_not_before():
    run = Run(["door", "newt"])
    run.workers.begin(FIRST, "a")
    (newest,) = run.takes(FIRST, "a", 1)
    run.waits(LEASE_SECONDS - 1, FIRST)
    (oldest,) = run.takes(FIRST, "a", 1)
    run.desk.put([label_for(JUDGE, oldest, 1.0, clock=run.clock)])
    assert run.takes(FIRST, "a") == [], "a judge that leaves keys out is not asked about them without end"
    run.waits(LEASE_SECONDS + 1, FIRST)
    assert [each.key_text for each in run.takes(FIRST, "a")] == [newest.key_text]


def test_another_run_does_not_ask_what_a_slow_worker_of_this_one_is_asking(tmp_path, monkeypatch):
    wall = Clock()
    monkeypatch.setattr("onibi.platform.annotation.claims.time.time", wall)
    one, two = Run(["door"], tmp_path), Run(["door"], tmp_path)
    one.workers.begin(FIRST, "a")
    two.workers.begin(FIRST, "b")
    assert len(one.takes(FIRST, "a")) == 1
    for _ in range(int(5 * LEASE_SECONDS)):
        wall.now += 1.0
        one.waits(1, FIRST)
        two.waits(1)
        assert two.takes(FIRST, "b") == []
    one.workers.end(FIRST)
    two.waits(2)
    assert len(two.takes(FIRST, "b")) == 1, "a lost worker's claims end with it"


def test_an_annotator_that_is_none_of_the_desks_judges_is_refused_before_anybody_is_asked(run):
    with pytest.raises(ConfigError, match=r"annotators \['mine'\] are other judges each time .* no hash\(\) of a text"):
        WorkerRequests(run.shared, {"lexicon": JUDGE, "mine": Judge("p2", "m", "win")}, LEASE_SECONDS, run.clock)
