"""Where replay shard and learners run if there are several nodes, by Ray's own counts of CPUs and GPUs."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile

import pytest
from ray.cluster_utils import Cluster

DRIVER = """
import json, sys
import ray
from onibi.clusters.run_settings import PlacementSettings
from onibi.clusters.coordinator.store_node import StoreRoom, on_node
from onibi.platform.config import read_settings
from onibi.platform.errors import ConfigError

@ray.remote(num_cpus=0)
class Role:
    def node(self):
        return ray.get_runtime_context().get_node_id()

def node_of(options):
    role = Role.options(**options).remote()
    roles.append(role)
    return ray.get(role.node.remote(), timeout=60)

address, one, *placements = sys.argv[1:]
ray.init(address=address, log_to_driver=False)
here = ray.get_runtime_context().get_node_id()
print(here)
roles = []
for placement in placements:
    if placement == "busy":
        node_of({"num_gpus": 1, **on_node(one)})
        node_of({"num_cpus": 1, **on_node(here)})
        continue
    try:
        chosen = read_settings(PlacementSettings, json.loads(placement))
        room = StoreRoom(chosen, lambda reference, who: ray.get(reference, timeout=60))
        held = len(roles)
        shards = [node_of(room.shard_options(number)) for number in range(chosen.shards)]
        learners = [node_of(room.learner_options(number)) for number in range(chosen.learners)]
        assert learners == (shards if chosen.shards > 1 else shards * chosen.learners), (shards, learners)
        assert shards[0] == room.node, (shards, room.node)
        for role in roles[held:]:
            ray.kill(role)
        del roles[held:]
        room.close()
        print(*shards)
    except ConfigError as error:
        print(error)
"""


@pytest.fixture(scope="module")
def nodes():
    """(address, ids) of a head without GPU, a node with one, and one with two, more CPUs and a resource of its own."""
    folder = tempfile.mkdtemp(prefix="onr", dir="/tmp")  # paths of sockets must stay under 108 bytes
    cluster = Cluster()
    try:
        small = {"object_store_memory": 100 * 2**20, "temp_dir": folder}
        head = cluster.add_node(num_cpus=1, num_gpus=0, include_dashboard=False, **small)
        one = cluster.add_node(num_cpus=1, num_gpus=1, **small)
        two = cluster.add_node(num_cpus=2, num_gpus=2, resources={"fast": 1}, **small)
        cluster.wait_for_nodes()
        yield cluster.address, head.node_id, one.node_id, two.node_id
    finally:
        cluster.shutdown()  # ends the processes that it began, and no others
        shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.slow  # three Ray nodes, forty seconds
def test_replay_and_learners_share_a_node_that_has_what_they_ask_for(nodes, tmp_path):
    address, head, one, two = nodes
    asked = (
        {},
        {"learner_gpus": 1},
        {"learner_gpus": 1, "learners": 2},
        {"learner_resources": {"fast": 0.5}},
        {"learner_cpus": 1.5},
        {"learner_gpus": 3},
        {"learner_gpus": 1, "learner_cpus": 1.0, "learners": 2},
        {"learner_cpus": 0, "learners": 3},
        {"learners": 2, "shards": 2, "learner_gpus": 1},
        {"learners": 3, "shards": 3, "learner_cpus": 0.25},
        {"learners": 3, "shards": 3, "learner_gpus": 1, "learner_cpus": 0.5},
        {"learners": 4, "shards": 4, "learner_gpus": 1},
        {"learners": 2, "shards": 2, "learner_cpus": 0.25, "learner_resources": {"fast": 0.5}},
        "busy",
        {"learner_gpus": 1},
        {},
    )
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    told = subprocess.run(
        [sys.executable, "-c", DRIVER, address, one, *(x if x == "busy" else json.dumps(x) for x in asked)],
        cwd=tmp_path,
        env={**kept, "RAY_USAGE_STATS_ENABLED": "0"},
        text=True,
        capture_output=True,
        timeout=200,
    )
    assert told.returncode == 0, told.stderr
    here, default, gpu, gpus, fast, wide, many, full, idle, *several, busy, crowded = told.stdout.splitlines()
    a_gpu_each, spread, crammed, too_many, one_only = several
    assert default == idle == here == head, "the run's folder lies on the driver's node"
    assert gpu in (one, two)
    assert gpus == fast == wide == two
    assert many.startswith("no node of the cluster has 0.55 CPU and 3 GPU for the replay shard and 1 learners")
    assert "2 CPU and 2 GPU" in many and "learner_gpus" in many
    assert full.startswith("no node of the cluster has 2.05 CPU and 2 GPU"), "each asks for less than there is"
    assert set(a_gpu_each.split()) == {one, two}, "each has a node of its own"
    assert set(spread.split()) == {head, one, two} and spread.split()[0] == here
    assert sorted(crammed.split()) == sorted([one, two, two]), "two of them share the larger node"
    assert too_many.startswith("each of 4 replay shards with its learner asks for 0.55 CPU and 1 GPU. The nodes have: ")
    assert one_only.split() == [two, two]
    assert crowded in (one, two), "a neighbour has the driver's node"
    assert busy == two, "a neighbour has the only GPU of the other one"
