"""Policies whose forward pass is computed elsewhere, among others' rows: the steps are those of one's own network."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch

from onibi.learners.appo import AppoLearner, AppoSettings
from onibi.learners.dqn import DqnLearner, DqnSettings
from onibi.learners.exploration import ExplorationSettings
from onibi.learners.networks.core_settings import CoreSettings
from onibi.learners.networks.mlp import MlpSettings
from onibi.learners.networks.noisy import NoisySettings
from onibi.learners.r2d2 import R2d2Learner
from onibi.learners.r2d2_settings import R2d2Settings
from onibi.platform.errors import ConfigError
from onibi.platform.policy import NO_WEIGHTS, LaneRange, weights_version
from onibi.platform.remote_policy import Answer, halves_of, remote_policy
from onibi.platform.replay.samplers.frame_stack import FrameStack
from onibi.platform.spec import ArraySpec, ReplaySpec
from onibi.platform.stacked_policy import StackedPolicyFactory

ENVS, VERSION = 6, weights_version(0, 9)
LANES = LaneRange(6, ENVS, 12)
SMALL = {"network": MlpSettings(hidden=(9,)), "value_loss": "mse"}
CORE = CoreSettings(cell="gru", size=5)
SLAB = {"rows": 4, "batch_lanes": 8}
EXPLORATION = ExplorationSettings(base=0.5, alpha=1.0, anneal_updates=20)
LEARNERS = {
    "dqn": (DqnLearner, DqnSettings(exploration=EXPLORATION, **SMALL)),
    "dqn, softmax": (DqnLearner, DqnSettings(exploration=ExplorationSettings(base=0.1, temperature=0.3), **SMALL)),
    "r2d2": (R2d2Learner, R2d2Settings(length=4, burn_in=2, period=2, core=CORE, exploration=EXPLORATION, **SMALL)),
    "appo": (AppoLearner, AppoSettings(**SLAB, **SMALL)),
    "appo with memory": (AppoLearner, AppoSettings(core=CORE, **SLAB, **SMALL)),
}
TORCH = {
    "dqn": (DqnLearner, DqnSettings(value_loss="mse", exploration=EXPLORATION)),
    "r2d2": (R2d2Learner, R2d2Settings(length=4, burn_in=2, period=2, core=CORE, value_loss="mse")),
    "appo": (AppoLearner, AppoSettings(value_loss="mse", **SLAB)),
}


class Elsewhere:
    """Computes the rows of a caller together with rows of somebody else's, as a process for many actors does."""

    def __init__(self, factory, stranger):
        self.forward = pickle.loads(pickle.dumps(halves_of(factory))).forward()
        self.stranger, self.version = stranger, NO_WEIGHTS

    def load(self, weights):
        self.forward.load(weights.arrays)
        self.version = weights.version

    def __call__(self, inputs):
        if self.version == NO_WEIGHTS:
            return Answer(NO_WEIGHTS, None)
        strange = {name: np.concatenate([self.stranger(rows), rows]) for name, rows in inputs.items()}
        outputs = self.forward(strange)
        count = len(next(iter(inputs.values())))
        mine = {name: rows[-count:].copy() for name, rows in outputs.items()}
        for rows in mine.values():
            rows.setflags(write=False)  # as Ray hands over what another process made
        return Answer(self.version, mine)


def strange_rows(rows):
    """Two rows of anything."""
    return np.ones((2, *rows.shape[1:]), rows.dtype)


def learner_of(owner, settings, spec):
    """One whose every parameter has left its start."""
    learner = owner(settings, spec, None, 0, "cpu")
    generator = torch.Generator().manual_seed(1)
    network = learner._shared._network if hasattr(learner, "_shared") else learner._network
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.5)
    return learner


