"""Impala and appo learn; without what makes them learn, they do not."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from onibi.learners.appo import AppoLearner, AppoSettings
from onibi.learners.impala import ImpalaLearner, ImpalaSettings
from onibi.learners.networks.core_settings import CoreSettings
from onibi.learners.networks.mlp import MlpSettings
from onibi.platform.policy import LaneRange, weights_version
from onibi.platform.replay.samplers.fifo_sampler import Slab
from onibi.platform.spec import ArraySpec, ReplaySpec

LANES, ROWS = 16, 16
SPEC = ReplaySpec(observation=(ArraySpec(name="observation", dtype="float32", shape=(2,)),), actions=2)
PLANE = dataclasses.replace(
    SPEC,
    actions=0,
    action=ArraySpec(name="action", dtype="float32", shape=(1,)),
    action_low=(-np.inf,),
    action_high=(np.inf,),
)
SHARED = {
    "rows": ROWS,
    "batch_lanes": LANES,
    "value_loss": "mse",
    "discount": 0.0,
    "learning_rate": 2e-2,
    "network": MlpSettings(hidden=(16,), layer_norm=False, activation="tanh"),
}


def play(settings, spec, owner, updates, reward_of, remember=1):
    """Learn a task whose observations are random signs: the reward follows the sign ``remember`` steps ago."""
    learner = owner(settings, spec, None, 0, "cpu")
    policy = owner.policy_factory(settings, spec)(LaneRange(0, LANES, LANES))
    rng, state = np.random.default_rng(0), policy.initial_state(LANES)
    signs = rng.integers(2, size=(LANES, remember)) * 2.0 - 1.0
    paid = []
    for update in range(updates):
        policy.load(learner.weights(weights_version(0, update)))
        columns = {"observation": [], "action": [], "reward": []}
        extra = {column.name: [] for column in owner.needs(settings).extra}
        for row in range(ROWS + 1):
            sign = rng.integers(2, size=LANES) * 2.0 - 1.0
            signs = np.concatenate((signs[:, 1:], sign[:, None]), axis=1)
            observation = np.stack((sign, np.ones(LANES)), axis=1).astype(np.float32)
            columns["observation"].append(observation)
            if row == ROWS:
                break
            step = policy.act({"observation": observation}, state, rng)
            state = step.state
            columns["action"].append(step.action)
            columns["reward"].append(reward_of(signs[:, 0], step.action))
            for name, values in step.extra.items():
                extra[name].append(values)
        stacked = {name: np.stack(rows, axis=1) for name, rows in columns.items()}
        paid.append(stacked["reward"].mean())
        flags = np.zeros((LANES, ROWS), np.uint8)
        slab = Slab(
            observation={"observation": stacked["observation"]},
            action=stacked["action"],
            reward=stacked["reward"].astype(np.float32),
            terminated=flags,
            truncated=flags.copy(),
            role=flags.copy(),
            policy_version=flags.astype(np.int64),
            caption_id=flags.astype(np.uint32),
            caption_count=np.zeros((LANES, ROWS, 4), np.uint16),
            used=np.ones((LANES, ROWS), bool),
            begins=np.zeros((LANES, ROWS), bool),
            lane=np.arange(LANES),
            generation=np.zeros(LANES, np.int64),
            extra={name: np.stack(rows, axis=1) for name, rows in extra.items()},
        )
        learner.update(slab, slab.reward)
    return float(np.mean(paid[-5:]))


def right(sign, action):
    return (action == (sign > 0)).astype(np.float32)


def near(sign, action):
    return -((action[:, 0] - sign) ** 2)


OWNERS = {"impala": (ImpalaLearner, ImpalaSettings), "appo": (AppoLearner, AppoSettings)}


@pytest.mark.parametrize("kind", OWNERS)
def test_the_sign_that_is_seen_is_learnt_and_without_a_learning_rate_it_is_not(kind):
    owner, settings = OWNERS[kind]
    assert play(settings(**SHARED), SPEC, owner, 30, right) > 0.9
    assert play(settings(**{**SHARED, "learning_rate": 0.0}), SPEC, owner, 30, right) < 0.6


@pytest.mark.parametrize("kind", OWNERS)
def test_the_sign_before_is_learnt_with_memory_alone(kind):
    owner, settings = OWNERS[kind]
    core = CoreSettings(cell="gru", size=16)
    assert play(settings(**SHARED, core=core), SPEC, owner, 60, right, remember=2) > 0.85
    assert play(settings(**SHARED), SPEC, owner, 60, right, remember=2) < 0.6


@pytest.mark.parametrize("kind", OWNERS)
def test_a_continuous_action_is_brought_to_where_it_pays(kind):
    owner, settings = OWNERS[kind]
    shared = {**SHARED, "initial_log_std": -0.5, "entropy_coefficient": 0.0}
    assert play(settings(**shared), PLANE, owner, 60, near) > -0.35
    assert play(settings(**{**shared, "learning_rate": 0.0}), PLANE, owner, 60, near) < -0.9
