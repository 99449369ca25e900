"""The reward model's process at a hub that has nothing new for it."""

from __future__ import annotations

import functools
import time

import numpy as np
import ray

from onibi.learners.reward_models.held_out import is_held_out
from onibi.learners.reward_models.reward_learner import RewardLearner
from onibi.learners.reward_models.reward_model_actor import RewardModelActor
from onibi.learners.reward_models.settings import RewardModelSettings
from onibi.platform.annotation.captions import text_hash
from onibi.platform.rewards.training import LabelledKeys

SETTINGS = RewardModelSettings(hidden=(4,), held_out_share=0.2)


@ray.remote
class QuietHub:
    """Hands out one version of the labels, holds who has it back for a moment, and counts who did not wait."""

    def __init__(self, data):
        self._data = data
        self.told, self.waited = 0, 0

    def training_data(self, seen, wait_seconds):
        if seen >= self._data.version:
            self.waited += 1
            time.sleep(min(wait_seconds, 0.1))
            return None
        self.told += 1
        return self._data

    def set_scores(self, scores):
        pass

    def note(self, *_):
        pass

    def counts(self):
        return self.told, self.waited


def test_labels_that_are_all_held_out_are_fetched_once_and_not_again_and_again(small_ray):
    texts = [f"caption {number}" for number in range(200)]
    hashes = np.array([text_hash(text) for text in texts], np.uint64)
    keys = np.flatnonzero(is_held_out(hashes, SETTINGS.held_out_share)).astype(np.int32)
    assert len(keys) > 10
    data = LabelledKeys(
        version=1,
        key_texts=texts,
        askable=np.ones(len(texts), bool),
        sightings=np.ones(len(texts), np.int64),
        label_key=keys,
        label_score=np.ones(len(keys), np.float32),
        pair_first=np.empty(0, np.int32),
        pair_second=np.empty(0, np.int32),
        pair_preference=np.empty(0, np.float32),
    )
    hub = QuietHub.remote(data)
    actor = RewardModelActor.options(max_concurrency=3, num_cpus=0).remote(
        functools.partial(make_learner, SETTINGS), 0.0
    )
    run = actor.run.remote(hub, None)
    deadline = time.monotonic() + 60.0
    while ray.get(hub.counts.remote())[1] < 5:
        assert time.monotonic() < deadline, ray.get(hub.counts.remote())
        time.sleep(0.05)
    told, _ = ray.get(hub.counts.remote())
    ray.get(actor.stop.remote())
    ray.get(run)
    for handle in (actor, hub):
        ray.kill(handle)
    assert told <= 2  # keys without a score have been scored once


def make_learner(settings, state):
    learner = RewardLearner(settings, "classification", 1)
    assert state is None
    return learner
