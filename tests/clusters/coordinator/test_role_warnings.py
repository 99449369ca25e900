"""What roles log in processes of their own reaches the hub, and from there whoever watches the run."""

from __future__ import annotations

import functools
import logging
import time

import ray

from onibi.clusters.coordinator.hub_actor import HubActor
from onibi.clusters.coordinator.role_calls import last_notes
from onibi.clusters.run_plan import plan_run
from onibi.clusters.run_settings import RunSettings
from onibi.clusters.run_state import make_desk
from onibi.learners.learner_actor import LearnerActor
from onibi.platform.config import read_settings
from onibi.platform.errors import OnibiError


def fails(*_arguments):
    logging.getLogger("onibi.plug_in").warning("this network is slow")
    raise OnibiError("made to fail")


def test_a_warning_of_a_learner_is_heard_at_the_hub(small_ray, workshop):
    stores = plan_run(read_settings(RunSettings, workshop.settings())).for_stores()
    hub = HubActor.remote(functools.partial(make_desk, stores), stores.judges(), [], None, None, False)
    learner = LearnerActor.options(num_cpus=0).remote(hub, 1)
    learner.build.remote(fails)
    heard, deadline = [], time.monotonic() + 60
    while not heard and time.monotonic() < deadline:
        heard += ray.get(hub.notes.remote())
        time.sleep(0.05)
    assert heard == ["learner: this network is slow"]
    assert ray.get(hub.notes.remote()) == [], "each once"
    ray.get(hub.note.remote(["later"]))
    assert last_notes(hub) == ["later"]
    for actor in (learner, hub):
        ray.kill(actor)
    assert last_notes(hub) == [], "one that is gone tells nothing"
