"""How slices of training are asked for: one ahead of that which is made, of all learners alike."""

from __future__ import annotations

import dataclasses
import itertools
import os
import signal
import time
from types import SimpleNamespace

import pytest
import ray

from onibi.clusters.coordinator import learner_team
from onibi.clusters.coordinator.learner_team import LearnerTeam
from onibi.clusters.run_settings import PlacementSettings
from onibi.learners.learner_actor import LearnerNews
from onibi.platform.errors import LearnerLostError, NonFiniteError

NEWS = LearnerNews(updates=1, drawn_rows=8, waited_seconds=0.0, metrics={}, figures={})


class Asked:
    """Stands for the handle of a learner's process: remembers how often it was asked to train."""

    def __init__(self):
        self.train, self.slices, self._numbers = self, 0, itertools.count()

    def remote(self, seconds):
        assert seconds > 0
        self.slices += 1
        return f"{id(self)}-{next(self._numbers)}"


def team_of(*roles):
    team = LearnerTeam(hub=None)
    team.handles = {role: Asked() for role in roles}
    return team, team._train()


class Made:
    """Stands for ``start_actor``: what it made, and in which part of the room."""

    def __init__(self):
        self.parts, self.built = [], []

    def __call__(self, _shell, options, *_arguments):
        self.parts.append(options)
        handle = Asked()
        handle.build = SimpleNamespace(remote=self.built.append)
        return handle


@pytest.mark.parametrize("prepared", [True, False])
def test_processes_that_were_prepared_are_built_in_once_and_then_replaced(monkeypatch, prepared):
    maker, killed = Made(), []
    monkeypatch.setattr(learner_team, "start_actor", maker)
    monkeypatch.setattr(learner_team.ray, "kill", killed.append)
    placement = PlacementSettings(learners=2)
    plan = SimpleNamespace(settings=SimpleNamespace(placement=placement))
    team = LearnerTeam(hub=None)
    room = SimpleNamespace(learner_options=lambda number: number)
    if prepared:
        team.prepare(placement, room)
    asked = team.start(plan, ["ring"], room, 0, None)
    assert maker.parts == [0, 1]
    assert killed == []
    assert [each.args[-1] for each in maker.built] == [0, 1], "each with its number"
    assert sorted(asked.values()) == ["learner", "learner", "learner 1", "learner 1"]
    team._snapshots = ["of a process that is gone"]
    team.start(plan, ["ring"], room, 1, None)  # after a death: never in the same processes again
    assert team._snapshots == []
    assert maker.parts == [0, 1, 0, 1]
    assert len(killed) == 2


def test_the_next_slice_waits_at_the_learner_while_one_is_made():
    team, asked = team_of("learner")
    assert list(asked.values()) == ["learner", "learner"]
    assert list(team.heard("learner", NEWS).values()) == ["learner"]
    assert team.handles["learner"].slices == 3
    assert team.news is NEWS


def test_several_learners_are_asked_for_the_same_slices():
    team, asked = team_of("learner", "learner 1")
    assert len(asked) == 4
    assert team.heard("learner 1", NEWS) == {}
    assert team.news is None, "the first one speaks for all"
    assert team.heard("learner 1", NEWS) == {}, "nobody is asked for more than all have answered"
    assert sorted(team.heard("learner", NEWS).values()) == ["learner", "learner 1"]
    assert sorted(team.heard("learner", NEWS).values()) == ["learner", "learner 1"]
    assert [handle.slices for handle in team.handles.values()] == [4, 4]


def test_an_interval_tells_what_any_of_its_slices_told_and_the_next_one_only_what_is_new():
    team, _ = team_of("learner", "learner 1")
    for role, metrics in [
        ("learner", {"learner/loss": 2.0, "learner/table_version": 1.0}),
        ("learner", {"learner/loss": 1.0, "learner/table_version": 2.0}),
        ("learner 1", {"learner/loss": 9.0}),
        ("learner", {"learner/table_version": 3.0}),  # it waited for the limiter
    ]:
        team.heard(role, dataclasses.replace(NEWS, metrics=metrics))
    assert team.take_metrics() == {"learner/loss": 1.0, "learner/table_version": 3.0}
    assert team.take_metrics() == {}


