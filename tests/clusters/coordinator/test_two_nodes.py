"""A run over two Ray nodes: rollouts on one, replay and learner on the other."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from ray.util.state import list_actors

from onibi.platform.history import read_history
from onibi.platform.run_folder import RunFolder

STEPS = 8_000  # more than the limiter lets in before the learner has begun


@pytest.fixture
def two_nodes(empty_cluster):
    """(cluster, URL of its dashboard, learners' node, rollouts' node): a small head, as in most clusters, and a node
    that has room for the learner.
    """
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    with empty_cluster() as (cluster, small):
        rollouts = cluster.add_node(
            num_cpus=1, resources={"rollouts": 1}, include_dashboard=True, dashboard_port=port, **small
        )
        learners = cluster.add_node(num_cpus=2, **small)
        cluster.wait_for_nodes()
        yield cluster, f"http://127.0.0.1:{port}", learners.node_id, rollouts.node_id


@pytest.mark.slow  # half a minute
def test_rollouts_on_one_node_feed_the_learner_on_the_other(two_nodes, tmp_path):
    cluster, dashboard, learners, rollouts = two_nodes
    assert learners != rollouts
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("ONIBI_", "RAY_", "MLFLOW_"))}
    settings = {
        "actors.count": 1,
        "placement.rollout_resources": "{rollouts: 0.5}",
        "placement.learner_cpus": 1.5,
        "budget.max_env_steps": STEPS,
        "budget.max_seconds": 120,
        "evaluation.period_env_steps": "null",
        "evaluation.episodes": 2,
        "evaluation.envs": 2,
        "replay.capacity_rows": 20_000,
        "tracking.enabled": "false",
    }
    changes = [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]
    finished = subprocess.run(
        [sys.executable, "-m", "onibi", "train", "cartpole-dqn", "--name", "apart", *changes],
        cwd=tmp_path,
        env={**kept, "RAY_ADDRESS": cluster.address, "NO_COLOR": "1"},
        text=True,
        capture_output=True,
        timeout=200,
    )
    assert finished.returncode == 0, finished.stdout + finished.stderr

    # Ray keeps the records of actors that have ended.
    where = {actor.class_name: actor.node_id for actor in list_actors(address=dashboard, detail=True)}
    assert where["RolloutActor"] == rollouts
    assert where["ShardActor"] == where["LearnerActor"] == learners

    run = RunFolder(tmp_path / "runs" / "apart")
    record = run.record()
    assert record.status == "finished"
    last = read_history(run.history)[-1]
    assert last["actors/env_steps"] >= STEPS  # each of them was stepped on the other node
    assert last["learner/updates"] > 0
    assert list(Path("/dev/shm").glob(f"*{record.run_id}*")) == []
