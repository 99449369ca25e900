"""Several judges, votes, orders, pairs, delays and labels read from elsewhere: what the desk asks, and what counts."""

from __future__ import annotations

import math

import numpy as np
import pytest

from onibi.platform.annotation.captions import text_hash
from onibi.platform.annotation.desk import AnnotationDesk
from onibi.platform.annotation.labels import Judge, Label, LabelValue, Preference, PreferenceValue
from onibi.platform.annotation.settings import (
    AnnotationDeskSettings,
    AnnotationSettings,
    PairSettings,
    QueueSettings,
)
from onibi.platform.fragment import CaptionText, KeyText
from onibi.platform.rewards.table import LABELLED, NEVER_ASKED, UNLABELLED
from onibi.platform.rewards.training import MemberScores

A, B = Judge("pa", "ma", "win"), Judge("pb", "mb", "win")


def caption(*keys, askable=True):
    return CaptionText("  ".join(keys), tuple(KeyText(key, askable) for key in keys))


def label(key, score=1.0, judge=A, vote=0, time_seconds=0.0):
    value = LabelValue.INVALID if math.isnan(score) else LabelValue.HELPFUL if score >= 0.5 else LabelValue.UNHELPFUL
    return Label(
        key_hash=text_hash(key),
        key_text=key,
        raw_text=key,
        value=value,
        score=score,
        annotator="test",
        model=judge.model,
        prompt_version=judge.prompt_version,
        goal=judge.goal,
        latency_seconds=0.0,
        tokens=0,
        reply="because",
        time_seconds=time_seconds,
        vote=vote,
    )


def preference(pair, value=PreferenceValue.FIRST, judge=A):
    return Preference(
        first_hash=text_hash(pair.first.key_text),
        second_hash=text_hash(pair.second.key_text),
        first_text=pair.first.key_text,
        second_text=pair.second.key_text,
        value=value,
        annotator="test",
        model=judge.model,
        prompt_version=judge.prompt_version,
        goal=judge.goal,
        latency_seconds=0.0,
        tokens=0,
        reply="because",
        time_seconds=0.0,
    )


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


def desk(*judges, clock=None, asks="keys", seed=0, desk_settings=None, **settings):
    return AnnotationDesk(
        AnnotationSettings(desk=desk_settings or AnnotationDeskSettings(), **settings),
        keys_per_caption=3,
        key_version="k1",
        judges=judges or (A,),
        clock=clock or Clock(),
        asks=asks,
        seed=seed,
    )


def asked(some, judge=None, count=99):
    return [request.key_text for request in some.take(count, judge)]


def table(some):
    return some.table(newer_than=-1)


def test_each_judge_is_asked_about_each_key_and_their_mean_decides():
    some = desk(A, B)
    some.intern([caption("door")])
    assert (asked(some, A), asked(some, B)) == (["door"], ["door"])
    some.put([label("door", 0.75)])
    assert (table(some).value.tolist(), table(some).labelled.tolist()) == ([1.0], [LABELLED])
    some.put([label("door", 0.0, B)])  # the mean is 0.375
    assert (table(some).value.tolist(), table(some).labelled.tolist()) == ([0.0], [LABELLED])
    assert some.training_data(newer_than=-1).label_score.tolist() == [0.375]
    assert (asked(some, A), asked(some, B)) == ([], [])


def test_annotators_of_one_judge_share_its_queue():
    some = desk(A, A)
    some.intern([caption("door"), caption("newt")])
    assert asked(some, A, 1) + asked(some, A, 1) == ["newt", "door"]


def test_a_key_gets_as_many_votes_as_asked_for_one_after_another_and_first_ones_go_first():
    some = desk(votes=3)
    some.intern([caption("door")])
    for vote, score in enumerate((1.0, 1.0, 0.25)):
        (request,) = some.take(9)
        assert (request.key_text, request.vote) == ("door", vote)
        assert some.take(9) == [], "it is in flight"
        some.put([label("door", score, vote=vote)])
        if vote == 0:
            some.intern([caption("newt")])
            assert asked(some, count=1) == ["newt"], "it has no label at all"
    assert some.take(9) == []
    assert some.training_data(newer_than=-1).label_score.tolist() == [0.75]
    assert some.statistics()["annotation/asked_keys"] == 4
    some.advance(2_000)
    assert some.statistics()["annotation/asked_per_million_steps"] == 2_000


