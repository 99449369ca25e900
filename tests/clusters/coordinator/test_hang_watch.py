"""Environments that never return, under Ray: their processes are replaced and the run goes on."""

from __future__ import annotations

import ctypes
import os
import time
from pathlib import Path

import pytest
import ray

from onibi.clusters.coordinator.hang_watch import HangWatch


@ray.remote(num_cpus=0, max_restarts=-1, max_concurrency=2)
class Player:
    """Is at its environments for as long as it is told; may stop all threads of its process."""

    def __init__(self):
        self.since = None

    def pid(self):
        return os.getpid()

    def play(self):
        self.since = time.monotonic()

    def hold(self):
        ctypes.PyDLL(None).sleep(3600)

    def stepping_seconds(self):
        return 0.0 if self.since is None else time.monotonic() - self.since


@pytest.mark.parametrize("hangs", ["play", "hold"])
def test_a_process_that_hangs_is_replaced_and_no_other(small_ray, hangs):
    players = {"one": Player.remote(), "two": Player.remote()}
    pids = {role: ray.get(player.pid.remote()) for role, player in players.items()}
    watch, told = HangWatch(1.0), []
    deadline = time.monotonic() + 60
    while len(watch._has_answered) < 2:
        watch.look(players, time.monotonic())
        assert time.monotonic() < deadline
    getattr(players["two"], hangs).remote()
    while not told:
        told = watch.look(players, time.monotonic())
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert len(told) == 1 and told[0].startswith("two: its environments have not returned for ")
    while True:
        try:
            successor = ray.get(players["two"].pid.remote())
            break
        except ray.exceptions.RayActorError:
            assert time.monotonic() < deadline
            time.sleep(0.1)
    assert successor != pids["two"]
    assert ray.get(players["one"].pid.remote()) == pids["one"]
    assert not Path("/proc", str(pids["two"])).exists()
    for _ in range(20):
        assert watch.look(players, time.monotonic()) == [], "the new process has time of its own"
        time.sleep(0.05)
    for player in players.values():
        ray.kill(player)


def test_without_a_limit_nobody_is_asked():
    assert HangWatch(None).look({"one": None}, 0.0) == []


@pytest.mark.slow
def test_actors_whose_environments_hang_are_replaced_and_the_run_ends_in_order(workshop, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))
    folder = workshop.runs.parent
    process = workshop.start(
        serial=False,
        environment={"id": "hanging_cartpole:make", "kwargs": {"folder": str(folder), "step_seconds": 0.002}},
        captioner={"kind": "none"},
        rewards={"extrinsic": {}},
        learner={"kind": "dqn", "value_loss": "mse", "batch_size": 16},
        placement={"rollout_cpus": 0.2, "learner_cpus": 0.2},
        actors__count=2,
        actors__rollout={"envs_per_actor": 1, "fragment_steps": 8, "fragment_steps_max": 8},
        actors__hang_seconds=4.0,
        budget__max_env_steps=10_000,
        budget__max_seconds=None,
    )
    assert process.wait(timeout=150) == 0, workshop.log_of()
    told = [line for line in workshop.log_of().splitlines() if "have not returned" in line]
    assert len(told) == 2 and all("actors.hang_seconds 4" in line for line in told)
    for name in ("asleep", "holding"):
        pid = (folder / name).read_text()
        assert not Path("/proc", pid).exists()
