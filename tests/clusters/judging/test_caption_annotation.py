"""What is asked of a judge about stored captions: what is left, once, whatever happens in between."""

from __future__ import annotations

import resource
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from functools import partial

import numpy as np
import pytest

from onibi.actors.annotators.lexicon import LexiconAnnotator, LexiconSettings
from onibi.clusters.judging.caption_annotation import (
    Work,
    _pair,
    _pairs,
    carry_out,
    estimate,
    label_work,
    labelled_keys,
    pair_work,
)
from onibi.clusters.judging.work_claims import WorkClaims
from onibi.platform.annotation.annotator import judge_of
from onibi.platform.annotation.claims import AnnotationClaims
from onibi.platform.annotation.estimate import AnnotationEstimate
from onibi.platform.annotation.labels import LabelValue, PreferenceValue
from onibi.platform.annotation.stored_captions import StoredCaptions, StoredKey
from onibi.platform.annotation.table import AnnotationTable
from onibi.platform.errors import AnnotatorError, BudgetSpentError, ConfigError

TEXTS = ["The door opens.", "Never mind.", "You kill the newt!", "You hear a door open.", "It's dark.", "* - a key."]
CAPTIONS = StoredCaptions("here", tuple(StoredKey(text, f"raw {text}", 9 - i) for i, text in enumerate(TEXTS)))


class Judge(LexiconAnnotator):
    """The lexicon, with a list of faults: before the n-th label of all, raise or say nothing readable."""

    def __init__(self, **faults) -> None:
        super().__init__(LexiconSettings())
        self.faults = {int(number[1:]): fault for number, fault in faults.items()}
        self.asked: list[tuple[str, int]] = []

    def annotate(self, requests, goal):
        for request in requests:
            self.asked.append((request.key_text, request.vote))
            fault = self.faults.pop(len(self.asked), None)
            if isinstance(fault, Exception):
                raise fault
            (label,) = super().annotate([request], goal)
            if fault == "invalid":
                label = replace(label, value=LabelValue.INVALID, score=float("nan"))
            if fault != "silent":
                yield label


@pytest.fixture
def table(tmp_path):
    opened = AnnotationTable(tmp_path / "table")
    yield opened
    opened.close()


def labels(table, judge, *, votes=1, **how):
    return carry_out(judge, label_work(CAPTIONS, judge, table, votes=votes), table, patience_seconds=9, **how)


def test_every_key_is_judged_once_and_a_second_work_has_nothing_left(table):
    judge = Judge()
    outcome = labels(table, judge)
    assert (outcome.total, outcome.answered, outcome.left, outcome.invalid) == (6, 6, 0, 0)
    assert sum(outcome.verdicts.values()) == 6
    assert {label.key_text: label.raw_text for label in table.labels()} == {text: f"raw {text}" for text in TEXTS}
    again = label_work(CAPTIONS, judge, table, votes=1)
    assert (again.items, again.known) == ((), 6)
    assert len(label_work(CAPTIONS, Judge(), table, votes=2).items) == 6, "the second votes alone"


def test_another_judge_is_asked_anew(table):
    labels(table, Judge())
    other = LexiconAnnotator(LexiconSettings(lexicon="all_ones"))
    assert len(label_work(CAPTIONS, other, table, votes=1).items) == 6


def test_votes_are_asked_one_after_the_other_and_kept_apart(table):
    judge = Judge()
    outcome = labels(table, judge, votes=2)
    assert outcome.answered == 12
    assert judge.asked == [(text, vote) for vote in (0, 1) for text in TEXTS]
    assert sorted(label.vote for label in table.labels()) == [0] * 6 + [1] * 6


def test_a_spent_budget_ends_the_work_and_the_next_one_goes_on(table):
    judge = Judge(n4=BudgetSpentError("three calls are spent"))
    outcome = labels(table, judge)
    assert (outcome.answered, outcome.left, outcome.stopped_by) == (3, 3, "three calls are spent")
    rest = Judge()
    assert labels(table, rest).left == 0
    assert [text for text, _ in rest.asked] == TEXTS[3:]


