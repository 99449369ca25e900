"""What R2D2 learns only if its memory works: a sign that is seen in the first step and asked for in the last."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from onibi.learners.networks.core_settings import STATE_COLUMN, CoreSettings
from onibi.learners.networks.mlp import MlpSettings
from onibi.learners.r2d2 import R2d2Learner
from onibi.learners.r2d2_settings import R2d2Settings
from onibi.learners.support import SupportSettings
from onibi.platform.spec import ArraySpec, ReplaySpec

LENGTH, BATCH, UPDATES = 5, 64, 500
SPEC = ReplaySpec(observation=(ArraySpec(name="observation", dtype="float32", shape=(2,)),), actions=2)


def settings_of(**others):
    given = {
        "value_loss": "hl_gauss",
        "support": SupportSettings(low=-0.5, high=1.5, bins=21),
        "discount": 0.9,
        "n_steps": 1,
        "length": LENGTH,
        "burn_in": 0,
        "period": LENGTH,
        "batch_size": BATCH,
        "learning_rate": 5e-3,
        "core": CoreSettings(size=16),
        "network": MlpSettings(hidden=(16,)),
    }
    return R2d2Settings(**given | others)


def episodes(make_batch, settings, rng):
    """(batch, signs [B]): whole episodes of random actions; the last one is paid 1 where it names the sign."""
    batch = make_batch(SPEC, R2d2Learner.needs(settings), rng)
    sign = rng.integers(2, size=BATCH)
    batch.observation["observation"][:] = 0.0
    batch.observation["observation"][0, np.arange(BATCH), sign] = 1.0
    batch.action[:] = rng.integers(2, size=batch.action.shape)
    batch.reward[:] = 0.0
    batch.reward[LENGTH - 1] = batch.action[LENGTH - 1] == sign
    batch.continues[:] = 1.0
    batch.continues[LENGTH - 1] = 0.0
    batch.used[:], batch.learning_mask[:] = True, True
    batch.steps[:], batch.burn_in[:] = LENGTH, 0
    batch.first_extra[STATE_COLUMN][:] = 0.0
    return batch, sign


def remembered(make_batch, settings, *, shuffle=False):
    """Share of new episodes in which the last action of the greatest value is the sign of the first step."""
    learner = R2d2Learner(settings, SPEC, None, 0, "cpu")
    rng = np.random.default_rng(0)
    for _ in range(UPDATES):
        batch, _ = episodes(make_batch, settings, rng)
        reward = batch.reward[:, rng.permutation(BATCH)] if shuffle else batch.reward
        learner.update(batch, np.ascontiguousarray(reward))
    batch, sign = episodes(make_batch, settings, rng)
    state = torch.zeros(BATCH, learner._network.core.state_size)
    previous = torch.zeros(BATCH, dtype=torch.int64)
    with torch.no_grad():
        for t in range(LENGTH):
            observation = {name: torch.from_numpy(leaf[t]) for name, leaf in batch.observation.items()}
            values, state = learner._network.step(observation, previous, state)
            previous = torch.from_numpy(batch.action[t]) + 1
    return float(np.mean(values.argmax(dim=1).numpy() == sign))


@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_a_sign_of_five_steps_ago_is_remembered(make_batch, cell):
    assert remembered(make_batch, settings_of(core=CoreSettings(cell=cell, size=16))) > 0.95


@pytest.mark.parametrize(
    ("others", "shuffle"), [({"learning_rate": 0.0}, False), ({}, True)], ids=["no learning rate", "shuffled rewards"]
)
def test_and_it_is_not_without_a_learning_rate_or_with_the_rewards_of_other_episodes(make_batch, others, shuffle):
    assert remembered(make_batch, settings_of(**others), shuffle=shuffle) < 0.8
