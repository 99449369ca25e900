"""Dashboards from a few lines: what a panel shows, and the JSON that Grafana reads (the classic model, schema 42).

Every query goes to the datasource that the variable ``datasource`` names, so that a dashboard imported by hand works
with any Prometheus. Panels flow from left to right over the 24 columns, those of a section below its title.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

DATASOURCE_UID = "onibi-prometheus"
DATASOURCE_NAME = "Onibi Prometheus"

_COLUMNS = 24
_SCHEMA_VERSION = 42
_DATASOURCE = {"type": "prometheus", "uid": "${datasource}"}
_LEGEND = {"displayMode": "list", "placement": "bottom", "showLegend": True, "calcs": []}
_TOOLTIP = {"mode": "multi", "sort": "desc"}

PanelKind = Literal["timeseries", "stat", "state-timeline"]


@dataclass(frozen=True, kw_only=True)
class Query:
    """One PromQL expression; ``legend`` names its series, with labels as ``{{run}}``."""

    expression: str
    legend: str


@dataclass(frozen=True, kw_only=True)
class Panel:
    """One picture. ``unit`` is Grafana's id of it; ``states`` gives words and colours to values."""

    title: str
    queries: Sequence[Query]
    unit: str = "short"
    kind: PanelKind = "timeseries"
    says: str = ""
    width: int = 8
    height: int = 8
    least: float | None = None
    most: float | None = None
    states: Sequence[tuple[float, str, str]] = ()  # value, word, colour


@dataclass(frozen=True, kw_only=True)
class Section:
    """Panels under a title; a folded one asks Prometheus for nothing until it is opened."""

    title: str
    panels: Sequence[Panel]
    folded: bool = False


@dataclass(frozen=True, kw_only=True)
class Choice:
    """A variable: values of a label that one can choose among, all at first."""

    name: str
    label: str
    metric: str


@dataclass(frozen=True, kw_only=True)
class Dashboard:
    """A page of panels; ``uid`` is its address in every Grafana."""

    uid: str
    title: str
    says: str
    choices: Sequence[Choice]
    sections: Sequence[Section]


def dashboard_json(dashboard: Dashboard) -> dict[str, Any]:
    """What POST /api/dashboards/db takes as ``dashboard``, and what is imported by hand."""
    return {
        "uid": dashboard.uid,
        "title": dashboard.title,
        "description": dashboard.says,
        "tags": ["onibi"],
        "editable": True,
        "graphTooltip": 1,
        "refresh": "10s",
        "time": {"from": "now-1h", "to": "now"},
        "schemaVersion": _SCHEMA_VERSION,
        "annotations": {"list": []},
        "templating": {"list": [_datasource_variable(), *map(_choice_variable, dashboard.choices)]},
        "panels": list(_laid_out(dashboard.sections)),
    }


def datasource_json(prometheus_url: str) -> dict[str, Any]:
    """The datasource, as POST /api/datasources and provisioning files take it."""
    return {
        "uid": DATASOURCE_UID,
        "name": DATASOURCE_NAME,
        "type": "prometheus",
        "access": "proxy",
        "url": prometheus_url,
        "jsonData": {"httpMethod": "POST", "timeInterval": "10s"},  # how often figures are scraped
    }


def _datasource_variable() -> dict[str, Any]:
    return {
        "type": "datasource",
        "name": "datasource",
        "label": "Prometheus",
        "query": "prometheus",
        "current": {"text": DATASOURCE_NAME, "value": DATASOURCE_UID},
    }


def _choice_variable(choice: Choice) -> dict[str, Any]:
    return {
        "type": "query",
        "name": choice.name,
        "datasource": _DATASOURCE,
        "query": f"label_values({choice.metric}, {choice.label})",
        "refresh": 2,  # with the time range: runs of yesterday are found in yesterday's range
        "sort": 1,
        "multi": True,
        "includeAll": True,
        "allValue": ".*",
        "current": {"text": ["All"], "value": ["$__all"]},
    }


def _laid_out(sections: Sequence[Section]) -> Iterable[dict[str, Any]]:
    number, top = 1, 0
    for section in sections:
        row = {"id": number, "type": "row", "title": section.title, "collapsed": section.folded}
        row["gridPos"] = {"x": 0, "y": top, "w": _COLUMNS, "h": 1}
        panels, bottom = _flowed(section.panels, number + 1, top + 1)
        number += 1 + len(panels)
        yield row | {"panels": panels if section.folded else []}
        if section.folded:
            bottom = top + 1  # its panels take room only once it is opened, and push down what follows
        else:
            yield from panels
        top = bottom


def _flowed(panels: Sequence[Panel], number: int, top: int) -> tuple[list[dict[str, Any]], int]:
    """Panels with their places from row ``top`` on, and the first row below them."""
    placed: list[dict[str, Any]] = []
    column = tallest = 0
    for panel in panels:
        if column + panel.width > _COLUMNS:
            column, top, tallest = 0, top + tallest, 0
        place = {"x": column, "y": top, "w": panel.width, "h": panel.height}
        placed.append(_panel_json(panel) | {"id": number + len(placed), "gridPos": place})
        column, tallest = column + panel.width, max(tallest, panel.height)
    return placed, top + tallest


def _panel_json(panel: Panel) -> dict[str, Any]:
    defaults: dict[str, Any] = {"unit": panel.unit}
    if panel.least is not None:
        defaults["min"] = panel.least
    if panel.most is not None:
        defaults["max"] = panel.most
    if panel.states:
        words = {f"{value:g}": {"text": word, "color": colour} for value, word, colour in panel.states}
        defaults["mappings"] = [{"type": "value", "options": words}]
    options: dict[str, Any] = {"legend": _LEGEND, "tooltip": _TOOLTIP}
    if panel.kind == "timeseries":
        defaults["custom"] = {"drawStyle": "line", "lineWidth": 1, "fillOpacity": 5, "showPoints": "never"}
    elif panel.kind == "state-timeline":
        defaults["custom"] = {"fillOpacity": 70, "lineWidth": 0}
        options |= {"showValue": "auto", "rowHeight": 0.9}
    else:
        options = {
            "colorMode": "value",
            "graphMode": "area",
            "justifyMode": "auto",
            "orientation": "auto",
            "percentChangeColorMode": "standard",
            "reduceOptions": {"calcs": ["lastNotNull"]},
            "showPercentChange": False,
            "textMode": "auto",
            "wideLayout": True,
        }
    return {
        "type": panel.kind,
        "title": panel.title,
        "description": panel.says,
        "datasource": _DATASOURCE,
        "targets": [_target(query, index) for index, query in enumerate(panel.queries)],
        "fieldConfig": {"defaults": defaults, "overrides": []},
        "options": options,
    }


def _target(query: Query, index: int) -> dict[str, Any]:
    return {
        "refId": chr(ord("A") + index),
        "datasource": _DATASOURCE,
        "expr": query.expression,
        "legendFormat": query.legend,
        "editorMode": "code",
        "range": True,
    }
