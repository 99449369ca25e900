"""Annotators as Ray actors at a real hub: what a process had that dies, is set to work twice, or is told to stop."""

from __future__ import annotations

import functools
import os
import signal
import time
from collections import Counter
from pathlib import Path

import pytest
import ray

from onibi.clusters.coordinator.annotator_team import AnnotatorTeam
from onibi.clusters.coordinator.hub_actor import HubActor
from onibi.clusters.run_plan import plan_run
from onibi.clusters.run_settings import RunSettings
from onibi.clusters.run_state import make_desk
from onibi.platform.annotation.table import AnnotationTable
from onibi.platform.config import read_settings
from onibi.platform.errors import ConfigError
from onibi.platform.fragment import CaptionText, KeyText

KEYS = 12


class DriftingJudge:
    """As a judge whose prompt file differs on the node that its process got; it writes down what it is asked."""

    goal, model = "Reach the end.", "drifter"

    def __init__(self, record: str) -> None:
        self._record = Path(record)
        is_judge = b"ray::AnnotatorActor" in Path("/proc/self/cmdline").read_bytes()
        self.prompt_version = "newer" if is_judge else "p"

    def annotate(self, requests, goal):
        self._record.write_text("asked", encoding="utf-8")
        return iter(())


@pytest.fixture(scope="module", autouse=True)
def judges():
    """The recording judge's module, for this process; those that Ray starts find it anyhow."""
    with pytest.MonkeyPatch.context() as changed:
        changed.syspath_prepend(str(Path(__file__).parents[2] / "actors"))
        yield


class Annotation:
    """A hub and one worker of a slow judge that writes down what it answers."""

    def __init__(self, settings, record):
        self.plan = plan_run(read_settings(RunSettings, settings)).for_stores()
        self.hub = HubActor.options(max_concurrency=100).remote(
            functools.partial(make_desk, self.plan), self.plan.judges(), [], None, None, False
        )
        self.team = AnnotatorTeam(self.plan, self.hub)
        ((self.role, self.worker),) = self.team.handles.items()
        self._record = record

    def hears(self, *texts):
        captions = [CaptionText(text, (KeyText(text, askable=True),)) for text in texts]
        ray.get(self.hub.intern.remote(captions))

    def figure(self, name):
        return ray.get(self.hub.statistics.remote())[f"annotation/{name}"]

    def answered(self):
        lines = self._record.read_text(encoding="utf-8").splitlines() if self._record.exists() else []
        return [line.split("\t")[0] for line in lines]

    def wait_for(self, condition, seconds=60.0):
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, f"not within {seconds} s; answered: {self.answered()}"
            time.sleep(0.05)

    def close(self):
        for handle in (self.worker, self.hub):
            ray.kill(handle)


@pytest.fixture
def make_annotation(judges, small_ray, workshop, tmp_path):
    made = []

    def make(seconds=None, path="recording_judge:RecordingJudge"):
        record = tmp_path / "record"
        arguments = {"record": str(record)} if seconds is None else {"record": str(record), "seconds": seconds}
        settings = workshop.settings(
            annotator={"kind": "custom", "path": path, "arguments": arguments},
            annotation__workers=1,
            annotation__desk__lease_seconds=3_600.0,
        )
        made.append(Annotation(settings, record))
        return made[-1]

    yield make
    for each in made:
        each.close()


def test_what_a_killed_worker_had_is_answered_by_its_successor(make_annotation):
    annotation = make_annotation(0.2)
    annotation.hears(*map(str, range(KEYS)))
    running = annotation.team.start()
    annotation.wait_for(lambda: len(annotation.answered()) >= 2)
    os.kill(ray.get(annotation.worker.usage.remote()).pid, signal.SIGKILL)
    (ended,), _ = ray.wait(list(running), timeout=60)
    with pytest.raises(ray.exceptions.RayActorError) as death:
        ray.get(ended)
    assert annotation.team.lost(running[ended], death.value)
    del running[ended]

    def all_labelled():
        """What the run's watch does meanwhile: Ray may take long to start a process, and refuses calls until then."""
        for reference in ray.wait(list(running), timeout=0)[0] if running else ():
            try:
                ray.get(reference)
            except ray.exceptions.RayActorError as error:
                annotation.team.lost(running.pop(reference), error)
        running.update(annotation.team.due())
        return annotation.figure("keys_labelled") == KEYS

    annotation.wait_for(all_labelled)


