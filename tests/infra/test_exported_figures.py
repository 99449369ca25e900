"""A real run under Ray: what it records is scraped from Ray, and dashboards and alerts ask for nothing else."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import yaml

from onibi.clusters.prometheus_export import RUN_ACTIVE, series_of
from onibi.infra.grafana.machines_dashboard import MACHINES
from onibi.infra.grafana.panels import dashboard_json
from onibi.infra.grafana.run_dashboard import RUN

pytestmark = pytest.mark.slow  # starts Ray and all roles; names alone are checked in test_dashboards.py

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8")
LISTED = [name for cell in re.findall(r"^\| (`.*?`) \|", PAGE, re.MULTILINE) for name in re.findall(r"`([^`]+)`", cell)]
METRIC = re.compile(r"(?<![\w\"$])ray_\w+")
OF_GPUS = {"ray_node_gpus_utilization", "ray_node_gram_used"}  # in Ray's agent, which test_dashboards.py looks at

# In a process of its own, with a Ray that hands figures on each second in place of each tenth.
SCRIPT = """
import sys, time, urllib.request
import ray, yaml
from onibi.clusters import train

settings, runs, temporary = yaml.safe_load(sys.argv[1]), sys.argv[2], sys.argv[3]
ray.init(address="local", num_cpus=2, num_gpus=0, include_dashboard=False, object_store_memory=80 * 2**20,
         _temp_dir=temporary, _system_config={"metrics_report_interval_ms": 1000}, log_to_driver=False)
train(settings, name="first.run", serial=False, runs_folder=runs, display=False)
url = f"http://127.0.0.1:{ray.nodes()[0]['MetricsExportPort']}/metrics"
for _ in range(300):  # Ray's agent looks at the machine once in several seconds
    scraped = urllib.request.urlopen(url, timeout=10).read().decode()
    values = [line.rsplit(" ", 1)[1] for line in scraped.splitlines() if line.startswith("ray_onibi_run_active{")]
    if values == ["0.0"] and "ray_node_cpu_utilization{" in scraped and "ray_component_cpu_percentage{" in scraped:
        break
    time.sleep(0.1)
ray.shutdown()
sys.stdout.write(scraped)
"""

SETTINGS = {
    "seed": 7,
    "environment": {
        "id": "onibi.actors.environments.corridor:make",
        "kwargs": {"rooms": 3, "room_length": 3},
        "max_episode_steps": 30,
    },
    "captioner": {"kind": "info"},
    "annotator": {"kind": "lexicon", "lexicon": "all_ones"},
    "rewards": {
        "extrinsic": {"coefficient": 1.0, "episode_low": 0.0, "episode_high": 1.0},
        "intrinsic": {"kind": "retrieval", "coefficient": 0.1, "episode_high": 3.0},
        "bonuses": {"distilled": {"kind": "rnd", "coefficient": 0.1}},
    },
    "actors": {"count": 1, "rollout": {"envs_per_actor": 4, "fragment_steps": 8, "fragment_steps_max": 8}},
    "replay": {"capacity_rows": 8_000, "limiter": {"samples_per_insert": 2, "minimum_rows": 100}},
    "learner": {"kind": "dqn", "batch_size": 16, "metrics_period_updates": 1, "support": {"low": -0.5, "high": 1.5}},
    "budget": {"max_env_steps": 2_000, "max_seconds": None},
    "evaluation": {"period_env_steps": None, "episodes": 4, "envs": 2},
    "tracking": {"enabled": False},
}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """(text that Prometheus would scrape, rows of the history, evaluations)."""
    folder = tmp_path_factory.mktemp("run")
    temporary = Path(tempfile.mkdtemp(prefix="oni", dir="/tmp"))  # short: names of Ray's sockets end at 107 bytes
    settings = {**SETTINGS, "replay": {**SETTINGS["replay"], "folder": str(folder)}}
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("ONIBI_", "RAY_", "MLFLOW_"))}
    try:
        ended = subprocess.run(
            [sys.executable, "-c", SCRIPT, yaml.safe_dump(settings), str(folder), str(temporary)],
            cwd=folder,
            env={**kept, "RAY_USAGE_STATS_ENABLED": "0"},
            capture_output=True,
            text=True,
            timeout=240,
        )
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    assert ended.returncode == 0, ended.stderr
    rows = [
        [json.loads(line) for line in (folder / "first.run" / name).read_text().splitlines()]
        for name in ("history.jsonl", "evaluations.jsonl")
    ]
    return ended.stdout, *rows


def series_in(scraped: str) -> dict[tuple[str, str, str], float]:
    """Value of each of our series by gauge, run and name."""
    found = {}
    for line in scraped.splitlines():
        if line.startswith("ray_onibi_"):
            labels = dict(re.findall(r'(\w+)="([^"]*)"', line))
            found[line.partition("{")[0], labels["run"], labels["name"]] = float(line.rsplit(" ", 1)[1])
    return found


def asked_for():
    for model in map(dashboard_json, (RUN, MACHINES)):
        text = json.dumps(model)
        yield from METRIC.findall(text)
    yield from METRIC.findall((ROOT / "infra" / "prometheus" / "alerts.yaml").read_text(encoding="utf-8"))


def test_every_figure_of_the_history_is_scraped_with_its_last_value(run):
    scraped, history, evaluations = run
    newest = {name: value for row in history for name, value in row.items()}
    newest |= {f"evaluation/{name}": value for name, value in evaluations[-1].items() if isinstance(value, float)}
    wanted = {}
    for metric, value in newest.items():
        series = series_of(metric)
        wanted[f"ray_{series.gauge}", "first.run", series.name] = value
    assert len(wanted) > 90, "annotators, alarms, a bonus and the log are among them"
    assert series_in(scraped) == pytest.approx({**wanted, ("ray_onibi_run_active", "first.run", ""): 0.0})


def test_dashboards_and_alerts_ask_for_nothing_that_is_not_there(run):
    scraped = set(re.findall(r"^(ray_\w+)[{ ]", run[0], re.MULTILINE))
    of_the_page = {f"ray_{series_of(metric).gauge}" for metric in [*LISTED, RUN_ACTIVE]}
    asked = set(asked_for())
    assert len(asked) > 80
    assert sorted(asked - scraped - of_the_page - OF_GPUS) == []
    assert len(asked & scraped) > 60, "most of them are seen in this run, the others are of features that it has not"
