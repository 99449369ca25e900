"""Where the hub runs if there are several nodes: labels that are kept go to the machine whose folder was meant."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

DRIVER = """
import functools, json, sys
import ray
from onibi.clusters.coordinator.hub_actor import HubActor, hub_options
from onibi.clusters.run_plan import plan_run
from onibi.clusters.run_settings import RunSettings
from onibi.clusters.run_state import make_desk
from onibi.platform.config import read_settings
from onibi.platform.annotation.worker_requests import Worker

class PlacedHub(HubActor.__ray_actor_class__):
    async def node(self):
        return ray.get_runtime_context().get_node_id()

address, table, settings = sys.argv[1:]
ray.init(address=address, log_to_driver=False)
stores = plan_run(read_settings(RunSettings, json.loads(settings))).for_stores()
make = functools.partial(make_desk, stores)
hub = ray.remote(PlacedHub).options(**hub_options(table)).remote(make, stores.judges(), [], table, None, False)
print(ray.get(hub.node.remote(), timeout=60))
assert ray.get(hub.begin_work.remote(Worker("lexicon", 0), "a"))
"""


@pytest.fixture
def head_without_cpus(empty_cluster):
    """(address, node) of a head that offers no CPUs, as `ray start --head --num-cpus=0` makes one; a worker has two."""
    with empty_cluster() as (cluster, small):
        head = cluster.add_node(num_cpus=0, include_dashboard=False, **small)
        cluster.add_node(num_cpus=2, **small)
        cluster.wait_for_nodes()
        yield cluster.address, head.node_id


@pytest.mark.slow  # that roles of two nodes find one another is seen in test_two_nodes.py
def test_a_hub_that_keeps_labels_runs_on_the_drivers_node_even_where_that_offers_no_cpus(
    head_without_cpus, workshop, tmp_path
):
    """The driver is a process of its own: two clusters in turn are too much for Ray in one."""
    address, head = head_without_cpus
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    driver = [sys.executable, "-c", DRIVER, address, str(tmp_path / "labels"), json.dumps(workshop.settings())]
    told = subprocess.run(driver, env=kept, text=True, capture_output=True, timeout=120)
    assert told.returncode == 0, told.stderr
    assert told.stdout.split()[-1] == head
    assert Path(tmp_path / "labels").is_dir()
