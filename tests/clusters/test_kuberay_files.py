"""The manifests for KubeRay against its own definitions (v1.7), made strict: an unknown field is a fault."""

from __future__ import annotations

import copy
import functools
import gzip
import itertools
import json
import re
import shlex
from pathlib import Path

import jsonschema
import pytest
import yaml

from onibi.clusters.sessions import read_run_settings

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "clusters" / "kuberay"
DATA = Path(__file__).parent / "kuberay_data"


def strict(node):
    """Refusing fields that are not named; a quantity may be a number or a text."""
    if isinstance(node, list):
        return [strict(each) for each in node]
    if not isinstance(node, dict):
        return node
    closed = dict(node)
    for key in ("items", "additionalProperties"):
        if isinstance(closed.get(key), dict):
            closed[key] = strict(closed[key])
    if "properties" in closed:
        closed["properties"] = {
            name: each if name == "metadata" else strict(each) for name, each in node["properties"].items()
        }
        if not closed.get("x-kubernetes-preserve-unknown-fields"):
            closed.setdefault("additionalProperties", False)
    if closed.get("x-kubernetes-int-or-string"):
        closed.pop("type", None)
    return closed


@functools.cache
def validator(kind: str) -> jsonschema.Draft202012Validator:
    with gzip.open(DATA / f"ray.io_{kind.lower()}s.yaml.gz", "rt", encoding="utf-8") as file:
        definition = yaml.load(file, Loader=yaml.CSafeLoader)
    (version,) = (each for each in definition["spec"]["versions"] if each["name"] == "v1")
    return jsonschema.Draft202012Validator(strict(version["schema"]["openAPIV3Schema"]))


def faults(manifest: dict) -> list[str]:
    return [f"{error.json_path}: {error.message}" for error in validator(manifest["kind"]).iter_errors(manifest)]


@pytest.fixture
def cluster():
    return yaml.safe_load((FOLDER / "raycluster.yaml").read_text(encoding="utf-8"))


@pytest.fixture
def job():
    return yaml.safe_load((FOLDER / "rayjob.yaml").read_text(encoding="utf-8"))


def groups(spec: dict) -> list[dict]:
    return [spec["headGroupSpec"], *spec["workerGroupSpecs"]]


def pods(spec: dict) -> list[dict]:
    return [group["template"]["spec"] for group in groups(spec)]


def test_kuberays_definitions_take_the_manifests(cluster, job):
    assert faults(cluster) == []
    assert faults(job) == []


def test_kuberays_definitions_find_what_is_wrong(cluster, job):
    def changed(manifest, change):
        wrong = copy.deepcopy(manifest)
        change(wrong["spec"])
        return faults(wrong)

    (misspelt,) = changed(cluster, lambda spec: spec["workerGroupSpecs"][0].update(replica=2))
    assert "workerGroupSpecs[0]" in misspelt and "replica" in misspelt
    assert changed(cluster, lambda spec: pods(spec)[0]["containers"][0].update(imag="x"))
    assert changed(cluster, lambda spec: spec["headGroupSpec"]["rayStartParams"].update({"metrics-export-port": 8085}))
    assert changed(cluster, lambda spec: spec["workerGroupSpecs"][0].pop("groupName"))
    assert changed(job, lambda spec: spec.update(entryPoint="python"))


def test_the_jobs_cluster_is_the_other_files(cluster, job):
    assert job["spec"]["rayClusterSpec"] == cluster["spec"]


def test_rays_version_is_the_one_that_the_image_installs(cluster):
    constraints = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    assert f"\nray=={cluster['spec']['rayVersion']}\n" in constraints


def test_every_pod_has_memory_for_shared_memory_and_the_head_keeps_the_runs(cluster):
    for pod in pods(cluster["spec"]):
        (container,) = pod["containers"]
        volumes = {volume["name"]: volume for volume in pod["volumes"]}
        mounts = {mount["mountPath"]: volumes[mount["name"]] for mount in container["volumeMounts"]}
        shared = mounts["/dev/shm"]["emptyDir"]
        assert shared["medium"] == "Memory"
        assert int(shared["sizeLimit"].removesuffix("Gi")) < int(
            container["resources"]["limits"]["memory"].removesuffix("Gi")
        )
        assert container["securityContext"]["runAsNonRoot"]
    head = pods(cluster["spec"])[0]["containers"][0]
    assert {mount["mountPath"] for mount in head["volumeMounts"]} == {"/dev/shm", "/home/onibi/runs"}


def test_custom_resources_are_json_once_a_shell_has_read_them(cluster):
    given = [shlex.split(group["rayStartParams"]["resources"]) for group in groups(cluster["spec"])]
    assert [json.loads(text) for (text,) in given] == [{"learners": 1}, {"rollouts": 1}]


def test_the_entry_points_run_can_be_read_and_asks_for_what_the_cluster_has(job):
    words = shlex.split(job["spec"]["entrypoint"])
    assert words[:4] == ["python", "-m", "onibi", "train"]
    overrides = [word for flag, word in itertools.pairwise(words) if flag == "--set"]
    placement = read_run_settings(words[4], overrides).placement
    assert placement.learner_resources == {"learners": 0.5}
    assert placement.rollout_resources == {"rollouts": 0.05}
    mounts = pods(job["spec"]["rayClusterSpec"])[0]["containers"][0]["volumeMounts"]
    assert words[words.index("--runs-folder") + 1] in {mount["mountPath"] for mount in mounts}
    assert yaml.safe_load(job["spec"]["runtimeEnvYAML"]) == {"env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": "60"}}


@pytest.mark.parametrize("name", ["raycluster.yaml", "rayjob.yaml"])
def test_every_line_to_change_is_marked(name):
    lines = (FOLDER / name).read_text(encoding="utf-8").splitlines()
    yours = [line for line in lines if re.search("image:|claimName:|resources:  #|^ *replicas:|entrypoint:", line)]
    unmarked = [line for line in yours if "# CHANGE" not in line and "entrypoint" not in line]
    assert len(yours) >= 6 and unmarked == []
