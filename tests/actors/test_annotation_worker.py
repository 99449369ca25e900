from __future__ import annotations

import math
import random
import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))
from recording_judge import PATH, RecordingJudge

from onibi.actors.annotation_worker import AnnotationWorker
from onibi.actors.annotators.custom import CustomAnnotator, CustomAnnotatorSettings
from onibi.platform.annotation.annotator import AnnotationRequest, PairRequest, judge_of
from onibi.platform.annotation.annotator_health import AnnotatorHealth
from onibi.platform.annotation.labels import PreferenceValue
from onibi.platform.annotation.table import AnnotationTable
from onibi.platform.errors import AnnotatorError, ConfigError


def request(key, vote=0):
    return AnnotationRequest(key=0, key_text=key, raw_text=key, vote=vote)


class Clock:
    now = 50.0

    def __call__(self):
        return self.now


def custom(**arguments):
    return CustomAnnotator(CustomAnnotatorSettings(path=PATH, arguments=arguments))


def custom_judge():
    return judge_of(custom())


def worker(table=None, clock=None, **arguments):
    return AnnotationWorker("mine", custom(**arguments), table, clock or Clock(), random.Random(1))


def test_an_answer_is_on_disk_before_anybody_sees_it(tmp_path):
    some = worker(AnnotationTable(tmp_path))
    for number, _ in enumerate(some.answer([request("door"), request("newt", vote=2)]), start=1):
        assert len(AnnotationTable(tmp_path).all_labels()) == number
    assert [(label.key_text, label.vote) for label in AnnotationTable(tmp_path).all_labels()] == [
        ("door", 0),
        ("newt", 2),
    ]


@pytest.mark.parametrize("trouble", ["down", "bug"])
def test_a_failing_annotator_raises_nothing_and_gives_its_requests_back(trouble):
    some = worker(trouble=trouble, answers=1)
    requests = [request("door"), request("newt"), request("gold")]
    assert [label.key_text for label in some.answer(requests)] == ["door"]
    assert some.unanswered() == requests[1:]
    assert some.unanswered() == []
    figures = some.figures()
    assert (figures["asked"], figures["answered"], figures["failed_batches"], figures["healthy"]) == (3, 1, 1, 0)
    (note,) = some.notes()
    assert "annotator mine cannot judge now" in note


def test_it_is_left_alone_for_longer_and_longer_until_it_judges_again():
    clock = Clock()
    some = worker(clock=clock, trouble="down")
    pauses = []
    for _ in range(9):
        assert list(some.answer([request("door")])) == []
        pauses.append(some.pause_seconds())
        clock.now += pauses[-1]
        assert some.pause_seconds() == 0
    for number, pause in enumerate(pauses):
        longest = min(60.0, 2.0**number)
        assert longest / 2 <= pause <= longest
    assert len(some.notes()) == 1, "told once, not nine times"
    some.annotator._judge.trouble = ""
    assert len(list(some.answer([request("door")]))) == 1
    assert some.pause_seconds() == 0
    assert some.figures()["healthy"] == 1
    assert "judges again after 9 failures" in some.notes()[0]


def test_a_spent_budget_ends_its_questions_for_good():
    clock = Clock()
    some = worker(clock=clock, trouble="spent", answers=3)
    assert len(list(some.answer([request(f"key {number}") for number in range(5)]))) == 3
    clock.now += 1e6
    assert math.isinf(some.pause_seconds())
    assert (some.figures()["budget_spent"], some.figures()["healthy"]) == (1, 0)
    assert "budget of 3 requests is used up" in some.notes()[0]
    assert len(some.unanswered()) == 2


def test_a_table_that_cannot_be_written_costs_no_label(tmp_path, monkeypatch):
    table = AnnotationTable(tmp_path)
    some = worker(table)

    def refuse(records):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(table, "append", refuse)
    assert len(list(some.answer([request("door"), request("newt")]))) == 2
    assert some.figures()["table_failures"] == 2
    (note,) = some.notes()
    assert "No space left" in note


