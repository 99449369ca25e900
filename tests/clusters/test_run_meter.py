"""Rates from cumulative counters."""

from __future__ import annotations

import math

import pytest

from onibi.clusters.run_meter import RunCounters, RunMeter, figures_before
from onibi.platform.checkpoint import CheckpointParts, load_checkpoint, save_checkpoint
from onibi.platform.fragment import EpisodeStatistics
from onibi.platform.history import History
from onibi.platform.run_folder import create_run


def counters(seconds, steps, updates=0, drawn=0):
    return RunCounters(seconds=seconds, env_steps=steps, updates=updates, drawn_rows=drawn)


def test_rates_are_those_since_the_last_call():
    meter = RunMeter(counters(10.0, 1_000, 50, 4_000))
    row = meter.row(counters(12.0, 1_400, 60, 5_600))
    assert row == {
        "time/seconds": 12.0,
        "actors/env_steps": 1_400.0,
        "actors/env_steps_per_second": 200.0,  # 400 in 2 s
        "learner/updates": 60.0,
        "learner/updates_per_second": 5.0,  # 10 in 2 s
        "replay/samples_per_insert": 4.0,  # 1,600 of 400
    }


def test_nothing_is_told_of_the_first_moment_and_its_steps_count_in_the_first_rate():
    meter = RunMeter(counters(0.0, 0))
    assert "actors/env_steps_per_second" not in meter.row(counters(0.005, 512)), "not 102,400 a second"
    assert meter.row(counters(1.0, 1_000))["actors/env_steps_per_second"] == 1_000.0


def test_two_looks_in_a_row_tell_the_same_rate():
    meter = RunMeter(counters(0.0, 0))
    meter.row(counters(1.0, 1_000))
    again = meter.row(counters(1.01, 1_500))
    assert (again["actors/env_steps"], again["actors/env_steps_per_second"]) == (1_500.0, 1_000.0)


def test_samples_an_insert_are_not_told_where_nothing_was_inserted():
    assert "replay/samples_per_insert" not in RunMeter(counters(0.0, 5)).row(counters(1.0, 5, 9, 90))


def test_a_learner_that_counts_again_from_its_checkpoint_has_no_negative_rate():
    meter = RunMeter(counters(0.0, 0, 1_000, 8_000))
    row = meter.row(counters(1.0, 100, 100, 800))
    assert "learner/updates_per_second" not in row
    assert "replay/samples_per_insert" not in row
    assert meter.row(counters(2.0, 200, 150, 1_200))["learner/updates_per_second"] == 50.0


def test_success_that_is_told_of_won_episodes_alone_counts_the_others_as_lost():
    meter = RunMeter(counters(0.0, 0))
    ended = [EpisodeStatistics(0, number, 1.0, 5, terminated=True) for number in range(4)]
    meter.add_episodes((episode, 0.0) for episode in ended)
    assert "actors/success_rate" not in meter.row(counters(1.0, 10))
    meter.add_episodes([(EpisodeStatistics(0, 5, 1.0, 5, True, {"success": 1.0, "score": 3.0}), 0.0)])
    row = meter.row(counters(2.0, 20))
    assert row["actors/success_rate"] == 0.2
    assert row["actors/score"] == 3.0, "of those that tell it"


def test_a_session_that_goes_on_counts_what_was_told_before_for_episodes_that_ended_before():
    """Its environments begin anew, so those that end first are short: by themselves they would be a dip."""
    earlier = {"actors/episode_return": 200.0, "actors/env_steps": 30_000.0}
    meter = RunMeter(counters(9.0, 30_000), earlier)
    assert "actors/episode_return" not in meter.row(counters(9.5, 30_005))
    meter.add_episodes((EpisodeStatistics(0, number, 20.0, 20, terminated=True), 0.0) for number in range(10))
    row = meter.row(counters(10.0, 30_010))
    assert row["actors/episode_return"] == pytest.approx(182.0)  # (10 · 20 + 90 · 200) / 100
    assert (row["actors/episode_length"], row["actors/env_steps"]) == (20.0, 30_010.0)
    meter.add_episodes((EpisodeStatistics(0, number, 300.0, 300, terminated=True), 0.0) for number in range(100))
    assert meter.row(counters(11.0, 30_020))["actors/episode_return"] == 300.0


def test_what_was_told_before_is_the_last_row_that_tells_of_episodes(tmp_path):
    run = create_run(tmp_path, "a")
    save_checkpoint(run.checkpoints, 50, CheckpointParts(tensors={}, tables={}, state={}), keep_last=1)
    history = History(run.history)
    for row in ({"actors/episode_return": 1.0}, {"actors/episode_return": 2.0, "actors/score": None}, {"x": 1.0}):
        history.append({name: math.nan if value is None else value for name, value in row.items()})
    history.close()
    assert figures_before(load_checkpoint(run.checkpoints)) == {"actors/episode_return": 2.0}
    assert figures_before(None) == {}