def test_a_server_that_comes_back_is_waited_for_and_nothing_is_asked_twice(table):
    pauses = []
    judge = Judge(n3=AnnotatorError("gone"), n4=AnnotatorError("gone"))
    outcome = labels(table, judge, sleep=pauses.append)
    assert (outcome.answered, outcome.stopped_by) == (6, "")
    assert pauses == [1.0, 1.0]
    assert [text for text, _ in judge.asked] == [*TEXTS[:3], TEXTS[2], *TEXTS[2:]]


def test_a_server_that_stays_away_ends_the_work_after_growing_pauses(table):
    pauses = []
    judge = Judge(**{f"n{number}": AnnotatorError("gone") for number in range(1, 20)})
    outcome = labels(table, judge, sleep=pauses.append)
    assert (outcome.answered, outcome.stopped_by) == (0, "gone")
    assert pauses == [1.0, 1.0, 2.0, 4.0]
    assert sum(pauses) <= 9


def test_a_server_that_is_waited_for_all_night_is_looked_for_each_minute(table):
    pauses = []
    judge = Judge(**{f"n{number}": AnnotatorError("gone") for number in range(1, 20)})
    outcome = carry_out(
        judge, label_work(CAPTIONS, judge, table, votes=1), table, patience_seconds=30_000, sleep=pauses.append
    )
    assert outcome.left == 0
    assert pauses == [1.0, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0] + [60.0] * 12


def test_a_reply_that_cannot_be_read_is_asked_again_twice(table):
    judge = Judge(n1="invalid", n7="invalid", n8="invalid")
    outcome = labels(table, judge)
    assert [text for text, _ in judge.asked[6:]] == [TEXTS[0]] * 2
    assert (outcome.answered, outcome.invalid, outcome.left, outcome.stopped_by) == (5, 3, 1, "")
    assert len(label_work(CAPTIONS, Judge(), table, votes=1).items) == 1, "it is asked again another time"


def test_a_key_that_gets_no_answer_is_left_in_the_end(table):
    judge = Judge(n1="silent", n7="silent", n8="silent")
    assert labels(table, judge).left == 1
    assert len(judge.asked) == 8


def test_a_judge_that_answers_a_part_of_each_batch_is_asked_about_the_rest_until_nothing_is_left(table):
    class Slow(Judge):
        def annotate(self, requests, goal):
            yield from super().annotate(requests[:1], goal)

    outcome = labels(table, Slow())
    assert (outcome.answered, outcome.left, outcome.why_left) == (6, 0, "")


def test_a_second_answer_to_one_question_counts_once_and_is_paid(table):
    class Eager(Judge):
        def annotate(self, requests, goal):
            for label in super().annotate(requests, goal):
                yield replace(label, tokens=3)
                yield replace(label, tokens=3, value=LabelValue.INVALID, score=float("nan"))

    outcome = labels(table, Eager())
    assert (outcome.answered, outcome.left, outcome.invalid, outcome.tokens) == (6, 0, 0, 36)
    assert len(table.labels()) == 6


def test_two_commands_at_once_share_the_work_and_ask_nothing_twice(tmp_path):
    class Slow(Judge):
        def annotate(self, requests, goal):
            for label in super().annotate(requests, goal):
                time.sleep(0.005)
                yield label

    keys = tuple(StoredKey(f"You see {number}.", f"raw {number}", 1) for number in range(600))
    captions, judges = StoredCaptions("here", keys), [Slow(), Slow()]
    tables = [AnnotationTable(tmp_path / "table") for _ in judges]
    with ThreadPoolExecutor(2) as pool:
        works = [label_work(captions, *each, votes=1) for each in zip(judges, tables, strict=True)]
        outcomes = list(pool.map(partial(carry_out, patience_seconds=9), judges, works, tables))
    asked = [[text for text, _ in judge.asked] for judge in judges]
    assert sorted(asked[0] + asked[1]) == sorted(key.text for key in keys), "each once"
    assert min(map(len, asked)) >= 88
    assert [(outcome.answered, outcome.left, outcome.why_left) for outcome in outcomes] == [(600, 0, "")] * 2
    assert [outcome.elsewhere for outcome in outcomes] == [600 - len(texts) for texts in asked]
    for table in tables:
        table.close()
    assert len(AnnotationTable(tmp_path / "table").labels()) == 600