def test_closing_closes_the_annotator_and_seals_the_table(tmp_path):
    some = worker(AnnotationTable(tmp_path))
    list(some.answer([request("door")]))
    some.close()
    assert some.annotator._judge.closed
    assert [path.suffix for path in tmp_path.iterdir() if path.name.startswith("labels")] == [".arrow"]


def test_a_custom_annotator_compares_by_scores_and_costs_something_unless_it_says_otherwise():
    annotator = custom()
    pairs = [PairRequest(first=request("door"), second=request("newt"))]
    (preference,) = annotator.prefer(pairs, annotator.goal)
    assert (preference.value, preference.tokens, preference.cost) == (PreferenceValue.TIE, 20, 1.0)
    assert (annotator.is_free, annotator.statistics(), annotator.goal) == (False, {}, RecordingJudge.goal)


@pytest.mark.parametrize(
    ("path", "arguments", "told"),
    [
        ("", {}, "expected module:name"),
        ("no_such_module_here:Judge", {}, "no_such_module_here"),
        ("recording_judge:Nobody", {}, "Nobody"),
        (PATH, {"tempo": 1}, "tempo"),
        ("fractions:Fraction", {}, "lacks"),
        ("fractions:Fraction", {"numerator": "x"}, "ValueError"),
    ],
)
def test_a_custom_annotator_that_cannot_be_made_is_one_clear_message(path, arguments, told):
    with pytest.raises(ConfigError, match=told):
        CustomAnnotator(CustomAnnotatorSettings(path=path, arguments=arguments))


def test_a_key_among_a_custom_annotators_arguments_is_not_told():
    arguments = {"api_key": "sk-SECRET", "numerator": "sk-SECRET"}
    for path, given in (("fractions:Fraction", arguments), (PATH, {**arguments, "tempo": 1})):
        with pytest.raises(ConfigError, match="must take annotator") as caught:
            CustomAnnotator(CustomAnnotatorSettings(path=path, arguments=given))
        assert "SECRET" not in str(caught.value)
    annotator = custom()
    annotator.settings = CustomAnnotatorSettings(path=PATH, arguments={"api_key": "swordfish"})
    annotator._judge.annotate = lambda requests, goal: int("swordfish")
    with pytest.raises(AnnotatorError, match=r"invalid literal .* '\*\*\*'"):
        list(annotator.annotate([request("door")], "g"))


def test_what_a_custom_annotator_raises_says_whose_fault_it_is():
    annotator = custom()
    annotator._judge.annotate = lambda requests, goal: 5
    with pytest.raises(AnnotatorError, match=r"annotator\.path .* raised in annotate: TypeError"):
        list(annotator.annotate([request("door")], "g"))


def test_health_is_over_all_workers_of_an_annotator():
    health = AnnotatorHealth(dict.fromkeys(("fast", "slow"), custom_judge()))
    assert health.metrics()["annotation/annotators_healthy"] == 0, "nobody told anything yet"
    labels = list(custom().annotate([request(f"key {number}") for number in range(100)], "g"))
    slow = [
        type(label)(**{**vars(label), "latency_seconds": float(number)}) for number, label in enumerate(labels, start=1)
    ]
    health.answered("slow", slow)
    health.tell("slow", 0, {"asked": 60.0, "healthy": 1.0, "budget_spent": 0.0, "retries": 2.0, "queue_seconds": 5.0})
    health.tell("slow", 1, {"asked": 50.0, "healthy": 0.0, "budget_spent": 1.0, "retries": 3.0, "queue_seconds": 4.0})
    health.tell("fast", 0, {"healthy": 1.0, "budget_spent": 0.0})
    metrics = health.metrics()
    assert metrics["annotator/slow/latency_p50_seconds"] == pytest.approx(50.5)
    assert metrics["annotator/slow/latency_p95_seconds"] == pytest.approx(95.05)
    assert (metrics["annotator/slow/asked"], metrics["annotator/slow/retries"]) == (110, 5)
    assert (metrics["annotator/slow/queue_seconds"], metrics["annotator/slow/healthy"]) == (5, 0)
    assert (metrics["annotator/slow/cost"], metrics["annotator/slow/parse_failure_share"]) == (50, 0)
    assert (metrics["annotation/annotators"], metrics["annotation/annotators_healthy"]) == (2, 1)
    assert metrics["annotation/annotators_failing"] == 1
    assert metrics["annotation/tokens"] == 1000


