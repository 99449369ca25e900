"""What a run asks Ray for: all roles are counted, and one that Ray has no room for is named."""

from __future__ import annotations

import time

import pytest
import ray

from onibi.clusters.coordinator import annotator_team
from onibi.clusters.coordinator.annotator_team import AnnotatorTeam
from onibi.clusters.coordinator.ray_session import ray_session
from onibi.clusters.run_plan import plan_run
from onibi.clusters.run_settings import RunSettings
from onibi.platform.config import read_settings
from onibi.platform.errors import ConfigError


@pytest.fixture
def plan_of(workshop):
    """A run of 1.5 CPUs besides its annotators."""

    def plan(placement=None, **changes):
        placement = {"rollout_cpus": 0.5, "learner_cpus": 0.35, **(placement or {})}
        settings = workshop.settings(actors__count=2, placement=placement, **changes)
        return plan_run(read_settings(RunSettings, settings))

    return plan


MODEL = {"kind": "transformers", "model": "nobody/nothing", "prompt": "general"}


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"annotator": {**MODEL, "cpus": 1.0}}, r"asks for 2\.50 CPUs .* \+ 1\.00 for annotators"),
        ({"annotator": {**MODEL, "cpus": 0.3}, "annotation__workers": 2}, r"\+ 0\.60 for annotators"),
        ({"annotators": {"two": {**MODEL, "cpus": 0.9}}}, r"\+ 0\.95 for annotators"),
        ({"annotator": {**MODEL, "cpus": 0.1, "gpus": 1.0}}, "annotators ask for 1; Ray has 0"),
    ],
)
def test_a_run_whose_annotators_ray_could_never_place_is_refused(small_ray, plan_of, changes, told):
    with pytest.raises(ConfigError, match=told), ray_session(plan_of(**changes)):
        pass


@pytest.mark.parametrize("setting", ["learner_resources", "rollout_resources"])
def test_a_custom_resource_that_no_node_has_is_refused(small_ray, plan_of, setting):
    told = rf"placement\.{setting} asks for 0\.5 of 'laerner', Ray has 0\. Start a node that has it"
    with pytest.raises(ConfigError, match=told), ray_session(plan_of({setting: {"laerner": 0.5}})):
        pass


def test_annotators_that_are_never_started_need_no_room(small_ray, plan_of):
    with ray_session(plan_of(annotator={**MODEL, "cpus": 0.4})):
        pass
    unasked = plan_of(annotator={**MODEL, "cpus": 9.0, "gpus": 9.0}, annotation__workers=0)
    with ray_session(unasked):
        pass


def test_an_annotator_that_ray_has_no_place_for_is_told_once(small_ray, plan_of, monkeypatch, caplog):
    monkeypatch.setattr(annotator_team, "_PLACE_SECONDS", 8.0)
    plan = plan_of(annotators={"large": {**MODEL, "cpus": 3.0, "gpus": 2.0}})
    team = AnnotatorTeam(plan, None)  # no hub: those that are placed raise, and are set to work again
    try:
        running = team.start()
        assert len(running) == 2
        deadline = time.monotonic() + 60
        while "annotator large 0 has no process" not in caplog.text:
            assert time.monotonic() < deadline
            running |= team.due()
            time.sleep(0.1)
        team.due()
    finally:
        for handle in team.handles.values():
            ray.kill(handle)
    about_large = "annotator large 0 has no process"  # a busy machine may take as long to start the other's
    told = [record.message for record in caplog.records if about_large in record.message]
    assert len(told) == 1
    assert told[0].startswith("annotator large 0 has no process after 8 s: Ray has no room")
    assert "3 CPUs and 2 GPUs" in told[0]