def test_what_another_run_asks_is_waited_for_and_asked_once_that_gives_it_up(table, tmp_path):
    judge, seen = Judge(), []
    work = label_work(CAPTIONS, judge, table, votes=1)
    run, run_table = AnnotationClaims(table.folder, 60.0), AnnotationTable(table.folder)
    assert all(run.claim(judge_of(judge), work.items[:4]))

    def sleep(_seconds):
        if len(judge.asked) == 2 and not run_table.labels(goal=judge.goal)[2:]:
            run_table.append(LexiconAnnotator(LexiconSettings()).annotate(work.items[:1], judge.goal))
            run.close()

    outcome = carry_out(
        judge, work, table, patience_seconds=0, sleep=sleep, on_progress=lambda o: seen.append(replace(o))
    )
    assert [text for text, _ in judge.asked] == [*TEXTS[4:], *TEXTS[1:4]]
    assert (outcome.answered, outcome.elsewhere, outcome.left, outcome.asked_elsewhere) == (6, 1, 0, 0)
    assert max(told.asked_elsewhere for told in seen) == 4
    run_table.close()


def test_replies_to_others_that_cannot_be_read_answer_nothing(table):
    judge = Judge()
    work = label_work(CAPTIONS, judge, table, votes=1)
    other = AnnotationTable(table.folder)
    given = LexiconAnnotator(LexiconSettings()).annotate(work.items[:2], judge.goal)
    other.append([replace(label, value=LabelValue.INVALID, score=float("nan")) for label in given])
    outcome = carry_out(judge, work, table, patience_seconds=9)
    assert (outcome.answered, outcome.elsewhere, len(judge.asked)) == (6, 0, 6)
    other.close()


def test_a_claim_is_renewed_while_a_slow_judge_answers_and_ends_with_the_work(table):
    now, judge = [0.0], Judge()
    work = label_work(CAPTIONS, judge, table, votes=1)
    claims = WorkClaims(table, judge_of(judge), clock=lambda: now[0])
    told = []
    claims._claims.claim = lambda _judge, held: told.append(len(held)) or [True] * len(held)
    claims.claim(work.items)
    for now[0] in (30.0, 41.0, 60.0, 82.0):
        claims.renew()
    assert told == [6, 6, 6], "every third of the lease of 120 s"


def test_what_is_left_is_told_with_its_reason(table):
    unread = Judge(**{f"n{number}": "invalid" for number in (1, 7, 8)})
    assert labels(table, unread).why_left == "replies about 1 could not be read"
    silent = Judge(n1="silent", n2="silent")
    assert labels(table, silent).why_left == "1 were given no verdict"
    both = Judge(
        n1="invalid", n2="silent", n3="invalid", n4="silent", n5="invalid", n6="silent", n7="silent", n8="silent"
    )
    both_work = Work(
        label_work(CAPTIONS, LexiconAnnotator(LexiconSettings(lexicon="all_ones")), table, votes=1).items[:2], 0
    )
    outcome = carry_out(both, both_work, table, patience_seconds=9)
    assert outcome.why_left == "replies about 1 could not be read and 1 were given no verdict"


def test_an_interruption_while_it_waits_for_a_verdict_keeps_those_before(table):
    judge, entered = Judge(), []

    @contextmanager
    def waiting():
        entered.append(len(judge.asked))
        yield
        if len(entered) == 3:
            raise KeyboardInterrupt

    outcome = labels(table, judge, waiting=waiting)
    assert (outcome.answered, outcome.stopped_by) == (2, "interrupted")
    assert len(table.labels()) == 2


def test_an_interruption_in_a_pause_ends_the_work(table):
    def sleep(_seconds):
        raise KeyboardInterrupt

    outcome = labels(table, Judge(n3=AnnotatorError("gone")), sleep=sleep)
    assert (outcome.answered, outcome.stopped_by) == (2, "interrupted")
    assert len(table.labels()) == 2


