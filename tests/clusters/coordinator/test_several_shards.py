"""Runs with a replay shard beside each of two learners: on two Ray nodes, killed, and gone on with."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from onibi.clusters.run_state import state_of
from onibi.platform.checkpoint import list_checkpoints, load_checkpoint
from onibi.platform.history import read_history
from onibi.platform.replay.log.log_reader import ReplayLog
from onibi.platform.run_folder import RunFolder

TWO = {"placement": {"shards": 2, "learners": 2, "learner_cpus": 0.25, "rollout_cpus": 0.25}}
SLABS = {
    "learner": {"kind": "appo", "rows": 4, "batch_lanes": 2, "value_loss": "mse"},
    "replay__limiter": {"samples_per_insert": 1},
}


def checkpoint_of(workshop):
    return load_checkpoint(workshop.runs / "run" / "checkpoints")


def check_log(folder, env_steps):
    """Whether the log has each of so many env steps once, from both shards, whose last bytes are sealed."""
    log = ReplayLog(folder / "replay")
    assert {segment.shard for segment in log.segments} == {0, 1}
    assert log.verify() == []
    rows = log.dataset().to_table(columns=["role", "episode_id", "step"]).to_pylist()
    assert len({tuple(row.values()) for row in rows}) == len(rows), "no row is there twice"
    steps = sum(row["role"] == 0 for row in rows)
    assert steps == env_steps
    return log


def test_two_learners_update_together_from_rings_of_their_own(workshop):
    result = workshop.train(serial=False, **TWO)
    state = state_of(checkpoint_of(workshop))
    assert result.status == "finished"
    assert 600 <= result.env_steps == state.env_steps < 600 + 2 * 16, "a fragment of each shard at most is too much"
    assert state.drawn_rows == 2 * 16 * state.updates > 0, "of both rings"
    feeds = [checkpoint_of(workshop).state[name] for name in ("feed", "feed-1")]
    assert feeds[0]["sampler"]["generator"] != feeds[1]["sampler"]["generator"]
    check_log(workshop.runs / "run", result.env_steps)
    assert list(workshop.rings.iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize("learner", [{}, SLABS], ids=["windows", "slabs"])
def test_a_resumed_run_goes_on_with_both(workshop, learner):
    result = workshop.train(serial=False, **TWO, **learner)
    state = state_of(checkpoint_of(workshop))
    assert result.status == "finished"
    assert state.updates > 15
    if learner:  # 2 lanes x 4 rows for each of the two, of which final rows do not count
        assert 0.5 * 16 * state.updates < state.drawn_rows <= 16 * state.updates
    later = workshop.resume(overrides=["budget.max_env_steps=1200"])
    assert later.status == "finished"
    assert 1_200 <= later.env_steps < 1_200 + 2 * 16
    assert state_of(checkpoint_of(workshop)).updates > state.updates + 10
    log = check_log(workshop.runs / "run", later.env_steps)
    assert log.captions().num_rows > 0, "of both shards"
    assert list(workshop.rings.iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize("role", ["ray::ShardActor", "ray::LearnerActor", "ray::RolloutActor"])
def test_whoever_of_them_is_killed_the_run_goes_on(workshop, role):
    process = workshop.start(
        serial=False,
        budget__max_env_steps=10**7,
        checkpoint__period_seconds=1.5,
        replay__capacity_rows=400_000,
        replay__log={"enabled": True, "seal_seconds": 0.5},
        **TWO,
    )
    try:
        learnt = lambda: workshop.checkpoints() and state_of(checkpoint_of(workshop)).updates > 0  # noqa: E731
        workshop.wait_for(learnt, 200, process)
        named = [
            child
            for child in psutil.Process(process.pid).children(recursive=True)
            if " ".join(child.cmdline()).startswith(role)
        ]
        assert len(named) == 2
        updates = state_of(checkpoint_of(workshop)).updates
        named[1].kill()
        workshop.wait_for(lambda: state_of(checkpoint_of(workshop)).updates > updates + 50, 200, process)
        process.send_signal(signal.SIGINT)
        assert process.wait(120) == 0, workshop.log_of()
    finally:
        process.kill()
    assert "Traceback" not in workshop.log_of()
    log = ReplayLog(workshop.runs / "run" / "replay")
    assert log.verify() == []
    rows = log.dataset().to_table(columns=["role", "episode_id", "step"]).to_pylist()
    assert len({tuple(row.values()) for row in rows}) == len(rows), "no row is there twice"
    assert list(workshop.rings.iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize("lost", [(), ("-1",)], ids=["both rings are there", "one ring is gone"])
def test_after_the_death_of_the_whole_run_both_rings_are_gone_on_with(workshop, lost):
    process = workshop.start(
        serial=False,
        budget__max_env_steps=10**7,
        checkpoint__period_seconds=1.5,
        replay__capacity_rows=400_000,
        **TWO,
    )
    learnt = lambda: workshop.checkpoints() and state_of(checkpoint_of(workshop)).updates > 20  # noqa: E731
    workshop.wait_for(learnt, 200, process)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    rings = sorted(ring.name for ring in workshop.rings.glob("*.ring"))
    assert len(rings) == 2 and rings[0].replace(".ring", "").rpartition("-")[2] == "1"
    for ending in lost:
        for file in workshop.rings.glob(f"*{ending}.ring*"):
            file.unlink()
    before = state_of(checkpoint_of(workshop))
    result = workshop.resume(overrides=[f"budget.max_env_steps={before.env_steps + 5_000}"])
    assert result.status == "finished"
    after = state_of(checkpoint_of(workshop))
    assert after.session == 1 and after.updates > before.updates
    assert before.env_steps + 5_000 <= after.env_steps < before.env_steps + 5_000 + 200
    steps = [row["actors/env_steps"] for row in read_history(workshop.runs / "run" / "history.jsonl")]
    assert steps == sorted(set(steps))
    assert list(workshop.rings.iterdir()) == []


def nodes_of(cluster, name):
    """The cluster's nodes whose raylets have processes of this name."""
    found = []
    for node in cluster.list_all_nodes():
        raylet = psutil.Process(node.all_processes["raylet"][0].process.pid)
        found += [node.node_id for child in raylet.children(recursive=True) if name in " ".join(child.cmdline())]
    return found


