"""What annotation costs, and what survives: whole runs with an annotator that writes down what it answers."""

from __future__ import annotations

import os
import signal
from collections import Counter
from pathlib import Path

import pytest

from onibi.platform.annotation.labels import LabelTable
from onibi.platform.annotation.table import AnnotationTable
from onibi.platform.checkpoint import load_checkpoint
from onibi.platform.errors import ConfigError

JUDGES = Path(__file__).parents[1] / "actors"


@pytest.fixture(autouse=True)
def judges(monkeypatch):
    """The recording judge's module, for this process and for those that it starts."""
    monkeypatch.syspath_prepend(str(JUDGES))
    monkeypatch.setenv("PYTHONPATH", str(JUDGES))


def recording(record="", **arguments):
    return {"kind": "custom", "path": "recording_judge:RecordingJudge", "arguments": {"record": record, **arguments}}


def listening(workshop, **changes):
    """A corridor with 500 noises to be heard: many keys, few steps."""
    return {
        "environment": {
            "id": "onibi.actors.environments.listening_corridor:make",
            "vectorization": "native",
            "max_episode_steps": 120,
        },
        "annotator": recording(str(workshop.runs.parent / "record")),
        "actors__rollout": {"envs_per_actor": 8, "fragment_steps": 32, "fragment_steps_max": 32},
        "replay__capacity_rows": 8_000,
        "replay__limiter": {"samples_per_insert": 0.1, "minimum_rows": 500, "tolerance_rows": 1_000},
        "replay__log": {"enabled": False},
        "budget__max_env_steps": 20_000,
        **changes,
    }


def answered(workshop, name="record"):
    """(key, vote) of every answer, as the judge wrote them down."""
    path = workshop.runs.parent / name
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return [tuple(line.split("\t")[:2]) for line in lines]


def kept(workshop, folder="annotations"):
    return [(label.key_text, str(label.vote)) for label in AnnotationTable(workshop.runs / folder).all_labels()]


def test_each_key_is_asked_once_and_a_second_run_on_the_same_table_asks_next_to_nothing(workshop):
    first = workshop.train("first", **listening(workshop))
    asked = answered(workshop)
    figures = first.figures
    assert len(asked) == len(set(asked)) == figures["annotation/asked_keys"], "none twice"
    assert len(asked) <= figures["annotation/keys_askable"]
    assert len(asked) > 300, "most of the 500 noises"
    assert len(asked) < 0.05 * first.env_steps, "one call a step would be twenty times as many"
    assert figures["annotation/duplicate_labels"] == 0
    desks = {name for name in figures if name.startswith("annotation/") and name.endswith("_seconds")}
    assert not {name for name in desks if "latency" not in name}, "a serial run's desk counts env steps, not seconds"
    assert sorted(kept(workshop)) == sorted(asked)
    second = workshop.train("second", **listening(workshop, seed=8))
    again = answered(workshop)[len(asked) :]
    assert len(again) < 0.05 * len(asked)
    assert not set(again) & set(asked)
    assert second.figures["annotation/keys_labelled"] >= 0.9 * len(asked), "it knows what the first one was told"


@pytest.mark.slow
def test_a_label_table_is_not_shared_where_the_settings_say_none(workshop):
    for name in ("first", "second"):
        workshop.train(name, annotator=recording(str(workshop.runs.parent / "record")), annotation__table="none")
    assert max(Counter(answered(workshop)).values()) == 2, "each run asked anew"
    assert not (workshop.runs / "annotations").exists()


def test_a_run_whose_annotator_is_down_is_paid_by_the_labels_of_another_run(workshop):
    workshop.train("first", annotator=recording())
    more_rooms = {"rooms": 5, "room_length": 2}
    result = workshop.train("second", annotator=recording(trouble="down"), environment__kwargs=more_rooms)
    assert result.figures["annotation/annotators_failing"] == 1
    assert result.figures["annotation/keys_labelled"] > 0
    assert result.paid.sum() > 0


def test_annotators_work_side_by_side_and_each_key_gets_its_votes_from_each(workshop):
    result = workshop.train(
        annotator=recording(str(workshop.runs.parent / "one")),
        annotators={
            "two": recording(str(workshop.runs.parent / "two"), prompt_version="r2"),
            "down": recording(prompt_version="r3", trouble="down"),
            "rules": {"kind": "lexicon", "lexicon": "all_ones"},
        },
        annotation__votes=2,
        annotation__table=str(workshop.runs / "labels"),
    )
    figures = result.figures
    for name in ("one", "two"):
        told = Counter(key for key, _ in answered(workshop, name))
        assert set(told.values()) == {2}, "two votes"
        assert len(told) == figures["annotation/keys_askable"]
        assert len(set(answered(workshop, name))) == len(answered(workshop, name))
    assert (figures["annotation/annotators"], figures["annotation/annotators_healthy"]) == (4, 3)
    assert figures["annotator/down/failed_batches"] >= 1
    assert figures["annotator/two/cost"] == 0.5 * len(answered(workshop, "two"))
    labels = AnnotationTable(workshop.runs / "labels").all_labels()
    assert {label.prompt_version for label in labels} >= {"r1", "r2"}
    assert {label.annotator for label in labels} == {"custom", "lexicon"}, "a named table keeps free ones, too"


