"""The learner's Ray shell as the plain class that it is: what its publishing thread does with failures."""

from __future__ import annotations

import threading
from concurrent.futures import Future
from types import SimpleNamespace

import pytest
from ray.exceptions import ActorDiedError, ObjectStoreFullError

from onibi.learners import learner_actor
from onibi.learners.learner_actor import LearnerActor, LearnerParts
from onibi.learners.learner_loop import LearnerReport
from onibi.platform.errors import LearnerLostError, TrainingError
from onibi.platform.policy import Weights, weights_version


class Hub:
    """Answers as a hub's handle does, or fails."""

    def __init__(self, failure=None):
        self.published, self._failure = [], failure
        self.table_after = SimpleNamespace(remote=lambda *_: SimpleNamespace(future=Future))
        self.publish_weights = SimpleNamespace(remote=self._publish)
        self.note = SimpleNamespace(remote=lambda _notes: None)

    def _publish(self, version, _references):
        self.published.append(version)
        answer = Future()
        answer.set_exception(self._failure) if self._failure else answer.set_result(None)
        return SimpleNamespace(future=lambda: answer)


def actor_of(hub, arrived, versions):
    """An actor that publishes ``versions`` while it is built, and whose limiter then lets it wait."""

    def build(publish):
        for version in versions:
            publish(Weights(weights_version(0, version), {}))
        loop = SimpleNamespace(
            ready=lambda: False, report=lambda: LearnerReport(0, {}), table_version=-1, weights_arrived=arrived.append
        )
        return LearnerParts(None, SimpleNamespace(drawn_rows=0, figures=dict), loop)

    actor = LearnerActor.__ray_actor_class__(hub, 1)
    actor.build(build)
    return actor


def test_a_publication_that_failed_is_raised_by_the_slice_even_if_no_other_follows(monkeypatch):
    def full(_weights):
        raise ObjectStoreFullError("full")

    monkeypatch.setattr(learner_actor.ray, "put", full)
    hub = Hub()
    actor = actor_of(hub, [], [1])
    with pytest.raises(ObjectStoreFullError):
        actor.train(0.3)
    actor.train(0.01)  # once: what comes after it is another matter
    assert hub.published == []


def test_weights_go_out_in_their_order_however_long_one_takes(monkeypatch):
    slow = threading.Event()

    def put(weights):
        if int(weights.version) == int(weights_version(0, 1)):
            slow.wait(0.3)
        return weights

    monkeypatch.setattr(learner_actor.ray, "put", put)
    monkeypatch.setattr(learner_actor, "_PUBLISH_SECONDS", 0.0)
    hub, arrived = Hub(), []
    actor = actor_of(hub, arrived, [1, 2, 3])
    actor.train(0.5)
    assert hub.published == [int(weights_version(0, version)) for version in (1, 2, 3)]


@pytest.mark.parametrize("failure", [None, RuntimeError("the hub is gone")])
def test_only_weights_that_the_hub_took_count_as_arrived(monkeypatch, failure):
    monkeypatch.setattr(learner_actor.ray, "put", lambda weights: weights)
    arrived = []
    actor = actor_of(Hub(failure), arrived, [])
    actor._send(Weights(weights_version(0, 7), {}))
    actor._finish_sending(wait=True)
    assert arrived == ([] if failure else [weights_version(0, 7)])


def test_a_learner_that_was_never_built_says_so():
    with pytest.raises(TrainingError, match="never built"):
        LearnerActor.__ray_actor_class__(Hub(), 1).train(0.1)


def test_a_learner_that_no_place_to_meet_is_told_starts_again_with_all_others(monkeypatch):
    def gone(_reference):
        raise ActorDiedError()

    monkeypatch.setattr(learner_actor.ray, "get", gone)
    monkeypatch.setattr(learner_actor.ray.util, "get_node_ip_address", lambda: "203.0.113.77")
    actor = LearnerActor.__ray_actor_class__(Hub(), 1)
    actor.build(lambda _publish, place: pytest.fail(f"it met at {place}"), ["a reference"])
    with pytest.raises(LearnerLostError, match="the first learner tells no place to meet at"):
        actor.train(0.1)


def test_rows_that_another_learner_drew_before_this_one_trained_are_counted():
    feed = SimpleNamespace(drawn_rows=100, figures=dict)
    loop = SimpleNamespace(ready=lambda: False, report=lambda: LearnerReport(0, {}), table_version=-1)

    def build(_publish):
        drawn = feed.drawn_rows
        feed.drawn_rows += 16  # by the other one, as soon as it is let
        return LearnerParts(None, feed, loop, drawn)

    actor = LearnerActor.__ray_actor_class__(Hub(), 1)
    actor.build(build)
    assert actor.train(0.01).drawn_rows == 16