def check_equal_steps(here, elsewhere, ask, learner, observations):
    """Step by step, the first three without weights."""
    rngs = [np.random.default_rng(3), np.random.default_rng(3)]
    states = [policy.initial_state(ENVS) for policy in (here, elsewhere)]
    for number, observation in enumerate(observations):
        if number == 3:
            weights = learner.weights(VERSION)
            here.load(weights)
            ask.load(weights)
        steps = [
            policy.act(observation, state, rng)
            for policy, state, rng in zip((here, elsewhere), states, rngs, strict=True)
        ]
        states = [step.state for step in steps]
        np.testing.assert_allclose(steps[1].action, steps[0].action, rtol=1e-5)
        assert steps[1].extra.keys() == steps[0].extra.keys()
        for name, column in steps[0].extra.items():
            np.testing.assert_allclose(steps[1].extra[name], column, rtol=1e-4, atol=1e-5)
        assert elsewhere.version == here.version == (NO_WEIGHTS if number < 3 else VERSION)
    assert rngs[0].bit_generator.state == rngs[1].bit_generator.state


@pytest.mark.parametrize("name", LEARNERS)
def test_steps_are_those_of_a_policy_with_a_network_of_its_own(specs, make_observation, name):
    owner, settings = LEARNERS[name]
    spec = specs["flat"]
    learner, factory = learner_of(owner, settings, spec), owner.policy_factory(settings, spec)
    ask = Elsewhere(factory, strange_rows)
    observations = [make_observation(spec, ENVS, np.random.default_rng(seed)) for seed in range(12)]
    check_equal_steps(factory(LANES), remote_policy(factory, LANES, ask), ask, learner, observations)


@pytest.mark.parametrize("name", TORCH)
def test_so_are_those_of_networks_in_torch(specs, make_observation, name):
    owner, settings = TORCH[name]
    spec = specs["grid"]
    learner, factory = learner_of(owner, settings, spec), owner.policy_factory(settings, spec)
    ask = Elsewhere(factory, strange_rows)
    observations = [make_observation(spec, ENVS, np.random.default_rng(seed)) for seed in range(6)]
    check_equal_steps(factory(LANES), remote_policy(factory, LANES, ask), ask, learner, observations)


@pytest.mark.parametrize("core", [None, CORE])
def test_so_are_continuous_actions(specs, make_observation, core):
    settings, spec = AppoSettings(core=core, **SLAB, **SMALL), specs["box"]
    learner, factory = learner_of(AppoLearner, settings, spec), AppoLearner.policy_factory(settings, spec)
    ask = Elsewhere(factory, strange_rows)
    observations = [make_observation(spec, ENVS, np.random.default_rng(seed)) for seed in range(8)]
    check_equal_steps(factory(LANES), remote_policy(factory, LANES, ask), ask, learner, observations)


def test_so_are_those_on_frame_stacks_and_frames_stay_with_the_caller(make_observation):
    one = ReplaySpec(observation=(ArraySpec(name="observation", dtype="float32", shape=(2,)),), actions=3)
    stack = FrameStack(frames=3, leaves=("observation",))
    settings = DqnSettings(exploration=EXPLORATION, **SMALL)
    learner = learner_of(DqnLearner, settings, stack.seen(one))
    factory = StackedPolicyFactory(DqnLearner.policy_factory(settings, stack.seen(one)), stack)
    ask = Elsewhere(factory, strange_rows)
    observations = [make_observation(one, ENVS, np.random.default_rng(seed)) for seed in range(10)]
    check_equal_steps(factory(LANES), remote_policy(factory, LANES, ask), ask, learner, observations)


def test_noise_on_weights_is_refused(specs):
    settings = DqnSettings(noisy=NoisySettings(), **SMALL)
    with pytest.raises(ConfigError, match=r"placement\.inference is set, but learner\.noisy"):
        halves_of(DqnLearner.policy_factory(settings, specs["flat"]))


def test_a_policy_in_one_piece_is_refused():
    with pytest.raises(ConfigError, match="in one piece"):
        halves_of(lambda lanes: None)
