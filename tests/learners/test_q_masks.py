"""Action masks of Q-learners: policies never choose what is masked, targets never bootstrap from it."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from onibi.learners.dqn import DqnLearner, DqnSettings
from onibi.learners.dqn_policy import NumpyQForward, TorchQForward
from onibi.learners.exploration import ExplorationSettings
from onibi.learners.networks.mlp import MlpSettings
from onibi.learners.networks.noisy import NoisySettings
from onibi.learners.pqn import PqnLearner, PqnSettings
from onibi.learners.support import SupportSettings
from onibi.platform.policy import LaneRange, weights_version
from onibi.platform.spec import ACTION_MASK, ArraySpec, ReplaySpec

MASK = ArraySpec(name=ACTION_MASK, dtype="uint8", shape=(4,), low=0, high=1)
FLAT = ReplaySpec(observation=(ArraySpec(name="observation.x", dtype="float32", shape=(3,)), MASK), actions=4)
IMAGE = ReplaySpec(observation=(ArraySpec(name="observation.x", dtype="uint8", shape=(6, 6, 2)), MASK), actions=4)
OWNERS = {"dqn": (DqnLearner, DqnSettings), "pqn": (PqnLearner, PqnSettings)}


def settings_of(kind, **others):
    shape = {"rows": 4, "batch_lanes": 4, "minibatches": 2} if kind == "pqn" else {}
    return OWNERS[kind][1](**{"value_loss": "mse"} | shape | others)


def observation_of(make_observation, spec, rows):
    """Random observations; of each row some actions are masked, never all."""
    observation = make_observation(spec, rows, np.random.default_rng(0))
    mask = observation[ACTION_MASK]
    mask[np.arange(rows), np.arange(rows) % 4] = 1
    mask[np.arange(rows), (np.arange(rows) + 1) % 4] = 0
    return observation


@pytest.mark.parametrize("kind", ["dqn", "pqn"])
@pytest.mark.parametrize(("spec", "forward_class"), [(FLAT, NumpyQForward), (IMAGE, TorchQForward)])
@pytest.mark.parametrize("exploration", [{"base": 0.0}, {"base": 1.0}, {"base": 0.3, "temperature": 0.5}])
def test_a_masked_action_is_never_chosen(make_observation, kind, spec, forward_class, exploration):
    settings, owner = settings_of(kind, exploration=ExplorationSettings(**exploration)), OWNERS[kind][0]
    learner = owner(settings, spec, None, 0, "cpu")
    policy = owner.policy_factory(settings, spec)(LaneRange(0, 40, 40))
    assert isinstance(policy._forward, forward_class)
    observation, rng = observation_of(make_observation, spec, 40), np.random.default_rng(1)
    for weights in (None, learner.weights(weights_version(0, 1))):
        if weights is not None:
            policy.load(weights)
        for _ in range(30):
            action = policy.act(observation, None, rng).action
            assert (observation[ACTION_MASK][np.arange(40), action] == 1).all()


def test_noisy_values_are_masked_too(make_observation):
    settings = settings_of("dqn", noisy=NoisySettings(sigma=5.0), exploration=ExplorationSettings(base=0.0))
    policy = DqnLearner.policy_factory(settings, FLAT)(LaneRange(0, 40, 40))
    policy.load(DqnLearner(settings, FLAT, None, 0, "cpu").weights(weights_version(0, 1)))
    observation, rng = observation_of(make_observation, FLAT, 40), np.random.default_rng(1)
    for _ in range(30):
        action = policy.act(observation, None, rng).action
        assert (observation[ACTION_MASK][np.arange(40), action] == 1).all()


@pytest.mark.parametrize("kind", ["dqn", "pqn"])
def test_the_mask_is_no_input_of_the_network(kind):
    learner = OWNERS[kind][0](settings_of(kind, network=MlpSettings(hidden=(8,))), FLAT, None, 0, "cpu")
    assert learner._network.encoder.trunk.linear[0].in_features == 3


@pytest.mark.parametrize("loss", ["mse", "c51"])
@pytest.mark.parametrize("double", [True, False])
def test_the_target_is_that_of_the_best_allowed_action(make_windows, loss, double):
    support = SupportSettings(low=-1.0, high=1.0) if loss == "c51" else SupportSettings()
    settings = DqnSettings(value_loss=loss, support=support, double=double, n_steps=1)
    learner = DqnLearner(settings, FLAT, None, 0, "cpu")
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in [*learner._network.parameters(), *learner._target.parameters()]:
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.5)
    windows = make_windows(FLAT, 32, 1, np.random.default_rng(0))
    mask = windows.bootstrap_observation[ACTION_MASK]
    mask[:, 0] = 1
    inputs = learner._inputs(windows, windows.reward)
    with torch.no_grad():
        values = learner._target.action_values(inputs["bootstrap"]).numpy()
        chooser = learner._network.action_values(inputs["bootstrap"]).numpy() if double else values
    best = np.where(mask == 1, chooser, -np.inf).argmax(axis=1)
    assert (best != chooser.argmax(axis=1)).sum() > 5  # or the mask would say nothing
    expected = windows.reward[:, 0] + 0.99 * values[np.arange(32), best]
    if loss == "c51":
        atoms, probabilities = learner._target_distribution(inputs)
        found = (atoms * probabilities).sum(dim=1).numpy()
    else:
        found = learner._target_values(inputs).numpy()
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_pqn_bootstraps_from_the_best_action_that_the_next_observation_allows(make_batch):
    settings = settings_of("pqn", trace_decay=0.0)
    learner = PqnLearner(settings, FLAT, None, 0, "cpu")
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in learner._network.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.5)
    slab = make_batch(FLAT, PqnLearner.needs(settings), np.random.default_rng(0))
    slab.observation[ACTION_MASK][..., 0] = 1
    observation = {name: torch.from_numpy(leaf) for name, leaf in slab.observation.items()}
    with torch.no_grad():
        rows = {name: leaf[:, 1:].flatten(0, 1) for name, leaf in observation.items()}
        values = learner._network.action_values(rows).numpy().reshape(4, 4, 4)
    allowed = np.where(slab.observation[ACTION_MASK][:, 1:] == 1, values, -np.inf).max(axis=2)
    assert (allowed != values.max(axis=2)).any()
    found = learner._returns(slab, slab.reward, observation).numpy()
    np.testing.assert_allclose(found, slab.reward + 0.99 * allowed, atol=1e-5)
