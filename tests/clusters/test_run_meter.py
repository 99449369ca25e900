"""Rates from cumulative counters."""

from __future__ import annotations

from onibi.clusters.run_meter import RunCounters, RunMeter


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
