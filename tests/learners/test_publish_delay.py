from __future__ import annotations

import pytest

from onibi.learners.publish_delay import PublishDelay


def test_the_delay_is_from_the_copy_to_its_arrival_in_seconds_and_updates():
    delay = PublishDelay()
    delay.sent(10, now=100.0)
    delay.sent(20, now=101.0)
    assert delay.take() == {}
    delay.arrived(10, updates_now=13, now=100.5)
    delay.arrived(20, updates_now=21, now=102.5)
    assert delay.take() == {
        "learner/publish_delay_mean_seconds": pytest.approx(1.0),  # (0.5 + 1.5) / 2
        "learner/publish_delay_max_seconds": pytest.approx(1.5),
        "learner/publish_delay_mean_updates": 2.0,  # (3 + 1) / 2
        "learner/publish_delay_max_updates": 3.0,
    }
    assert delay.take() == {}


def test_a_newer_copy_that_arrives_first_brings_the_older_ones_with_it():
    delay = PublishDelay()
    for updates in (10, 20, 30):
        delay.sent(updates, now=float(updates))
    delay.arrived(20, updates_now=20, now=25.0)
    found = delay.take()
    assert found["learner/publish_delay_max_seconds"] == 15.0  # of the one of update 10
    assert found["learner/publish_delay_mean_updates"] == 5.0  # (10 + 0) / 2
    delay.arrived(10, updates_now=20, now=26.0)
    assert delay.take() == {}
    delay.arrived(30, updates_now=30, now=31.0)
    assert delay.take()["learner/publish_delay_max_seconds"] == 1.0
