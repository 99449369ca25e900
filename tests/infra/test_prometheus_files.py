"""Prometheus reads our settings and rules, and each alert fires for what it is for."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

FOLDER = Path(__file__).resolve().parents[2] / "infra" / "prometheus"
CASES = Path(__file__).parent / "data" / "alert_cases.yaml"

needs_promtool = pytest.mark.skipif(
    shutil.which("promtool") is None, reason="promtool is not installed (Debian: apt-get install prometheus)"
)


def promtool(*arguments, cwd=None):
    return subprocess.run(["promtool", *arguments], cwd=cwd, capture_output=True, text=True, timeout=60)


@needs_promtool
@pytest.mark.parametrize("name", ["prometheus.yml", "prometheus-compose.yml"])
def test_settings_and_rules_are_read(tmp_path, name):
    shutil.copytree(FOLDER, tmp_path / "prometheus")
    targets = tmp_path / "targets.json"
    targets.write_text(json.dumps([{"labels": {"job": "ray"}, "targets": ["10.0.0.1:8085"]}]))  # as Ray writes it
    settings = tmp_path / "prometheus" / name
    there = settings.read_text().replace("/tmp/ray/prom_metrics_service_discovery.json", str(targets))
    settings.write_text(there)
    checked = promtool("check", "config", settings)
    assert checked.returncode == 0, checked.stderr
    assert "1 rule files found" in checked.stdout
    assert "WARNING" not in checked.stdout + checked.stderr


@needs_promtool
def test_settings_with_static_targets_are_those_of_the_comment(tmp_path):
    lines = (FOLDER / "prometheus.yml").read_text().splitlines()
    start = next(number for number, line in enumerate(lines) if line.startswith("  - job_name"))
    static = [line.replace("  # ", "  ", 1) for line in lines if line.startswith(("  # - ", "  #   "))]
    (tmp_path / "static.yml").write_text("\n".join([*lines[: start - 2], *static]) + "\n")
    shutil.copy(FOLDER / "alerts.yaml", tmp_path)
    assert yaml.safe_load((tmp_path / "static.yml").read_text())["scrape_configs"][0]["static_configs"]
    checked = promtool("check", "config", tmp_path / "static.yml")
    assert checked.returncode == 0, checked.stderr


@needs_promtool
def test_alerts_fire_for_what_they_are_for_and_not_beside(tmp_path):
    for file in (FOLDER / "alerts.yaml", CASES):
        shutil.copy(file, tmp_path)
    tested = promtool("test", "rules", CASES.name, cwd=tmp_path)
    assert tested.returncode == 0, tested.stdout + tested.stderr


def test_every_alert_has_a_case_in_which_it_fires():
    rules = yaml.safe_load((FOLDER / "alerts.yaml").read_text())
    alerts = {rule["alert"] for group in rules["groups"] for rule in group["rules"]}
    cases = yaml.safe_load(CASES.read_text())["tests"]
    fired = {each["alertname"] for case in cases for each in case["alert_rule_test"] if each.get("exp_alerts")}
    assert fired == alerts
    assert all(alert.startswith("Onibi") for alert in alerts), "the dashboard shows those"


def test_every_page_that_an_alert_names_is_there():
    text = (FOLDER / "alerts.yaml").read_text()
    assert (FOLDER.parents[1] / "docs" / "annotation.md").is_file() and "docs/annotation.md" in text
