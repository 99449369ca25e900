"""A user's own encoder in the learners and policies that hand further tensors about beside the observation."""

from __future__ import annotations

import numpy as np
import pytest

from onibi.learners.registry import LEARNERS
from onibi.platform.config import load_class, read_settings
from onibi.platform.policy import LaneRange, weights_version
from onibi.platform.spec import ACTION_MASK, ArraySpec, ReplaySpec

OWN = """
import math
import torch
from torch import nn

class ReadsAll(nn.Module):
    def __init__(self, observation):
        super().__init__()
        self.layer = nn.Linear(sum(math.prod(leaf.shape) for leaf in observation), 8)
    def forward(self, observation):
        return torch.relu(self.layer(torch.cat([each.flatten(1).float() for each in observation.values()], 1)))
"""
STATE = ArraySpec(name="observation.state", dtype="float32", shape=(4,))
MASK = ArraySpec(name=ACTION_MASK, dtype="int8", shape=(3,), low=0, high=1)
SLABS = {"rows": 6, "batch_lanes": 4, "value_loss": "mse"}
SEQUENCES = {"length": 6, "burn_in": 3, "period": 3, "batch_size": 4, "value_loss": "mse", "support": {}}


@pytest.fixture
def network(tmp_path, monkeypatch):
    (tmp_path / "own_network_that_reads_all.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    return {"kind": "custom", "path": "own_network_that_reads_all:ReadsAll"}


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("dqn", {"value_loss": "mse"}),
        ("dqn", {"value_loss": "mse", "noisy": {"sigma": 0.5}}),
        ("pqn", SLABS),
        ("r2d2", SEQUENCES),
        ("impala", SLABS),
        ("impala", {**SLABS, "core": {"cell": "gru", "size": 8}}),
        ("appo", {**SLABS, "core": {"cell": "lstm", "size": 8}}),
    ],
)
def test_a_users_network_gets_the_leaves_it_was_made_for_and_no_others(
    network, make_batch, make_observation, kind, options, masked
):
    spec = ReplaySpec(observation=(STATE, MASK) if masked else (STATE,), actions=3)
    owner = load_class(LEARNERS, kind)
    settings = read_settings(owner.Settings, {**options, "network": network})
    learner = owner(settings, spec, None, 0, "cpu")
    batch = make_batch(spec, owner.needs(settings), np.random.default_rng(0))
    learner.update(batch, batch.reward)
    policy = owner.policy_factory(settings, spec)(LaneRange(0, 4, 4))
    policy.load(learner.weights(weights_version(0, 1)))
    observation = make_observation(spec, 4, np.random.default_rng(0))
    if masked:
        observation[ACTION_MASK][:] = [0, 1, 1]
    step = policy.act(observation, policy.initial_state(4), np.random.default_rng(0))
    assert ((step.action >= int(masked)) & (step.action < 3)).all()


def test_a_users_network_learns_statistics_of_its_own_leaves_alone(network, make_batch):
    spec = ReplaySpec(observation=(STATE, MASK), actions=3)
    owner = load_class(LEARNERS, "dqn")
    settings = read_settings(owner.Settings, {"value_loss": "mse", "network": network})
    learner = owner(settings, spec, None, 0, "cpu")
    seen = []
    learner._network.encoder.module.learn_statistics = seen.append
    batch = make_batch(spec, owner.needs(settings), np.random.default_rng(0))
    learner.update(batch, batch.reward)
    assert [sorted(each) for each in seen] == [["observation.state"]]