def test_a_vote_that_is_invalid_is_asked_again_with_its_number():
    some = desk(votes=2)
    some.intern([caption("door")])
    some.put([label("door", 1.0)])
    (request,) = some.take(9)
    some.put([label("door", math.nan, vote=1)])
    assert [again.vote for again in some.take(9)] == [request.vote] == [1]


def test_the_mean_does_not_depend_on_the_order_in_which_votes_come():
    scores = [0.1, 0.7, 0.3, 1.0, 0.55, 0.2]
    means = set()
    for shift in range(6):
        some = desk(votes=6)
        some.intern([caption("door")])
        some.put([label("door", scores[(vote + shift) % 6], vote=(vote + shift) % 6) for vote in range(6)])
        means.add(float(some.training_data(newer_than=-1).label_score[0]))
    assert len(means) == 1


def test_a_second_answer_to_an_answered_question_is_counted():
    some = desk()
    some.intern([caption("door")])
    some.put([label("door")])
    some.put([label("door", time_seconds=1.0)])
    assert some.statistics()["annotation/duplicate_labels"] == 1


def test_the_most_frequent_key_is_asked_first_where_the_settings_say_so():
    some = desk(queue=QueueSettings(order="most_frequent"))
    ids = some.intern([caption("door"), caption("newt"), caption("gold"), caption("key")])
    some.see(ids, np.array([5, 9, 1, 5]))
    assert asked(some, count=2) == ["newt", "key"], "of equals the one met last"
    assert asked(some) == ["door", "gold"]


def test_the_most_uncertain_key_is_asked_first_where_the_settings_say_so():
    some = desk(queue=QueueSettings(order="most_uncertain"))
    some.intern([caption("door"), caption("newt"), caption("gold")])
    some.set_scores(MemberScores(version=1, members=np.array([[3.0, 0.1, -0.5]], np.float32)))
    some.intern([caption("key")])  # not scored yet
    assert asked(some) == ["key", "newt", "gold", "door"]


def test_labels_held_back_are_collected_and_pay_from_the_step_that_the_settings_name():
    some = desk(delay_steps=100)
    some.intern([caption("door"), caption("wall", askable=False)])
    assert asked(some) == ["door"]
    some.put([label("door")])
    before = table(some)
    assert (before.value.tolist(), before.labelled.tolist()) == ([0.0, 0.0], [UNLABELLED, NEVER_ASKED])
    some.advance(99)
    assert some.table(newer_than=before.version) is None
    assert some.training_data(newer_than=-1) is None
    some.advance(100)
    after = some.table(newer_than=before.version)
    assert (after.value.tolist(), after.labelled.tolist()) == ([1.0, 0.0], [LABELLED, NEVER_ASKED])
    assert some.training_data(newer_than=-1).label_key.tolist() == [0]


def test_labels_read_from_a_table_count_once_whichever_way_they_come_first():
    first_read, first_put = desk(), desk()
    for some in (first_read, first_put):
        some.intern([caption("door"), caption("newt")])
        assert len(some.take(9)) == 2
    mine, theirs = label("door"), label("newt", time_seconds=5.0)
    first_read.learn([mine, theirs])
    first_read.put([mine])
    first_put.put([mine])
    first_put.learn([mine, theirs])
    first_put.learn([mine, theirs])
    for some in (first_read, first_put):
        figures = some.statistics()
        assert (figures["annotation/replies"], figures["annotation/keys_labelled"]) == (2, 2)
        assert (figures["annotation/duplicate_labels"], figures["annotation/in_flight_keys"]) == (0, 0)


def test_an_invalid_reply_that_comes_both_ways_is_one_attempt():
    some = desk(desk_settings=AnnotationDeskSettings(max_attempts=2))
    some.intern([caption("door")])
    some.take(1)
    reply = label("door", math.nan, time_seconds=7.0)
    some.put([reply])
    some.learn([reply])
    assert some.statistics()["annotation/parked_keys"] == 0
    assert asked(some) == ["door"]