@pytest.mark.parametrize("name", ["lexicon", "two words", ""])
def test_an_annotator_needs_a_name_of_its_own(workshop, name):
    with pytest.raises(ConfigError, match="annotators has the name"):
        workshop.train(annotators={name: recording()})


def test_a_spent_budget_ends_the_questions_and_not_the_run(workshop):
    result = workshop.train(annotator=recording(str(workshop.runs.parent / "record"), trouble="spent", answers=2))
    assert result.env_steps >= 600
    assert len(answered(workshop)) == 2
    assert result.figures["annotation/annotators_spent"] == 1
    assert result.figures["annotation/annotators_healthy"] == 0


def test_labels_held_back_pay_from_their_step_on(workshop):
    changes = {"annotation__delay_steps": 300, "tracking__enabled": False}
    result = workshop.train(**changes)
    assert result.figures["annotation/keys_labelled"] > 0
    assert result.paid.sum() > 0
    late = workshop.train("late", annotation__delay_steps=10_000)
    assert late.figures["annotation/keys_labelled"] > 0, "they are collected"
    assert late.paid.sum() == 0, "and not paid"


@pytest.mark.slow
def test_a_serial_run_with_labels_that_cost_something_repeats_bit_for_bit(workshop):
    results = [
        workshop.train(name, annotator=recording(), annotation__table="none", annotation__votes=2)
        for name in ("a", "b")
    ]
    assert results[0].paid.tolist() == results[1].paid.tolist()
    assert results[0].paid.sum() > 0
    first, second = (load_checkpoint(workshop.runs / name / "checkpoints") for name in ("a", "b"))
    assert all((first.tensors["learner"][name] == value).all() for name, value in second.tensors["learner"].items())


def test_pairs_are_asked_where_the_reward_is_learnt_from_preferences(workshop):
    result = workshop.train(
        annotator=recording(str(workshop.runs.parent / "record")),
        rewards__intrinsic={"kind": "ranking", "coefficient": 0.1, "episode_high": 3.0},
        rewards__extrinsic={"coefficient": 1.0, "episode_low": 0.0, "episode_high": 1.0},
    )
    preferences = AnnotationTable(workshop.runs / "annotations").all_preferences()
    pairs = [frozenset((one.first_text, one.second_text)) for one in preferences]
    assert len(pairs) == len(set(pairs)) == result.figures["annotation/pairs_judged"] > 0
    assert AnnotationTable(workshop.runs / "annotations").all_labels() == []


@pytest.mark.slow
def test_two_runs_at_once_share_a_table_lose_no_answer_and_ask_nothing_twice(workshop):
    """What one has asked or is asking the other does not ask: not a single answer is paid twice."""
    changes = listening(workshop, annotation__table=str(workshop.runs / "both"), annotation__batch_keys=4)
    changes["annotator"] = recording(str(workshop.runs.parent / "record"), seconds=0.01)
    # The same seed: both hear the same things at the same time.
    processes = {name: workshop.start(name, **changes) for name in ("one", "two")}
    codes = {name: process.wait(timeout=300) for name, process in processes.items()}
    assert codes == {"one": 0, "two": 0}, workshop.log_of("one") + workshop.log_of("two")
    told, table = answered(workshop), AnnotationTable(workshop.runs / "both")
    kept_answers = {(label.key_text, str(label.vote)) for label in table.all_labels()}
    assert table.damage == []
    assert kept_answers == set(told), "no answer is lost"
    for name in processes:
        assert workshop.history(name)[-1]["annotation/keys_labelled"] > 300
    assert max(Counter(told).values()) == 1, "each hears of the other's questions and answers while it runs"


def labels_in_checkpoint(workshop, name):
    return LabelTable.from_arrow(load_checkpoint(workshop.runs / name / "checkpoints").tables["labels"])


