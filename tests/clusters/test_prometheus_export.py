"""Figures of a row become gauges by a pure function, and exporting them can harm no run."""

from __future__ import annotations

import math
import re
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from onibi.clusters import prometheus_export
from onibi.clusters.prometheus_export import GaugeSeries, PrometheusExporter, series_of

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "metrics.md").read_text(encoding="utf-8")
LISTED = [name for cell in re.findall(r"^\| (`.*?`) \|", PAGE, re.MULTILINE) for name in re.findall(r"`([^`]+)`", cell)]


@pytest.mark.parametrize(
    ("metric", "gauge", "name"),
    [
        ("learner/loss", "onibi_learner_loss", ""),
        ("time/seconds", "onibi_time_seconds", ""),
        ("actors/return_mine", "onibi_actors_return", "mine"),
        ("actors/my figure-2", "onibi_actors_my_figure_2", ""),
        ("evaluation/return_mean", "onibi_evaluation_return_mean", ""),
        ("evaluation/return_mine", "onibi_evaluation_return", "mine"),
        ("evaluation/intrinsic_return_mean", "onibi_evaluation_intrinsic_return_mean", ""),
        ("annotator/my judge/latency_p50_seconds", "onibi_annotator_latency_p50_seconds", "my judge"),
        ("annotator/a/b/tokens", "onibi_annotator_tokens", "a/b"),
        ("annotator/judge/failures_timeout", "onibi_annotator_failures_timeout", "judge"),
        ("annotation/tokens", "onibi_annotation_tokens", ""),
        ("learner/reward_extrinsic", "onibi_learner_reward", "extrinsic"),
        ("learner/reward_clipped_share", "onibi_learner_reward_clipped_share", ""),
        ("learner/reward_clipped_share/rnd", "onibi_learner_reward_clipped_share", "rnd"),
        ("learner/reward_deviation", "onibi_learner_reward_deviation", ""),
        ("learner/reward_product/a-b", "onibi_learner_reward_product", "a-b"),
        ("learner/q_mean/intrinsic", "onibi_learner_q_mean", "intrinsic"),
        ("learner/coefficient/rnd", "onibi_learner_coefficient", "rnd"),
        ("bonus/rnd_loss", "onibi_bonus_loss", "rnd"),
        ("bonus/my_rnd_skipped_steps", "onibi_bonus_skipped_steps", "my_rnd"),
        ("bonus/places_table_share", "onibi_bonus_table_share", "places"),
        ("bonus/mine_of my own", "onibi_bonus_mine_of_my_own", ""),
        ("alarms/one_key", "onibi_alarms_up", "one_key"),
        ("rewards/best_key_share", "onibi_rewards_best_key_share", ""),
        ("odd", "onibi_odd", ""),
    ],
)
def test_a_metric_has_its_gauge_and_free_parts_become_a_label(metric, gauge, name):
    assert series_of(metric) == GaugeSeries(gauge, name)


def test_no_two_metrics_of_the_page_share_a_series_and_none_gets_a_name_in_its_gauge():
    names = [metric for metric in LISTED if not metric.endswith(("/FIGURE", "_KIND"))]
    series = [series_of(metric) for metric in names]
    assert len(names) > 180
    assert len(set(series)) == len(series)
    assert [each for each in series if re.search("[A-Z]", each.gauge)] == []


@pytest.fixture
def recorded(monkeypatch):
    """What would be handed to a connected Ray: gauge, value, tags."""
    sets = []
    gauges = {}

    def gauge(name):
        return gauges.setdefault(name, SimpleNamespace(set=lambda value, tags: sets.append((name, value, tags))))

    monkeypatch.setattr(prometheus_export, "_gauge", gauge)
    monkeypatch.setitem(sys.modules, "ray", SimpleNamespace(is_initialized=lambda: True))
    return sets


def test_a_row_is_exported_under_the_runs_name_without_what_is_not_finite(recorded):
    PrometheusExporter("first", enabled=True).log(
        {"learner/loss": math.nan, "learner/q_max": math.inf, "alarms/heard": 1.0}
    )
    assert recorded == [
        ("onibi_run_active", 1.0, {"run": "first", "name": ""}),
        ("onibi_alarms_up", 1.0, {"run": "first", "name": "heard"}),
    ]