def test_requests_given_back_are_asked_again_at_once():
    some = desk()
    some.intern([caption("door"), caption("newt")])
    some.give_back(some.take(2)[:1])
    assert asked(some) == ["newt"]


def test_a_label_leaves_what_another_judge_has_in_flight():
    some = desk(A, B, votes=2)
    some.intern([caption("door")])
    some.take(9, B)
    some.put([label("door", judge=B)])
    assert [request.vote for request in some.take(9, B)] == [1]
    some.take(9, A)
    some.put([label("door")])
    assert some.take(9, B) == [], "vote 1 was asked for already"
    assert [request.vote for request in some.take(9, A)] == [1]


def test_a_late_answer_to_an_answered_vote_leaves_the_next_one_in_flight():
    some = desk(votes=2)
    some.intern([caption("door")])
    some.take(9)
    some.put([label("door")])
    assert [request.vote for request in some.take(9)] == [1]
    some.put([label("door", time_seconds=3.0)])
    assert some.take(9) == []


def test_an_unreadable_reply_of_another_run_is_no_attempt_and_leaves_what_is_in_flight():
    some = desk()
    some.intern([caption("door"), caption("newt")])
    (newt,) = some.take(1)
    some.learn([label(key, math.nan, time_seconds=float(time)) for key in ("door", "newt") for time in range(3)])
    assert asked(some) == ["door"], f"{newt.key_text} is in flight, and door was never asked for here"
    assert some.statistics()["annotation/parked_keys"] == 0


def test_an_unreadable_reply_of_this_run_is_asked_again_where_it_was_read_from_disk_first():
    some = desk(desk_settings=AnnotationDeskSettings(max_attempts=2))
    some.intern([caption("door")])
    for parked in (0, 1):
        assert asked(some) == ["door"]
        reply = label("door", math.nan, time_seconds=float(parked))
        some.learn([reply])
        some.put([reply])
        assert some.statistics()["annotation/parked_keys"] == parked
    assert some.statistics()["annotation/replies"] == 2


@pytest.mark.parametrize("asks", ["keys", "pairs"])
def test_what_was_handed_on_is_not_taken_from_its_new_annotator_by_who_gives_it_back_late(asks):
    clock = Clock()
    some = desk(clock=clock, asks=asks, desk_settings=AnnotationDeskSettings(lease_seconds=5.0))
    some.intern([caption("door"), caption("newt")])
    take = some.take if asks == "keys" else some.take_pairs
    late = take(9)
    clock.now = 6.0
    handed_on = take(9)
    assert len(handed_on) == len(late) > 0
    some.give_back(late)
    assert take(9) == []
    some.give_back(handed_on)
    assert len(take(9)) == len(late)


def test_pairs_are_of_two_askable_keys_and_no_pair_is_asked_twice():
    some = desk(asks="pairs", seed=3)
    some.see(some.intern([caption("a"), caption("b", "c"), caption("d"), caption("wall", askable=False)]))
    seen = set()
    for _ in range(20):
        for pair in some.take_pairs(2):
            names = frozenset((pair.first.key_text, pair.second.key_text))
            assert len(names) == 2
            assert names <= {"a", "b", "c", "d"}
            assert names not in seen
            seen.add(names)
            some.put([preference(pair)])
    assert len(seen) == 6, "all pairs of four keys"
    figures = some.statistics()
    assert (figures["annotation/pairs_judged"], figures["annotation/asked_pairs"]) == (6, 6)
    assert some.take(9) == [], "keys are not asked one by one"


def test_no_pair_is_asked_that_a_table_answered_before_its_keys_were_heard():
    first = desk(asks="pairs")
    first.see(first.intern([caption("a"), caption("b"), caption("c")]))
    bought = [preference(pair) for _ in range(40) for pair in first.take_pairs(1)]
    assert len(bought) == 3

    some = desk(asks="pairs")
    some.put(bought)
    some.see(some.intern([caption("a"), caption("b")]))
    again = desk(asks="pairs")
    again.restore(some.state())
    for each in (some, again):
        each.see(each.intern([caption(key) for key in "abcd"]))
        pairs = [{pair.first.key_text, pair.second.key_text} for _ in range(60) for pair in each.take_pairs(1)]
        assert sorted("".join(sorted(pair)) for pair in pairs) == ["ad", "bd", "cd"]
        assert each.statistics()["annotation/pairs_judged"] == 3