@pytest.mark.slow
def test_a_serial_run_killed_in_the_middle_loses_no_answer_and_asks_none_again(workshop):
    changes = listening(workshop, budget__max_env_steps=10**9, budget__max_seconds=None)
    changes["annotator"] = recording(str(workshop.runs.parent / "record"), seconds=0.01)
    changes |= {"annotation__batch_keys": 4, "checkpoint__period_seconds": 2.0}
    process = workshop.start(**changes)
    workshop.wait_for(workshop.checkpoints, process=process)
    saved = len(answered(workshop))
    workshop.wait_for(lambda: len(answered(workshop)) > saved + 20, process=process)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    before = answered(workshop)
    missing = set(before) - set(kept(workshop))
    # The judge writes an answer down before it hands it over: one may have been on its way.
    assert missing <= {before[-1]}
    assert len(labels_in_checkpoint(workshop, "run")) < len(before), "the checkpoint is older than the kill"
    result = workshop.resume(overrides=["budget.max_env_steps=null", "budget.max_seconds=4"])
    assert result.status == "finished"
    again = answered(workshop)[len(before) :]
    assert not set(again) & (set(before) - missing), "what was answered before the kill is not asked again"
    assert len(labels_in_checkpoint(workshop, "run")) >= len(set(before) - missing)


@pytest.mark.slow
def test_under_ray_annotators_may_hang_die_and_fail_and_no_answer_is_lost_or_asked_twice(workshop):
    record = str(workshop.runs.parent / "record")
    changes = listening(workshop, budget__max_env_steps=None, budget__max_seconds=600)
    changes |= {
        "annotator": recording(record, seconds=0.02, trouble="hangs", answers=30, once=f"{record}.hung"),
        "annotators": {
            "down": recording(prompt_version="r2", trouble="down"),
            "broken": recording(prompt_version="r3", trouble="bug"),
        },
        "annotation__workers": 1,
        "annotation__hang_seconds": 3.0,
        "annotation__desk__lease_seconds": 3_600.0,
        "actors__count": 1,
        "placement": {"rollout_cpus": 0.2, "learner_cpus": 0.2},
    }
    process = workshop.start(serial=False, **changes)
    workshop.wait_for(lambda: len(answered(workshop)) > 60, seconds=150, process=process)
    assert Path(f"{record}.hung").exists(), "its first process hung and was replaced"
    steps = workshop.history()[-1]["actors/env_steps"]
    pids = workshop.ray_pids(process, b"AnnotatorActor")
    assert len(pids) == 3, "one for each annotator"
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    killed_at = len(answered(workshop))
    workshop.wait_for(lambda: len(answered(workshop)) > killed_at + 30, seconds=150, process=process)
    workshop.wait_for(lambda: workshop.history()[-1]["actors/env_steps"] > steps, process=process)
    row = workshop.history()[-1]
    assert 0 < row["annotation/label_delay_p50_seconds"] <= row["annotation/label_delay_p95_seconds"] < 600
    assert row["annotator/down/failed_batches"] >= 1
    assert row["annotator/broken/healthy"] == 0
    assert row["annotator/custom/latency_p50_seconds"] == pytest.approx(0.02)
    os.killpg(process.pid, signal.SIGINT)
    process.wait(timeout=90)
    told = answered(workshop)
    lost = set(told) - set(kept(workshop))
    assert len(lost) <= 2, "at most one on its way in each process that was killed"
    twice = {answer for answer, count in Counter(told).items() if count > 1}
    assert twice <= lost
    assert max(Counter(kept(workshop)).values()) == 1


@pytest.mark.slow
def test_a_ray_run_killed_as_a_whole_loses_no_answer_and_asks_none_again(workshop):
    changes = listening(workshop, budget__max_env_steps=None, budget__max_seconds=600)
    changes["annotator"] = recording(str(workshop.runs.parent / "record"), seconds=0.02)
    changes |= {"actors__count": 1, "checkpoint__period_seconds": 5.0, "annotation__batch_keys": 4}
    changes |= {"placement": {"rollout_cpus": 0.2, "learner_cpus": 0.2}}
    process = workshop.start(serial=False, **changes)
    begun = lambda: workshop.history() and workshop.checkpoints() and len(answered(workshop)) > 60  # noqa: E731
    workshop.wait_for(begun, 150, process)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    workshop.wait_for(lambda: not workshop.ray_pids(process, b"AnnotatorActor"), 30)
    before = answered(workshop)
    missing = set(before) - set(kept(workshop))
    # The judge writes an answer down before it hands it over: a batch of them may have been on its way to the hub.
    assert missing <= set(before[-4:])
    seconds = workshop.history()[-1]["time/seconds"] + 6
    again = workshop.start(command="resume", overrides=[f"budget.max_seconds={seconds}"])
    assert again.wait(timeout=200) == 0, workshop.log_of(command="resume")
    after = answered(workshop)[len(before) :]
    assert not set(after) & (set(before) - missing), "what was answered before the kill is not asked again"
    assert set(before) - missing <= set(kept(workshop))
