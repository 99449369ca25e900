from __future__ import annotations

import math
import sys
from dataclasses import replace
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from faulty_judge import PATH, FaultyJudge

from onibi.actors.annotators.custom import CustomAnnotator, CustomAnnotatorSettings
from onibi.platform.annotation.annotator import AnnotationRequest, PairRequest, label_for
from onibi.platform.annotation.captions import text_hash
from onibi.platform.annotation.labels import Judge, LabelValue, PreferenceValue
from onibi.platform.errors import AnnotatorError, CaptionError, ConfigError


def request(key, vote=0):
    return AnnotationRequest(key=0, key_text=key, raw_text=f"{key}!", vote=vote)


def custom(fault="", path=PATH):
    arguments = {"fault": fault} if path == PATH else {}
    return CustomAnnotator(CustomAnnotatorSettings(path=path, arguments=arguments))


@pytest.mark.parametrize(
    ("fault", "told"),
    [
        ("string", r"annotate yielded 'helpful' \(str\); allowed is onibi\.platform\.annotation\.labels\.Label"),
        ("none", r"annotate yielded None \(NoneType\)"),
        ("few fields", r"raised in annotate \(.*faulty_judge\.py:\d+\): TypeError.*missing 12 required"),
        ("plain value", r"value is 'helpful' \(str\); allowed is one of LabelValue\.HELPFUL"),
        ("other key", r"label of 'door' with key_hash \d+, which is not that of the key_text of a request"),
        ("other judge", r"model='another'.*allowed is its own judge.*model='faulty'"),
        ("score", r"raised in annotate .*score 3\.0 is outside 0 to 1"),
    ],
)
def test_what_is_no_label_of_a_request_is_one_error_that_no_waiting_mends(fault, told):
    with pytest.raises(AnnotatorError, match=told) as caught:
        list(custom(fault).annotate([request("door")], FaultyJudge.goal))
    assert not caught.value.may_pass
    assert PATH in str(caught.value)
    assert "docs/annotators.md" in str(caught.value)


def test_what_the_users_code_raises_by_itself_may_pass():
    with pytest.raises(AnnotatorError, match=r"faulty_judge\.py:\d+\): ValueError\(\"a user's fault\"\)") as caught:
        list(custom("broken").annotate([request("door")], FaultyJudge.goal))
    assert caught.value.may_pass


@pytest.mark.parametrize(
    ("name", "told"), [("NoMethod", r"lacks \['annotate'\]"), ("NotCallable", r"annotate is 'helpful' \(str\)")]
)
def test_an_object_that_cannot_annotate_is_refused_when_it_is_made(name, told):
    with pytest.raises(ConfigError, match=rf"{told}.*docs/annotators\.md"):
        custom(path=f"faulty_judge:{name}")


def test_a_plain_function_is_told_what_an_annotator_is():
    with pytest.raises(
        ConfigError, match=r"sqrt, a class with goal, model, prompt_version, annotate, .*annotators\.md"
    ):
        custom(path="math:sqrt")


def test_a_judge_that_becomes_another_one_is_told_and_does_not_end_a_run():
    annotator = custom(path="faulty_judge:Drifting")
    assert annotator.prompt_version == annotator.prompt_version, "whose labels a run looks for"
    with pytest.raises(AnnotatorError, match=r"allowed is its own judge, Judge\(prompt_version='2'"):
        list(annotator.annotate([request("door")], annotator.goal))


def test_a_judge_that_does_not_say_whose_its_verdicts_are_is_refused():
    with pytest.raises(ConfigError, match=r"raised .*faulty_judge\.py.*ask me later.*tells goal, model and"):
        custom(path="faulty_judge:Shy")


def test_a_key_of_many_pairs_is_asked_and_paid_once_but_for_what_was_unreadable():
    annotator, asked = custom(), []
    scores = {"door": 1.0, "newt": 0.0, "rat": 0.0}

    def annotate(requests, goal):
        asked.extend(each.key_text for each in requests)
        labels = [replace(label_for(annotator._judge, each, scores[each.key_text]), tokens=7) for each in requests]
        unread = {"value": LabelValue.INVALID, "score": math.nan}
        return [replace(label, **unread) if label.key_text == "rat" else label for label in labels]

    annotator._judge.annotate = annotate
    door, newt = request("door"), request("newt")
    pairs = [PairRequest(first=door, second=newt), PairRequest(first=newt, second=door)]
    for paid in (14, 0, 0):
        told = [(each.first_text, each.value, each.tokens) for each in annotator.prefer(pairs, FaultyJudge.goal)]
        assert told == [("door", PreferenceValue.FIRST, paid), ("newt", PreferenceValue.SECOND, 0)]
    assert asked == ["door", "newt"]
    for _ in range(2):
        (one,) = annotator.prefer([PairRequest(first=request("door"), second=request("rat"))], FaultyJudge.goal)
        assert one.value == PreferenceValue.INVALID
    assert asked == ["door", "newt", "rat", "rat"]


def test_preferences_are_checked_as_labels_are():
    annotator = custom()
    pair = PairRequest(first=request("door"), second=request("newt"))
    (preference,) = annotator.prefer([pair], FaultyJudge.goal)
    annotator._judge.prefer = lambda pairs, goal: ["first"]
    with pytest.raises(AnnotatorError, match=r"prefer yielded 'first' \(str\); allowed is .*\.Preference"):
        list(annotator.prefer([pair], FaultyJudge.goal))
    annotator._judge.prefer = lambda pairs, goal: [preference]
    assert list(annotator.prefer([pair], FaultyJudge.goal)) == [preference]
    with pytest.raises(AnnotatorError, match="whose hashes are not those of a pair that was asked"):
        list(annotator.prefer([PairRequest(first=pair.second, second=request("gold"))], FaultyJudge.goal))


@pytest.mark.parametrize(
    ("score", "value"),
    [(0.0, LabelValue.UNHELPFUL), (0.499, LabelValue.UNHELPFUL), (0.5, LabelValue.HELPFUL), (1, LabelValue.HELPFUL)],
)
def test_a_label_is_made_of_a_request_and_a_score(score, value):
    judge = Judge("v", "m", "g")
    label = label_for(judge, request("door", vote=2), score, reply="why", tokens=3, cost=0.5, clock=lambda: 9.0)
    assert (label.value, label.score, label.vote, label.judge) == (value, score, 2, judge)
    assert (label.key_hash, label.key_text, label.raw_text) == (text_hash("door"), "door", "door!")
    assert (label.reply, label.tokens, label.cost, label.time_seconds, label.annotator) == (
        "why",
        3,
        0.5,
        9.0,
        "custom",
    )


def test_no_score_is_an_invalid_label_and_a_wrong_one_is_refused():
    label = label_for(Judge("v", "m", "g"), request("door"), None)
    assert label.value is LabelValue.INVALID
    assert math.isnan(label.score)
    for score in (-0.1, 1.1, math.nan):
        with pytest.raises(CaptionError, match="outside 0 to 1"):
            label_for(Judge("v", "m", "g"), request("door"), score)