def test_a_full_disk_ends_the_work_with_what_still_fitted_and_says_how_much_is_lost(table, tmp_path):
    before, most = resource.getrlimit(resource.RLIMIT_FSIZE)
    six = label_work(CAPTIONS, Judge(), table, votes=1)
    roomy = AnnotationTable(tmp_path / "roomy")
    carry_out(Judge(), six, roomy, patience_seconds=9)
    (journal,) = roomy.folder.glob("labels-*.journal")
    # The kernel writes no file beyond this, as it does on a full disk.
    resource.setrlimit(resource.RLIMIT_FSIZE, (journal.stat().st_size - 1, most))
    try:
        outcome = carry_out(Judge(), six, table, patience_seconds=9)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (before, most))
    kept = len(table.labels())
    assert 0 < kept == outcome.answered < 6
    assert sum(outcome.verdicts.values()) == kept
    assert f"cannot be written to {table.folder}" in outcome.stopped_by
    assert f"({6 - kept} answers of the last second are lost)" in outcome.stopped_by
    assert labels(table, Judge()).left == 0, "the next call goes on"
    assert len({label.key_hash for label in table.labels()}) == 6


def test_pairs_are_drawn_once_each_and_a_longer_work_begins_with_the_shorter_one(table):
    judge = Judge()

    def work(count, seed=3):
        return pair_work(CAPTIONS, judge, table, pairs=count, rng=np.random.default_rng(seed))

    def names(work):
        return [(pair.first.key_text, pair.second.key_text) for pair in work.items]

    every = names(work(15))
    assert len({frozenset(pair) for pair in every}) == 15
    assert every[:9] == names(work(9))
    assert every != names(work(15, seed=4))
    assert carry_out(judge, work(9), table, patience_seconds=0).answered == 9
    rest = work(15)
    assert (rest.known, names(rest)) == (9, every[9:])
    door_newt = [each for each in table.preferences() if {each.first_text, each.second_text} == {TEXTS[0], TEXTS[1]}]
    for each in door_newt:
        wins = PreferenceValue.FIRST if each.first_text == TEXTS[0] else PreferenceValue.SECOND
        assert each.value == wins
    with pytest.raises(ConfigError, match="6 keys make 15 pairs, 16 were asked for"):
        work(16)


@pytest.mark.parametrize("count", [2, 3, 7, 30])
def test_all_pairs_come_once_in_any_number(count):
    found = list(_pairs(count, np.random.default_rng(0)))
    assert len(set(found)) == len(found) == count * (count - 1) // 2
    assert all(0 <= first < second < count for first, second in found)
    assert [_pair(number) for number in range(4)] == [(0, 1), (0, 2), (1, 2), (0, 3)]


def test_what_a_reward_model_learns_from_is_the_mean_of_votes_and_the_newest_of_pairs(table):
    judge = Judge()
    labels(table, judge, votes=2)
    first = next(label for label in table.labels() if label.key_text == TEXTS[0] and label.vote == 1)
    low = replace(first, score=0.0, value=LabelValue.UNHELPFUL)
    unread = replace(first, key_text=TEXTS[1], value=LabelValue.INVALID, score=float("nan"))
    stranger = replace(first, key_hash=1, key_text="?")
    data = labelled_keys(CAPTIONS, [*table.labels(), low, unread, stranger])
    assert data.key_texts == TEXTS
    assert data.sightings.tolist() == [9, 8, 7, 6, 5, 4]
    assert data.label_key.tolist() == [0, 1, 2, 3, 4, 5]
    assert data.label_score[0] == 0.5
    carry_out(
        judge, pair_work(CAPTIONS, judge, table, pairs=15, rng=np.random.default_rng(0)), table, patience_seconds=0
    )
    pairs = labelled_keys(CAPTIONS, [*table.preferences(), *table.preferences()])
    assert len(pairs.pair_first) == 15
    assert set(pairs.pair_preference.tolist()) <= {0.0, 0.5, 1.0}


def test_an_estimate_asks_nobody(table):
    class Priced(Judge):
        def estimate(self, items):
            return AnnotationEstimate(calls=len(items), prompt_tokens=100, reply_tokens=10, cost=0.5)

    judge = Priced()
    assert estimate(judge, label_work(CAPTIONS, judge, table, votes=1)).calls == 6
    assert estimate(judge, Work((), 6)).calls == 0
    assert estimate(Judge(), label_work(CAPTIONS, judge, table, votes=1)).tokens == 0
    assert judge.asked == []
