"""A node of a cluster is lost in mid-run, with replay and learner: they go on on another one."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from onibi.clusters.run_state import state_of
from onibi.platform.checkpoint import list_checkpoints, load_checkpoint
from onibi.platform.history import read_history
from onibi.platform.replay.log.log_reader import ReplayLog
from onibi.platform.run_folder import RunFolder

pytestmark = pytest.mark.slow  # three Ray nodes and two sessions on them, a minute

SETTINGS = {
    "actors.count": 1,
    "placement.rollout_resources": "{rollouts: 0.5}",
    "placement.learner_cpus": 1.5,
    "budget.max_env_steps": 10**7,
    "budget.max_seconds": 600,
    "checkpoint.period_seconds": 2,
    "evaluation.period_env_steps": "null",
    "evaluation.episodes": 2,
    "replay.capacity_rows": 200_000,
    "replay.log.seal_seconds": 1,
    "tracking.enabled": "false",
}


@pytest.fixture
def cluster(empty_cluster):
    """A small head, where the run's process and the rollouts are, and two nodes with room for the learner."""
    with empty_cluster(object_store_mib=80) as (cluster, small):
        cluster.add_node(num_cpus=1, resources={"rollouts": 1}, include_dashboard=False, **small)
        for _ in range(2):
            cluster.add_node(num_cpus=2, **small)
        cluster.wait_for_nodes()
        yield cluster


def wait_for(what, process, seconds=150):
    deadline = time.monotonic() + seconds
    while not what():
        assert process.poll() is None and time.monotonic() < deadline, "it ended, or waited in vain"
        time.sleep(0.2)


def node_of_shard(cluster):
    """The cluster's node whose raylet has the replay shard for a child."""
    for node in cluster.worker_nodes:
        raylet = psutil.Process(node.all_processes["raylet"][0].process.pid)
        if any("ShardActor" in " ".join(child.cmdline()) for child in raylet.children(recursive=True)):
            return node
    return None


def test_replay_and_learner_move_to_another_node_with_the_rows_of_the_log(cluster, tmp_path):
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("ONIBI_", "RAY_", "MLFLOW_"))}
    changes = [word for key, value in SETTINGS.items() for word in ("--set", f"{key}={value}")]
    run = RunFolder(tmp_path / "runs" / "moves")
    output = tmp_path / "output.log"
    with output.open("wb") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "onibi", "train", "cartpole-dqn", "--name", "moves", *changes],
            cwd=tmp_path,
            env={**kept, "RAY_ADDRESS": cluster.address, "NO_COLOR": "1"},
            stdout=file,
            stderr=file,
        )
    try:
        sealed = lambda: (row := read_history(run.history)[-1:]) and row[0].get("replay/log_sealed_rows", 0) > 1_000  # noqa: E731
        wait_for(lambda: len(list_checkpoints(run.checkpoints)) > 1 and sealed(), process)
        lost = node_of_shard(cluster)
        for ring in Path("/dev/shm").glob(f"onibi-{run.record().run_id}*"):
            ring.unlink()  # here all nodes share one memory; the lost one takes its own with it
        cluster.remove_node(lost, allow_graceful=False)
        wait_for(lambda: state_of(load_checkpoint(run.checkpoints)).session == 1, process)
        moved = state_of(load_checkpoint(run.checkpoints))
        wait_for(lambda: state_of(load_checkpoint(run.checkpoints)).updates > moved.updates, process)
        found = node_of_shard(cluster)
        assert found is not None and found is not lost
        process.send_signal(signal.SIGINT)
        assert process.wait(90) == 0, output.read_text()
    finally:
        process.kill()
        process.wait()
    assert "all roles begin anew from the checkpoint of" in output.read_text()
    assert "Traceback" not in output.read_text()
    state = state_of(load_checkpoint(run.checkpoints))
    assert run.record().status == "interrupted"
    assert moved.inserted_base == state.inserted_base > 0, "the ring was new"
    steps = [row["actors/env_steps"] for row in read_history(run.history)]
    assert steps == sorted(set(steps))
    rows = ReplayLog(run.path / "replay").dataset().to_table(columns=["role", "episode_id", "step"]).to_pylist()
    assert len({tuple(row.values()) for row in rows}) == len(rows), "no row is there twice"