@ray.remote(num_cpus=0)
def answered(news):
    """A slice that went well, or did not."""
    if isinstance(news, Exception):
        raise news
    return news


@ray.remote(num_cpus=0, max_retries=0)
def died():
    os.kill(os.getpid(), signal.SIGKILL)


def test_the_slices_under_way_are_heard_at_the_end_and_no_more_are_asked_for(small_ray):
    team, _ = team_of("learner", "learner 1")
    slices = team.handles["learner"].slices
    told = [dataclasses.replace(NEWS, updates=n, metrics={"learner/loss": float(n)}) for n in (5, 6)]
    running = {answered.remote(news): "learner" for news in told}
    running |= {answered.remote(NEWS): "learner 1", answered.remote(ValueError("of no learner")): "rollout 0"}
    running |= {died.remote(): "learner 1", answered.remote(LearnerLostError("the other one is gone")): "learner 1"}
    team.stop(running, 60.0)
    assert team.news.updates == 6
    assert team.take_metrics() == {"learner/loss": 6.0}
    assert team.handles["learner"].slices == slices
    team.stop({}, 60.0)


def test_what_a_learner_cannot_go_on_with_is_raised_at_the_end_as_well(small_ray):
    team, _ = team_of("learner")
    with pytest.raises(NonFiniteError, match="NaN everywhere"):
        team.stop({answered.remote(NonFiniteError("NaN everywhere")): "learner"}, 60.0)


@ray.remote(num_cpus=0)
class InALongUpdate:
    """Stands for a learner's process whose update takes ``seconds``."""

    def __init__(self, seconds):
        self._seconds = seconds

    def snapshot(self):
        time.sleep(self._seconds)
        return "its state"


def test_a_learner_in_a_long_update_holds_nobody_up_and_is_asked_once(small_ray, monkeypatch, caplog):
    team = LearnerTeam(hub=None)
    team.handles = {"learner": InALongUpdate.remote(3_600.0)}
    assert team.snapshot() is None
    asked = team._snapshots
    assert team.snapshot(0.1) is None
    assert team._snapshots is asked
    monkeypatch.setattr(learner_team, "_LAST_SNAPSHOT_SECONDS", 0.6)
    monkeypatch.setattr(learner_team, "_STOP_SECONDS", 0.1)
    assert team.last_snapshot() is None
    assert "in an update still; its state is waited for" in caplog.text
    assert "what it learnt since the last checkpoint is lost" in caplog.text
    monkeypatch.setattr(learner_team, "_LAST_SNAPSHOT_SECONDS", 3_600.0)
    assert team.last_snapshot(lambda: True) is None
    team.end()


def test_at_the_end_a_learner_that_dies_is_not_waited_for(small_ray, caplog):
    team = LearnerTeam(hub=None)
    team.handles = {"learner": InALongUpdate.remote(3_600.0)}
    assert team.snapshot() is None
    ray.kill(team.handles["learner"])
    assert team.last_snapshot() is None
    assert "it gave no last state" in caplog.text


def test_the_state_comes_once_the_update_is_made(small_ray, monkeypatch):
    monkeypatch.setattr(learner_team.dataclasses, "replace", lambda state, **_: state)
    team = LearnerTeam(hub=None)
    team.handles = {"learner": InALongUpdate.remote(0.5)}
    assert team.last_snapshot() == "its state"
    team.end()


@ray.remote(num_cpus=0)
class Counting:
    """Stands for a learner whose every state is another one."""

    def __init__(self):
        self._updates = 0

    def snapshot(self):
        self._updates += 1
        return self._updates


def test_the_last_state_is_none_that_was_asked_for_before(small_ray, monkeypatch):
    monkeypatch.setattr(learner_team.dataclasses, "replace", lambda state, **_: state)
    team = LearnerTeam(hub=None)
    team.handles = {"learner": Counting.remote()}
    while (asked := team._snapshots) == []:
        if team.snapshot() is not None:
            continue
    ray.wait(asked)
    assert team.last_snapshot() > 1
    team.end()
