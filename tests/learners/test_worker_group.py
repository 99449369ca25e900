"""Several learners in real processes over gloo, without Ray."""

from __future__ import annotations

import importlib.util
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from onibi.learners.worker_group import joined_group, use_interface_of

SCRIPT = Path(__file__).with_name("group_worker.py")
SECONDS = 120


@pytest.fixture
def worker_script():
    """The script as a module."""
    found = importlib.util.spec_from_file_location("group_worker", SCRIPT)
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module


@pytest.fixture
def start(tmp_path):
    """Starts workers; ends those that are left."""
    started = []

    def begin(size, updates, *more, rendezvous=f"file://{tmp_path / 'rendezvous'}"):
        for rank in range(size):
            command = [sys.executable, str(SCRIPT), str(rank), str(size), rendezvous, str(tmp_path), str(updates)]
            with (tmp_path / f"errors-{rank}").open("wb") as errors:
                started.append(subprocess.Popen([*command, *more], stderr=errors, cwd=tmp_path))
        return started

    yield begin
    for process in started:
        process.kill()
        process.wait()


def states_of(processes, folder):
    for rank, process in enumerate(processes):
        assert process.wait(SECONDS) == 0, (folder / f"errors-{rank}").read_text(encoding="utf-8")
    return [torch.load(folder / f"state-{rank}.pt") for rank in range(len(processes))]


def test_parameters_of_two_workers_are_equal_bit_for_bit_after_1000_updates_on_batches_of_their_own(start, tmp_path):
    first, second = states_of(start(2, 1_000), tmp_path)
    different = [name for name in first if not torch.equal(first[name], second[name])]
    assert different == []  # parameters, target, moments, running statistics, counters
    assert first["counters.updates"] == 1_000
    assert first["counters.skipped_updates"] == 1  # one worker's batch was not finite: both left it out
    assert first["network.encoder.normalizer.count"] == 16 * 999


def test_two_on_policy_workers_have_equal_parameters_statistics_and_scale_of_rewards_after_1000_steps(start, tmp_path):
    first, second = states_of(start(2, 250, "slabs"), tmp_path)
    different = {name for name in first if not torch.equal(first[name], second[name])}
    assert different == {"reward_normalizer.lane_returns"}  # those of lanes of their own
    assert first["counters.updates"] == 1_000
    assert first["counters.skipped_updates"] == 2  # once in each epoch the lane with NaN is dealt to a minibatch
    assert first["reward_normalizer.count"] == 250 * 4 * 8  # the first one's rows
    assert first["reward_normalizer.variance"] > 1.0


def test_two_workers_on_half_a_batch_each_learn_what_one_learns_from_the_whole(start, tmp_path, worker_script):
    state, _ = states_of(start(2, 50, "halves"), tmp_path)
    alone, rng = worker_script.learner_of(normalize=False), np.random.default_rng(0)
    for _ in range(50):
        windows = worker_script.windows_of(rng, worker_script.ROWS)
        alone.update(windows, windows.reward)
    for name, tensor in alone.state_dict().items():
        if name.startswith(("network.", "optimizer.")):
            torch.testing.assert_close(state[name], tensor, atol=2e-5, rtol=1e-3, msg=name)


@pytest.mark.slow
def test_a_worker_whose_peer_is_killed_says_so_instead_of_waiting(start, tmp_path):
    alive, killed = start(2, 10**6)
    deadline = time.monotonic() + SECONDS
    while not (tmp_path / "began-1").exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    killed.send_signal(signal.SIGKILL)
    assert alive.wait(SECONDS) == 1
    errors = (tmp_path / "errors-0").read_text(encoding="utf-8")
    assert "LearnerLostError: learner 0 of 2: the others do not answer" in errors


def test_a_process_that_joined_no_group_learns_alone():
    assert joined_group() is None


def test_workers_meet_at_a_port_as_well(start, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as server:
        rendezvous = f"tcp://127.0.0.1:{server.getsockname()[1]}"
    first, second = states_of(start(2, 20, rendezvous=rendezvous), tmp_path)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_the_interface_of_an_address_is_chosen_unless_the_user_chose_one(monkeypatch):
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "any")  # so that it is as before afterwards
    monkeypatch.delenv("GLOO_SOCKET_IFNAME")
    use_interface_of("203.0.113.77")
    assert "GLOO_SOCKET_IFNAME" not in os.environ, "of no machine"
    use_interface_of("127.0.0.1")
    assert os.environ["GLOO_SOCKET_IFNAME"] == "lo"
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "mine")
    use_interface_of("127.0.0.1")
    assert os.environ["GLOO_SOCKET_IFNAME"] == "mine"
