"""Dashboards fit Grafana's schemas, lie side by side, and ask for figures that runs export."""

from __future__ import annotations

import copy
import itertools
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from onibi.clusters.prometheus_export import RUN_ACTIVE, series_of
from onibi.infra.grafana.export import export
from onibi.infra.grafana.machines_dashboard import MACHINES
from onibi.infra.grafana.panels import dashboard_json
from onibi.infra.grafana.run_dashboard import RUN

ROOT = Path(__file__).resolve().parents[2]
INFRA = ROOT / "infra"
RULES = yaml.safe_load((INFRA / "prometheus" / "alerts.yaml").read_text(encoding="utf-8"))
MODELS = {each.uid: dashboard_json(each) for each in (RUN, MACHINES)}
PAGE = (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8")
LISTED = [name for cell in re.findall(r"^\| (`.*?`) \|", PAGE, re.MULTILINE) for name in re.findall(r"`([^`]+)`", cell)]
NOT_EXPORTED = {"evaluation/returns"}  # a list, in evaluations.jsonl alone
OF_PROMETHEUS = {"up", "ALERTS"}
METRIC = re.compile(r"(?<![\w\"$])(?:ray_\w+|up|ALERTS)(?!\w)")

needs_promtool = pytest.mark.skipif(
    shutil.which("promtool") is None, reason="promtool is not installed (Debian: apt-get install prometheus)"
)


def panels_of(panels):
    for panel in panels:
        yield panel
        yield from panels_of(panel.get("panels", []))


def expressions():
    for model in MODELS.values():
        for variable in model["templating"]["list"]:
            if variable["type"] == "query":
                yield re.fullmatch(r"label_values\((\w+), \w+\)", variable["query"]).group(1)
        for panel in panels_of(model["panels"]):
            yield from (target["expr"] for target in panel.get("targets", ()))
    for group in RULES["groups"]:
        yield from (rule["expr"] for rule in group["rules"])


EXPRESSIONS = sorted(set(expressions()))


def exported_by_runs() -> set[str]:
    """Names in Prometheus of all that docs/metrics.md lists; a gauge of a free name ends in capitals and is none."""
    gauges = {f"ray_{series_of(metric).gauge}" for metric in {*LISTED, RUN_ACTIVE} - NOT_EXPORTED}
    return {gauge for gauge in gauges if gauge == gauge.lower()}


def exported_by_reporter() -> set[str]:
    """Names of what Ray's own agent tells of machines and processes."""
    agent = pytest.importorskip("ray.dashboard.modules.reporter.reporter_agent")
    return {f"ray_{name}" for name in agent.METRICS_GAUGES}


def unknown(expression: str, known: set[str]) -> set[str]:
    return set(METRIC.findall(expression)) - known - OF_PROMETHEUS


@pytest.mark.parametrize("uid", MODELS)
def test_dashboards_fit_the_schemas_of_grafana(uid, grafana_module):
    assert grafana_module.dashboard_faults(MODELS[uid]) == []


def test_the_schemas_find_wrong_fields_wherever_they_stand(grafana_module):
    def faults(change):
        model = copy.deepcopy(MODELS["onibi-run"])
        change(model)
        return grafana_module.dashboard_faults(model)

    assert len(faults(lambda model: model.update(refresch="5s"))) == 1
    assert len(faults(lambda model: model["panels"][1].update(gridpos={}))) == 1
    assert len(faults(lambda model: model["panels"][1]["options"].update(colourMode="value"))) == 1
    assert len(faults(lambda model: model["panels"][1]["targets"][0].update(expression="up"))) == 1
    assert len(faults(lambda model: model["panels"][-1]["panels"][0].update(typ="stat"))) == 1, "in a folded row"


@pytest.mark.parametrize("uid", MODELS)
def test_panels_lie_within_the_grid_and_on_no_other_panel(uid):
    model = MODELS[uid]
    numbers = [panel["id"] for panel in panels_of(model["panels"])]
    assert len(set(numbers)) == len(numbers) > 10
    for group in [model["panels"], *(panel["panels"] for panel in model["panels"] if panel.get("panels"))]:
        fields = [
            {(x, y) for x in range(p["x"], p["x"] + p["w"]) for y in range(p["y"], p["y"] + p["h"])}
            for p in (panel["gridPos"] for panel in group)
        ]
        assert all(x < 24 for field in fields for x, _ in field)
        assert [
            pair for pair in itertools.combinations(range(len(fields)), 2) if fields[pair[0]] & fields[pair[1]]
        ] == []


def test_the_files_in_the_repository_are_those_that_the_command_writes(tmp_path):
    """After a change of a panel: `onibi dashboard --export infra --prometheus http://prometheus:9090`."""
    for path in export(tmp_path, "http://prometheus:9090"):
        assert path.read_text() == (INFRA / path.relative_to(tmp_path)).read_text(encoding="utf-8"), path.name
    assert json.loads((tmp_path / "grafana" / "onibi-run.json").read_text()) == MODELS["onibi-run"]


@pytest.mark.parametrize("expression", EXPRESSIONS)
def test_every_figure_asked_for_is_one_that_runs_export(expression):
    of_onibi = {name for name in METRIC.findall(expression) if name.startswith("ray_onibi_")}
    assert of_onibi - exported_by_runs() == set()


@pytest.mark.parametrize("expression", [each for each in EXPRESSIONS if re.search("ray_(node|component)_", each)])
def test_every_figure_of_machines_is_one_that_rays_agent_has(expression):
    assert unknown(expression, exported_by_reporter()) == set()


def test_a_wrong_name_is_found():
    known = exported_by_runs()
    assert len(known) > 150
    assert unknown("max by (run) (ray_onibi_learner_lost)", known) == {"ray_onibi_learner_lost"}
    assert unknown('max by (run) (ray_onibi_learner_loss{run=~"$run"}) > 0', known) == set()
    assert unknown("ray_onibi_annotator_figure", known) == {"ray_onibi_annotator_figure"}


@needs_promtool
def test_prometheus_reads_every_expression(tmp_path):
    """Each as a recording rule; variables of Grafana's stand only in quotes."""
    rules = [{"record": f"onibi:{number}", "expr": expression} for number, expression in enumerate(EXPRESSIONS)]
    file = tmp_path / "rules.yaml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "dashboards", "rules": rules}]}))
    checked = subprocess.run(["promtool", "check", "rules", file], capture_output=True, text=True, timeout=60)
    assert checked.returncode == 0, checked.stderr
    assert f"{len(EXPRESSIONS)} rules found" in checked.stdout


def test_every_name_on_the_page_is_one_that_runs_export():
    page = (ROOT / "docs" / "monitoring.md").read_text(encoding="utf-8")
    named = set(re.findall(r"ray_onibi_[a-z_]+", page))
    assert len(named) > 8
    assert named - exported_by_runs() - {"ray_onibi_"} == set()
    assert page.count("ray_onibi_GROUP_NAME") == 1


def test_the_page_tells_how_many_rules_there_are():
    rules = [rule for group in RULES["groups"] for rule in group["rules"]]
    page = (ROOT / "docs" / "monitoring.md").read_text(encoding="utf-8")
    assert len(rules) == 14 and "Fourteen alert rules" in page
