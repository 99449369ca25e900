"""When weights are sent, at given times."""

from __future__ import annotations

import pytest

from onibi.learners.weights_outbox import WeightsOutbox
from onibi.platform.policy import Weights, WeightsVersion


@pytest.fixture
def outbox():
    sent = []
    return WeightsOutbox(lambda weights: sent.append(int(weights.version)), 0.5), sent


def weights(version: int) -> Weights:
    return Weights(WeightsVersion(version), {})


def test_the_first_weights_and_those_after_the_period_go_at_once(outbox):
    box, sent = outbox
    box.put(weights(1), 10.0)
    box.put(weights(2), 10.5)
    box.put(weights(3), 20.0)
    assert sent == [1, 2, 3]


def test_weights_that_come_too_soon_wait_and_only_the_newest_is_sent_once(outbox):
    box, sent = outbox
    box.put(weights(1), 10.0)
    box.put(weights(2), 10.1)
    box.put(weights(3), 10.2)
    box.send_due(10.49)
    assert sent == [1]
    box.send_due(10.5)
    box.send_due(11.1)
    assert sent == [1, 3]


def test_the_period_begins_when_weights_were_sent_not_when_they_came(outbox):
    box, sent = outbox
    box.put(weights(1), 10.0)
    box.put(weights(2), 10.1)
    box.send_due(12.0)
    box.put(weights(3), 12.4)
    assert sent == [1, 2]
    box.put(weights(4), 12.5)
    assert sent == [1, 2, 4]


def test_nothing_is_sent_where_nothing_waits(outbox):
    box, sent = outbox
    box.send_due(1.0)
    assert sent == []
