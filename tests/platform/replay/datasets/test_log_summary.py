"""The figures of a log."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from onibi.platform.replay.datasets.log_summary import ReturnSummary, summarize
from onibi.platform.replay.log.log_reader import ReplayLog
from onibi.platform.replay.log.segment_format import group_of


def test_a_log_is_told_in_figures(log, logs):
    summary = summarize(log)
    figures = [figures for lane in logs.two_lanes() for _, figures in lane.episodes]
    returns = [each.episode_return for each in figures]
    assert (summary.rows, summary.steps, summary.segments, summary.lanes, summary.shards) == (35, 31, 4, 2, 1)
    assert (summary.episodes, summary.captions, summary.run_ids) == (3, 2, ("a-run",))
    assert summary.returns == ReturnSummary(mean=pytest.approx(sum(returns) / 3), least=min(returns), most=max(returns))
    assert summary.episode_length_mean == pytest.approx((7 + 4 + 9) / 3)
    assert summary.bytes == sum(path.stat().st_size for path in Path(log.location).glob("*.arrow"))
    assert (summary.first_sealed, summary.last_sealed) == ("2001-09-09T01:46:40+00:00", "2001-09-09T01:46:43+00:00")
    vector = summary.columns[0]
    assert (vector.name, vector.dtype, vector.shape, vector.unit) == ("observation.vector", "float32", (3,), "metres")
    assert summary.to_json()["columns"][1]["high"] == 255.0


def test_damage_leaves_out_what_it_hides_and_no_more(log, caplog):
    Path(log.segments[1].episodes_path).write_bytes(b"no Arrow file")
    Path(log.segments[2].rows_path).write_bytes(b"no Arrow file")
    summary = summarize(ReplayLog(log.location))
    assert (summary.rows, summary.steps, summary.episodes, summary.returns) == (35, None, None, None)
    assert "episodes-0000-00000001" in caplog.text


def test_a_log_of_which_nothing_is_sealed_has_no_rows(log):
    for path in Path(log.location).glob("manifest-*"):
        path.unlink()
    summary = summarize(ReplayLog(log.location))
    assert (summary.rows, summary.segments, summary.first_sealed, summary.columns) == (0, 0, None, ())
    assert len(summary.torn) == 4 + 1 + 3  # rows, captions, episodes


def test_a_segment_that_retention_removes_while_the_log_is_opened_is_not_told_as_damaged(log, monkeypatch):
    whole = ReplayLog(log.location)
    groups = {(each.shard, each.number) for each in whole.segments}
    names, first = ReplayLog._names, min(groups)

    def listed_before_the_removal(reader):
        found = names(reader)
        for name in found:
            if group_of(name) == first:
                (Path(log.location) / name).unlink()
        return found

    monkeypatch.setattr(ReplayLog, "_names", listed_before_the_removal)
    opened = ReplayLog(log.location)
    assert opened.unreadable == ()
    assert {(each.shard, each.number) for each in opened.segments} == groups - {first}


def test_returns_that_are_not_finite_are_null_in_json(logs, tmp_path):
    lanes = logs.two_lanes()
    row, figures = lanes[0].episodes[0]
    lanes[0].episodes[0] = row, dataclasses.replace(figures, episode_return=float("nan"))
    logs.seal(str(tmp_path / "broken"), lanes, segments=2)
    summary = summarize(ReplayLog(tmp_path / "broken"))
    assert json.loads(json.dumps(summary.to_json(), allow_nan=False))["returns"] == dict.fromkeys(
        ("mean", "least", "most")
    )