def test_a_worker_that_is_another_judge_in_its_process_is_refused_and_asked_nothing(make_annotation):
    annotation = make_annotation(path=f"{__name__}:DriftingJudge")
    annotation.hears("door")
    running = annotation.team.start()
    with pytest.raises(ray.exceptions.RayTaskError) as refusal:
        ray.get(list(running), timeout=60)
    assert "prompt_version='newer'" in str(refusal.value.cause) and "prompt_version='p'" in str(refusal.value.cause)
    with pytest.raises(ConfigError, match=r"annotator custom is Judge.* where the run was started it is Judge"):
        annotation.team.lost(annotation.role, refusal.value.cause)
    assert annotation.answered() == []


def test_what_cannot_begin_ends_the_run_and_what_cannot_begin_again_does_not(make_annotation):
    annotation = make_annotation(0.0)
    assert "was lost and is replaced" in annotation.team.lost(annotation.role, OSError("its node is gone"))
    told = annotation.team.lost(annotation.role, ConfigError("not on this node"))
    assert told.endswith("training goes on: not on this node")


def test_a_worker_that_is_set_to_work_twice_asks_nothing_twice_and_its_first_call_ends(make_annotation):
    annotation = make_annotation(1.0)
    annotation.hears(*map(str, range(4)))
    (first,) = annotation.team.start()
    annotation.wait_for(lambda: len(annotation.answered()) >= 1)
    second = annotation.worker.run.remote(annotation.hub)
    assert ray.wait([first, second], timeout=60)[0] == [first]
    ray.get(first)
    annotation.wait_for(lambda: annotation.figure("keys_labelled") == 4)
    ray.get(annotation.worker.stop.remote())
    ray.get(second, timeout=60)
    assert set(Counter(annotation.answered()).values()) == {1}


def test_a_worker_that_was_told_to_stop_asks_nothing_more(make_annotation):
    annotation = make_annotation(0.0)
    annotation.hears("door")
    (running,) = annotation.team.start()
    annotation.wait_for(lambda: annotation.figure("keys_labelled") == 1)
    ray.get(annotation.worker.stop.remote())  # it waits for a question now, for seconds
    annotation.hears("newt")
    ray.get(running, timeout=30)
    assert annotation.answered() == ["door"]
    assert annotation.figure("in_flight_keys") == 0


def test_what_a_worker_was_asked_before_it_was_told_to_stop_is_answered_and_counts(make_annotation):
    """Of a paid judge, what was sent is paid: a run that is resumed would pay it again."""
    annotation = make_annotation(0.15)
    annotation.hears(*map(str, range(6)))
    (running,) = annotation.team.start()
    annotation.wait_for(annotation.answered)
    ray.get(annotation.worker.stop.remote())
    ray.get(running, timeout=30)
    assert len(annotation.answered()) == 6
    assert annotation.figure("keys_labelled") == 6


def test_a_worker_with_a_long_batch_that_was_told_to_stop_leaves_the_rest(make_annotation):
    annotation = make_annotation(0.25)
    annotation.hears(*map(str, range(60)))
    (running,) = annotation.team.start()
    annotation.wait_for(annotation.answered)
    ray.get(annotation.worker.stop.remote())
    ray.get(running, timeout=30)
    assert 1 < len(annotation.answered()) < 60
    assert annotation.figure("keys_labelled") == len(annotation.answered())


def test_labels_that_cost_nothing_are_kept_neither_by_their_annotator_nor_by_the_hub(small_ray, workshop, tmp_path):
    settings = workshop.settings(
        annotator={"kind": "custom", "path": "recording_judge:RecordingJudge", "arguments": {}},
        annotators={"words": {"kind": "lexicon", "lexicon": "all_ones"}},
        annotation__workers=1,
    )
    plan = plan_run(read_settings(RunSettings, settings)).with_annotation_table(tmp_path).for_stores()
    hub = HubActor.options(max_concurrency=100).remote(
        functools.partial(make_desk, plan), plan.judges(), plan.keeping_judges(), plan.annotation_table, None, False
    )
    team = AnnotatorTeam(plan, hub)
    try:
        ray.get(hub.intern.remote([CaptionText(text, (KeyText(text),)) for text in ("door", "newt")]))
        running = team.start()
        deadline = time.monotonic() + 60
        while ray.get(hub.statistics.remote())["annotation/replies"] < 4:  # each key by both
            assert time.monotonic() < deadline
            time.sleep(0.05)
        for handle in team.handles.values():
            ray.get(handle.stop.remote())
        ray.get(list(running), timeout=60)
        labels = AnnotationTable(tmp_path / "annotations").all_labels()
        assert [label.annotator for label in labels] == ["custom", "custom"]
    finally:
        for handle in (*team.handles.values(), hub):
            ray.kill(handle)
