"""The same as files: dashboards to import by hand, and what a new Grafana or Prometheus reads when it starts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

from onibi.infra.grafana.panels import dashboard_json, datasource_json
from onibi.infra.grafana.provisioning import DASHBOARDS

_PROMETHEUS = Path(__file__).resolve().parents[1] / "prometheus"
_DASHBOARDS_IN_CONTAINER = "/etc/grafana/onibi"


def grafana_files(prometheus_url: str) -> dict[str, str]:
    """Text of each file by its name: a JSON for each dashboard, and Grafana's two provisioning files."""
    files = {f"{each.uid}.json": _lines(dashboard_json(each)) for each in DASHBOARDS}
    provider = {"name": "onibi", "folder": "Onibi", "type": "file", "options": {"path": _DASHBOARDS_IN_CONTAINER}}
    files["datasources.yaml"] = _yaml(
        "/etc/grafana/provisioning/datasources/", datasources=[datasource_json(prometheus_url)]
    )
    files["providers.yaml"] = _yaml("/etc/grafana/provisioning/dashboards/", providers=[provider])
    return files


def prometheus_files() -> dict[str, str]:
    """Text of Prometheus's settings and rules by file name."""
    return {path.name: path.read_text(encoding="utf-8") for path in _PROMETHEUS.glob("*.y*ml")}


def export(folder: Path, prometheus_url: str) -> list[Path]:
    """Write all of them into ``folder/grafana`` and ``folder/prometheus``; files of these names are overwritten."""
    written = []
    for part, files in (("grafana", grafana_files(prometheus_url)), ("prometheus", prometheus_files())):
        (folder / part).mkdir(parents=True, exist_ok=True)
        for name, text in sorted(files.items()):
            path = folder / part / name
            path.write_text(text, encoding="utf-8")
            written.append(path)
    return written


def _lines(dashboard: dict[str, Any]) -> str:
    """JSON with a line for each panel: a change of one is a change of one line."""
    panels = ",\n  ".join(json.dumps(panel) for panel in dashboard["panels"])
    rest = "".join(f" {json.dumps(key)}: {json.dumps(value)},\n" for key, value in dashboard.items() if key != "panels")
    return f'{{\n{rest} "panels": [\n  {panels}\n ]\n}}\n'


def _yaml(place: str, **content: object) -> str:
    head = f"# For {place} of Grafana's. Written by `onibi dashboard --export`.\n"
    return head + yaml.safe_dump({"apiVersion": 1, **content}, sort_keys=False)
