"""A hub or shard that hangs: told, given up, and no hindrance for Ctrl-C. And roles that die again and again."""

from __future__ import annotations

import logging
import signal
import time

import psutil
import pytest
import ray

from onibi.clusters.coordinator import patient_calls
from onibi.clusters.coordinator.patient_calls import PatientCalls, end_shard
from onibi.clusters.coordinator.role_deaths import RoleDeaths
from onibi.clusters.run_state import state_of
from onibi.platform.checkpoint import load_checkpoint
from onibi.platform.errors import ReplayError, TrainingError


@ray.remote(num_cpus=0)
class Role:
    def answer(self, seconds):
        time.sleep(seconds)
        return seconds

    def close(self, failed):
        raise ReplayError("the last segment cannot be sealed")


@pytest.fixture
def role(small_ray):
    made = Role.remote()
    ray.get(made.answer.remote(0.0))
    yield made
    ray.kill(made)


def test_an_answer_that_takes_long_is_told_and_given(role, monkeypatch, caplog):
    monkeypatch.setattr(patient_calls, "_WARN_SECONDS", 0.3)
    with caplog.at_level(logging.WARNING):
        assert PatientCalls(60.0, lambda: False)(role.answer.remote(2.0), "the hub") == 2.0
    assert caplog.text.count("the hub has not answered for") in (2, 3), "after 0.3, 0.6 and 1.2 s"


def test_what_never_answers_is_given_up_after_the_patience(role, monkeypatch):
    monkeypatch.setattr(patient_calls, "_LEAST_PATIENCE_SECONDS", 0.5)
    with pytest.raises(TrainingError, match=r"the hub has not answered for \d s \(budget\.patience_seconds\)"):
        PatientCalls(0.5, lambda: False)(role.answer.remote(600.0), "the hub")


def test_ctrl_c_ends_a_wait_without_patience_but_leaves_it_some_seconds(role, monkeypatch):
    monkeypatch.setattr(patient_calls, "_STOP_SECONDS", 3.0)
    assert PatientCalls(None, lambda: True)(role.answer.remote(0.5), "the hub") == 0.5
    with pytest.raises(TrainingError, match="the hub does not answer; the run ends without a last checkpoint"):
        PatientCalls(None, lambda: True)(role.answer.remote(600.0), "the hub")


def test_a_dead_role_is_told(role):
    asked = role.answer.remote(600.0)
    ray.kill(role)
    with pytest.raises(TrainingError, match="the hub died"):
        PatientCalls(None, lambda: False)(asked, "the hub")


def test_a_shard_that_cannot_seal_its_log_is_told(role, caplog):
    with caplog.at_level(logging.WARNING):
        end_shard(role, False, False, 30.0)
    assert "not closed in order" in caplog.text
    assert "the last segment cannot be sealed" in caplog.text


def test_a_learner_that_dies_again_and_again_ends_the_run_unless_checkpoints_are_saved_between():
    deaths = RoleDeaths(actors=2)
    for _ in range(2):
        for _ in range(5):
            deaths.count("learner 0", RuntimeError("gone\nfar away"), learns=True)
        deaths.checkpoint_saved()
    for _ in range(4):
        deaths.count("rollout 1", RuntimeError("gone"), learns=False)
    with pytest.raises(TrainingError, match=r"^15 roles died within 60 s, the last one learner 0 \(gone\)\."):
        deaths.count("learner 0", RuntimeError("gone\nfar away"), learns=True)


def test_deaths_of_learners_are_counted_however_far_apart(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr("onibi.clusters.coordinator.role_deaths.time.monotonic", lambda: clock[0])
    deaths = RoleDeaths(actors=1)
    for _ in range(5):
        clock[0] += 100.0
        deaths.count("learner 0", RuntimeError("gone"), learns=True)
    with pytest.raises(TrainingError, match="learners died 6 times since the last checkpoint"):
        deaths.count("learner 0", RuntimeError("gone"), learns=True)


@pytest.mark.slow
@pytest.mark.parametrize("role", [b"HubActor", b"ShardActor"])
def test_a_run_whose_hub_or_shard_stands_still_goes_on_without_it(workshop, role):
    process = workshop.start(
        serial=False, budget__max_env_steps=10**7, budget__patience_seconds=10.0, checkpoint__period_seconds=1.5
    )
    newest = lambda: state_of(load_checkpoint(workshop.runs / "run" / "checkpoints"))  # noqa: E731
    workshop.wait_for(lambda: workshop.checkpoints() and newest().updates > 0, 150, process)
    (pid,) = workshop.ray_pids(process, role)
    psutil.Process(pid).send_signal(signal.SIGSTOP)
    workshop.wait_for(lambda: newest().session == 1, 150, process)
    before = newest().updates
    workshop.wait_for(lambda: newest().updates > before, 60, process)
    process.send_signal(signal.SIGINT)
    assert process.wait(90) == 0, workshop.log_of()
    assert "all roles begin anew" in workshop.log_of()
    assert not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


@pytest.mark.slow
@pytest.mark.parametrize("role", [b"HubActor", b"ShardActor"])
def test_without_a_checkpoint_a_run_whose_hub_or_shard_stands_still_is_given_up(workshop, role):
    process = workshop.start(serial=False, budget__max_env_steps=10**7, budget__patience_seconds=10.0)
    workshop.wait_for(lambda: workshop.history(), 150, process)
    (pid,) = workshop.ray_pids(process, role)
    psutil.Process(pid).send_signal(signal.SIGSTOP)
    assert process.wait(250) == 1  # a shard that hangs has 75 s to seal its log
    assert "s (budget.patience_seconds)" in workshop.log_of()
    assert workshop.record()["status"] == "failed"
