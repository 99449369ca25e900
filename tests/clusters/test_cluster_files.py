"""The cluster files that ship, read by Ray's own schema and preparation, and by a shell."""

from __future__ import annotations

import copy
import json
import os
import re
import shlex
import shutil
import subprocess
import tomllib
from pathlib import Path

import jsonschema
import pytest
import ray
import yaml
from ray.autoscaler._private.util import prepare_config

ROOT = Path(__file__).resolve().parents[2]
FILE = ROOT / "clusters" / "on_premise" / "ray-up.yaml"
SCHEMA = json.loads((Path(ray.__file__).parent / "autoscaler" / "ray-schema.json").read_text())


@pytest.fixture
def cluster():
    return yaml.safe_load(FILE.read_text(encoding="utf-8"))


def start_commands(cluster) -> list[str]:
    return [*cluster["head_start_ray_commands"], *cluster["worker_start_ray_commands"]]


def test_rays_schema_takes_the_file(cluster):
    jsonschema.validate(cluster, SCHEMA)


def test_rays_schema_finds_a_misspelt_key(cluster):
    cluster["setup_comands"] = cluster.pop("setup_commands")
    with pytest.raises(jsonschema.ValidationError, match="setup_comands"):
        jsonschema.validate(cluster, SCHEMA)


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_every_listed_worker_is_started_and_no_more(cluster, workers):
    cluster["provider"]["worker_ips"] = [f"198.51.100.{20 + index}" for index in range(workers)]
    prepared = prepare_config(copy.deepcopy(cluster))
    assert prepared["max_workers"] == workers
    assert [kind["min_workers"] for kind in prepared["available_node_types"].values()] == [workers]


def test_both_start_commands_name_the_nodes_address(cluster):
    head = cluster["head_start_ray_commands"][-1]
    worker = cluster["worker_start_ray_commands"][-1]
    assert f"--node-ip-address={cluster['provider']['head_ip']} " in head
    assert "--node-ip-address=$(" in worker


def test_the_head_turns_off_the_autoscaler_that_starts_no_local_workers(cluster):
    assert re.search(r"RAY_enable_autoscaler_v2=0 .*ray start --head", cluster["head_start_ray_commands"][-1])


def test_every_call_of_ray_has_the_environment_first_on_its_path(cluster):
    calls = [part for command in start_commands(cluster) for part in command.split(";") if " ray " in f" {part} "]
    assert len(calls) == 4
    assert [call for call in calls if not call.strip().startswith("PATH=/opt/onibi/venv/bin:$PATH ")] == []


def test_commands_are_shell(cluster):
    for command in [*cluster["setup_commands"], *start_commands(cluster)]:
        checked = subprocess.run(["bash", "-n", "-c", command], capture_output=True, text=True)
        assert checked.stderr == "", command


@pytest.mark.skipif(shutil.which("ip") is None, reason="needs ip of iproute2, as the cluster's machines do")
def test_the_workers_command_finds_the_address_towards_the_head(cluster):
    found = re.search(r"--node-ip-address=(\$\(.*\))", cluster["worker_start_ray_commands"][-1])
    variables = {**os.environ, "RAY_HEAD_IP": "127.0.0.1"}
    told = subprocess.run(["bash", "-c", f"echo {found[1]}"], env=variables, capture_output=True, text=True)
    assert told.stdout == "127.0.0.1\n"


def test_shells_of_ray_exec_and_ray_down_find_ray_and_the_line_is_added_once(cluster, tmp_path):
    (command,) = (command for command in cluster["setup_commands"] if ".bashrc" in command)
    for _ in range(2):
        subprocess.run(["bash", "-c", command], env={**os.environ, "HOME": str(tmp_path)}, check=True)
    assert (tmp_path / ".bashrc").read_text() == "export PATH=/opt/onibi/venv/bin:$PATH\n"


def test_it_installs_what_the_package_depends_on(cluster):
    needed = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["dependencies"]
    (command,) = (command for command in cluster["setup_commands"] if "pip install" in command)
    installed = [word for word in shlex.split(command) if re.search(r"[<>=]=?\d", word)]
    # The client of Grafana's provisioning runs where the monitoring is set up, not on the nodes.
    assert sorted(installed) == sorted(name for name in needed if not name.startswith("grafana-api"))


def test_every_line_to_change_is_marked(cluster):
    lines = FILE.read_text(encoding="utf-8").splitlines()
    marked = {line.split(":")[0].strip() for line in lines if "# CHANGE" in line}
    assert {"head_ip", "worker_ips", "ssh_user", "ssh_private_key"} <= marked