@pytest.mark.parametrize("wrong", ["far", None, [1.0], 1j])
def test_a_value_that_is_no_number_is_told_once_and_the_row_goes_on_without_it(recorded, caplog, wrong):
    exporter = PrometheusExporter("first", enabled=True)
    for _ in range(2):
        exporter.log({"actors/mine": wrong, "learner/loss": 1.0})
    assert [(name, value) for name, value, _ in recorded[1::2]] == [("onibi_learner_loss", 1.0)] * 2
    assert [record.getMessage().count("actors/mine is not exported") for record in caplog.records] == [1]


def test_an_end_in_order_is_told(recorded):
    exporter = PrometheusExporter("first", enabled=True)
    exporter.log({"learner/loss": 1.0})
    exporter.close()
    assert recorded[-1] == ("onibi_run_active", 0.0, {"run": "first", "name": ""})


def test_nothing_is_exported_where_it_is_switched_off_or_ray_is_not_connected(recorded, monkeypatch):
    PrometheusExporter("first", enabled=False).log({"learner/loss": 1.0})
    monkeypatch.setitem(sys.modules, "ray", SimpleNamespace(is_initialized=lambda: False))
    PrometheusExporter("first", enabled=True).log({"learner/loss": 1.0})
    monkeypatch.delitem(sys.modules, "ray")
    PrometheusExporter("first", enabled=True).log({"learner/loss": 1.0})
    assert recorded == []


def test_an_error_of_rays_is_told_once_and_ends_nothing(recorded, monkeypatch, caplog):
    def broken(name):
        raise RuntimeError("the metrics agent is gone")

    monkeypatch.setattr(prometheus_export, "_gauge", broken)
    exporter = PrometheusExporter("first", enabled=True)
    for _ in range(3):
        exporter.log({"learner/loss": 1.0})
    exporter.close()
    assert [record.getMessage().count("the metrics agent is gone") for record in caplog.records] == [1]


@pytest.mark.parametrize(("serial", "prometheus"), [(True, True), (False, False)])
def test_serial_runs_and_those_that_switch_it_off_export_nothing(workshop, recorded, serial, prometheus):
    journal_of(workshop, serial, prometheus).interval({"time/seconds": 1.0, "actors/env_steps": 10.0})
    assert recorded == []


def test_intervals_and_evaluations_are_exported_and_the_end_too(workshop, recorded):
    from onibi.actors.evaluation import PlayedEpisode
    from onibi.platform.checkpoint import CheckpointParts

    journal = journal_of(workshop, serial=False, prometheus=True)
    journal.interval({"time/seconds": 1.0, "actors/env_steps": 10.0})
    journal.save(10, CheckpointParts())
    journal.evaluate(10, 1.0, [PlayedEpisode(1.0, 9, 0.0, {})])
    journal.close("finished", 10, 0, 1.0, (), __import__("numpy").zeros(0))
    newest = {name: value for name, value, _ in recorded}
    assert newest["onibi_actors_env_steps"] == 10.0
    assert newest["onibi_evaluation_return_mean"] == 1.0
    assert newest["onibi_run_active"] == 0.0
    assert {tags["run"] for _, _, tags in recorded} == {"run"}


def test_a_run_that_failed_never_tells_of_an_end_in_order(workshop, recorded):
    """The alert OnibiRunBroken is raised by a run that vanishes at 1, and by none that was at 0."""
    journal = journal_of(workshop, serial=False, prometheus=True)
    journal.interval({"time/seconds": 1.0, "actors/env_steps": 10.0})
    journal.abandon("failed")
    assert [value for name, value, _ in recorded if name == "onibi_run_active"] == [1.0]


def journal_of(workshop, serial, prometheus):
    from onibi.clusters.run_journal import RunJournal
    from onibi.clusters.run_settings import RunSettings
    from onibi.platform.config import read_settings
    from onibi.platform.run_folder import create_run

    mapping = workshop.settings(tracking={"enabled": False, "prometheus": prometheus})
    folder = create_run(workshop.runs, "run")
    folder.update(serial=serial)
    return RunJournal(folder, read_settings(RunSettings, mapping), display=False)


def test_the_switch_makes_no_other_run_of_an_experiments_trial():
    """Rows of tables that were made before there was the setting stay those of the same trials."""
    from onibi.platform.config import chosen_values
    from onibi.platform.tracking import TrackingSettings

    assert chosen_values(TrackingSettings()) == {}
    assert chosen_values(TrackingSettings(prometheus=False)) == {"prometheus": False}