def test_workers_that_share_a_budget_count_it_once():
    health = AnnotatorHealth({"hosted": custom_judge()})
    health.tell("hosted", 0, {"spent_money": 5.0, "budget_left_money": 1.0, "cost": 3.0})
    health.tell("hosted", 1, {"spent_money": 4.0, "budget_left_money": 2.0, "cost": 2.0})
    metrics = health.metrics()
    assert (metrics["annotator/hosted/spent_money"], metrics["annotator/hosted/budget_left_money"]) == (5, 1)
    assert metrics["annotator/hosted/cost"] == 5, "each worker's own"


def test_what_a_process_counted_goes_on_counting_when_it_is_replaced():
    health = AnnotatorHealth({"hosted": custom_judge()})
    counts = {"asked": 9.0, "tokens": 70.0, "cost": 3.0, "failures_timeout": 1.0, "latency_p50_seconds": 4.0}
    health.tell("hosted", 0, counts)
    health.tell("hosted", 1, counts)
    health.tell("hosted", 0, dict.fromkeys(counts, 0.0))
    health.tell("hosted", 0, {**counts, "asked": 1.0, "cost": 0.5, "latency_p50_seconds": 1.0})
    metrics = health.metrics()
    assert (metrics["annotator/hosted/asked"], metrics["annotator/hosted/cost"]) == (9 + 9 + 1, 3 + 3 + 0.5)
    assert (metrics["annotator/hosted/tokens"], metrics["annotator/hosted/failures_timeout"]) == (210, 3)
    assert metrics["annotator/hosted/latency_p50_seconds"] == 4, "the highest of those that are"
    assert metrics["annotation/cost"] == 6.5


def test_figures_of_a_plug_in_that_are_no_numbers_are_left_out():
    some = worker()
    told = {"mood": "good", "nothing": None, "parts": [1], "share": math.nan, "calls": np.int64(3), 4: True}
    some.annotator._judge.statistics = lambda: told
    health = AnnotatorHealth({"mine": custom_judge()})
    health.tell("mine", 0, some.figures())
    health.tell("mine", 1, some.figures())
    metrics = health.metrics()
    assert (metrics["annotator/mine/calls"], metrics["annotator/mine/4"]) == (6, 2)
    assert not {f"annotator/mine/{name}" for name in ("mood", "nothing", "parts", "share")} & metrics.keys()


def test_a_goal_that_cannot_be_told_any_more_raises_nothing():
    class Lost:
        model = prompt_version = "1"

        @property
        def goal(self):
            raise RuntimeError("the goal is lost")

    some = AnnotationWorker("mine", Lost(), None, Clock(), random.Random(1))
    assert list(some.answer([request("door")])) == []
    assert some.unanswered() == [request("door")]
    assert "the goal is lost" in some.notes()[0]


def test_answers_of_another_judge_than_the_run_looks_for_are_told_once(caplog):
    health = AnnotatorHealth({"mine": custom_judge(), "other": custom_judge()})
    health.answered("other", custom().annotate([request("door")], "Reach the end."))
    assert not caplog.records
    for _ in range(2):
        health.answered("mine", custom(prompt_version="r2").annotate([request("door")], "Reach the end."))
    (record,) = caplog.records
    assert "annotator mine answers as Judge(prompt_version='r2'" in record.getMessage()
    assert health.metrics()["annotator/mine/cost"] == 1, "they are paid all the same"