def test_pairs_are_drawn_uniformly_from_the_captions_met_last():
    keys = [f"key {number}" for number in range(8)]
    counts = dict.fromkeys(keys, 0)
    for seed in range(300):
        some = desk(asks="pairs", seed=seed, pairs=PairSettings(recent_captions=4))
        some.see(some.intern([caption(key) for key in keys]))
        (pair,) = some.take_pairs(1)
        counts[pair.first.key_text] += 1
        counts[pair.second.key_text] += 1
    assert [counts[key] for key in keys[:4]] == [0, 0, 0, 0], "met longer ago"
    assert all(100 < counts[key] < 200 for key in keys[4:]), counts  # 150 expected, deviation 11


def test_a_pair_without_a_readable_answer_is_asked_again_up_to_its_attempts():
    clock = Clock()
    some = desk(asks="pairs", clock=clock, desk_settings=AnnotationDeskSettings(max_attempts=2, lease_seconds=5.0))
    some.see(some.intern([caption("a"), caption("b")]))
    (pair,) = some.take_pairs(9)
    assert some.take_pairs(9) == []
    clock.now = 5.0  # its lease is over
    assert len(some.take_pairs(9)) == 1
    for _ in range(2):
        some.put([preference(pair, PreferenceValue.INVALID)])
        clock.now += 1.0
        last = some.take_pairs(9)
    assert last == []
    assert some.statistics()["annotation/invalid_replies"] == 2
    assert len(some.training_data(newer_than=-1).pair_first) == 0


def test_no_more_pairs_are_asked_than_the_settings_name():
    some = desk(asks="pairs", pairs=PairSettings(max_pairs=3))
    some.see(some.intern([caption(f"key {number}") for number in range(9)]))
    pairs = some.take_pairs(99)
    assert len(pairs) == 3
    some.put([preference(pair) for pair in pairs])
    assert some.take_pairs(99) == []


def test_preferences_are_training_data_with_the_first_ones_share():
    some = desk(asks="pairs")
    some.see(some.intern([caption("a"), caption("b"), caption("c")]))
    pairs = some.take_pairs(3)
    values = [PreferenceValue.FIRST, PreferenceValue.SECOND, PreferenceValue.TIE]
    some.put([preference(pair, value) for pair, value in zip(pairs, values, strict=True)])
    data = some.training_data(newer_than=-1)
    assert data.pair_preference.tolist() == [1.0, 0.0, 0.5]
    assert [data.key_texts[key] for key in data.pair_first] == [pair.first.key_text for pair in pairs]
    assert [data.key_texts[key] for key in data.pair_second] == [pair.second.key_text for pair in pairs]
    assert some.training_data(newer_than=data.version) is None


def test_a_restored_desk_asks_no_judged_pair_and_draws_new_ones():
    some = desk(asks="pairs")
    ids = some.intern([caption("a"), caption("b"), caption("c")])
    some.see(ids)
    (pair,) = some.take_pairs(1)
    some.put([preference(pair)])
    fresh = desk(asks="pairs")
    fresh.restore(some.state())
    fresh.see(ids)
    names = {frozenset((again.first.key_text, again.second.key_text)) for again in fresh.take_pairs(9)}
    assert names | {frozenset((pair.first.key_text, pair.second.key_text))} == {
        frozenset("ab"),
        frozenset("bc"),
        frozenset("ac"),
    }
    assert len(names) == 2
    assert fresh.training_data(newer_than=-1).pair_preference.tolist() == [1.0]


def test_a_restored_desk_goes_on_with_the_votes_that_are_missing_and_asks_a_new_judge_everything():
    some = desk(A, votes=2)
    some.intern([caption("door"), caption("newt")])
    some.put([label("door"), label("newt"), label("newt", 0.0, vote=1)])
    fresh = desk(A, B, votes=2)
    fresh.restore(some.state())
    assert [(request.key_text, request.vote) for request in fresh.take(9, A)] == [("door", 1)]
    assert sorted(asked(fresh, B)) == ["door", "newt"]
    assert table(fresh).value.tolist() == [1.0, 1.0]