@pytest.mark.slow  # three Ray nodes
def test_two_learners_on_two_nodes_have_each_its_shard_beside_it(empty_cluster, tmp_path):
    settings = {
        "actors.count": 2,
        "placement.shards": 2,
        "placement.learners": 2,
        "placement.rollout_cpus": 0.25,
        "placement.rollout_resources": "{rollouts: 0.5}",
        "placement.learner_cpus": 1.5,
        "budget.max_env_steps": 10**7,
        "budget.max_seconds": 300,
        "checkpoint.period_seconds": 2,
        "evaluation.period_env_steps": "null",
        "evaluation.episodes": 2,
        "evaluation.envs": 2,
        "replay.capacity_rows": 200_000,
        "tracking.enabled": "false",
    }
    changes = [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("ONIBI_", "RAY_", "MLFLOW_"))}
    run, output = RunFolder(tmp_path / "runs" / "apart"), tmp_path / "output.log"
    with empty_cluster(object_store_mib=80) as (cluster, small):
        head = cluster.add_node(num_cpus=1, resources={"rollouts": 1}, include_dashboard=False, **small)
        learning = [cluster.add_node(num_cpus=2, **small).node_id for _ in range(2)]
        cluster.wait_for_nodes()
        with output.open("wb") as file:
            process = subprocess.Popen(
                [sys.executable, "-m", "onibi", "train", "cartpole-dqn", "--name", "apart", *changes],
                cwd=tmp_path,
                env={**kept, "RAY_ADDRESS": cluster.address, "NO_COLOR": "1"},
                stdout=file,
                stderr=file,
            )
        try:
            deadline = 200
            while not (list_checkpoints(run.checkpoints) and state_of(load_checkpoint(run.checkpoints)).updates > 100):
                assert process.poll() is None and deadline > 0, output.read_text()
                deadline -= 1
                psutil.Process(process.pid).cpu_percent(1.0)  # a second
            for name in ("ray::ShardActor", "ray::LearnerActor"):
                assert sorted(nodes_of(cluster, name)) == sorted(learning)
            assert set(nodes_of(cluster, "ray::RolloutActor")) == {head.node_id}
            process.send_signal(signal.SIGINT)
            assert process.wait(90) == 0, output.read_text()
        finally:
            process.kill()
            process.wait()
    record, state = run.record(), state_of(load_checkpoint(run.checkpoints))
    assert record.status == "interrupted"
    assert state.drawn_rows == 2 * 128 * state.updates
    assert list(Path("/dev/shm").glob(f"*{record.run_id}*")) == []
