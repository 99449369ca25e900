from __future__ import annotations

import dataclasses
import pickle
import subprocess
import sys

import numpy as np
import pytest
import torch

from onibi.learners.actor_critic_policy import NumpyActorCriticFactory, TorchActorCriticFactory
from onibi.learners.appo import AppoLearner, AppoSettings
from onibi.learners.networks.core_settings import CoreSettings
from onibi.learners.networks.mlp import MlpSettings
from onibi.platform.policy import NO_WEIGHTS, LaneRange, weights_version
from onibi.platform.spec import ACTION_MASK, ArraySpec, ReplaySpec

VERSION = weights_version(1, 3)
LANES = LaneRange(0, 50, 50)
PLAIN = {"value_loss": "mse", "rows": 4, "batch_lanes": 8}
BOX = ReplaySpec(
    observation=(ArraySpec(name="observation", dtype="float32", shape=(3,)),),
    actions=0,
    action=ArraySpec(name="action", dtype="float32", shape=(2,)),
    action_low=(-1.0, -np.inf),
    action_high=(1.0, np.inf),
)
MASKED = ReplaySpec(
    observation=(
        ArraySpec(name="observation.state", dtype="float32", shape=(4,)),
        ArraySpec(name=ACTION_MASK, dtype="int8", shape=(5,), low=0, high=1),
    ),
    actions=5,
)
NETWORKS = {
    "relu": MlpSettings(hidden=(17, 9)),
    "tanh": MlpSettings(hidden=(17, 9), layer_norm=False, activation="tanh"),
    "normalised": MlpSettings(hidden=(8,), normalize_observation=True),
}
CORES = {"none": None, "gru": CoreSettings(cell="gru", size=6), "lstm": CoreSettings(cell="lstm", size=6)}


def trained(settings, spec, make_batch):
    """A learner whose every parameter and buffer has left its start."""
    learner = AppoLearner(settings, spec, None, 0, "cpu")
    batch = make_batch(spec, AppoLearner.needs(settings), np.random.default_rng(0))
    if spec.action is not None:
        batch.action = np.zeros((*batch.used.shape, *spec.action.shape), np.float32)
    learner.update(batch, batch.reward)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in learner._shared._network.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.6)
    return learner


def loaded(settings, spec, learner, lanes=LANES):
    policy = pickle.loads(pickle.dumps(AppoLearner.policy_factory(settings, spec)))(lanes)
    policy.load(pickle.loads(pickle.dumps(learner.weights(VERSION))))
    assert policy.version == VERSION
    return policy


def torch_log_probs(learner, observation, action, state):
    actor = learner._shared._network.actor
    with torch.no_grad():
        leaves = {name: torch.from_numpy(leaf) for name, leaf in observation.items()}
        features = actor.encoder(leaves)
        if actor.core is not None:
            features, _ = actor.core.step(features, torch.from_numpy(state))
        mask = leaves.get(ACTION_MASK)
        return actor.head(features, mask).log_prob(torch.from_numpy(action)).numpy()


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("core", CORES)
@pytest.mark.parametrize("name", ["flat", "mixed", "box", "masked"])
def test_flat_policies_act_in_numpy_by_the_torch_network_and_tell_its_log_probabilities(
    specs, make_batch, make_observation, network, core, name
):
    spec = {"box": BOX, "masked": MASKED}.get(name) or specs[name]
    settings = AppoSettings(**PLAIN, network=NETWORKS[network], core=CORES[core])
    learner = trained(settings, spec, make_batch)
    assert isinstance(AppoLearner.policy_factory(settings, spec), NumpyActorCriticFactory)
    policy, rng = loaded(settings, spec, learner), np.random.default_rng(0)
    state = policy.initial_state(50)
    for _ in range(3):  # memory goes on
        observation = make_observation(spec, 50, rng)
        step = policy.act(observation, state, rng)
        expected = torch_log_probs(learner, observation, step.action, state)
        np.testing.assert_allclose(step.extra["action_log_prob"], expected, rtol=1e-4, atol=1e-4)
        if core != "none":
            assert np.array_equal(step.extra["recurrent_state"], state)
            assert not np.array_equal(step.state, state)
        state = step.state
    assert step.extra.keys() == {column.name for column in AppoLearner.needs(settings).extra}
    assert step.action.dtype == (np.int64 if spec.action is None else np.float32)


@pytest.mark.parametrize("name", ["nethack", "grid"])
def test_other_networks_act_in_torch(specs, make_batch, make_observation, name):
    spec, settings = specs[name], AppoSettings(**PLAIN, core=CORES["gru"])
    learner = trained(settings, spec, make_batch)
    assert isinstance(AppoLearner.policy_factory(settings, spec), TorchActorCriticFactory)
    policy, rng = loaded(settings, spec, learner), np.random.default_rng(0)
    observation, state = make_observation(spec, 20, rng), policy.initial_state(20)
    step = policy.act(observation, state, rng)
    expected = torch_log_probs(learner, observation, step.action, state)
    np.testing.assert_allclose(step.extra["action_log_prob"], expected, rtol=1e-4, atol=1e-4)
    assert len(set(step.action.tolist())) > 1


def test_actions_are_drawn_on_lanes_and_the_likeliest_in_evaluations_unless_told_otherwise(
    specs, make_batch, make_observation
):
    spec = specs["flat"]
    settings = AppoSettings(**PLAIN)
    learner = trained(settings, spec, make_batch)
    observation = make_observation(spec, 400, np.random.default_rng(3))
    drawn, judged = loaded(settings, spec, learner), loaded(settings, spec, learner, lanes=None)
    as_drawn = loaded(dataclasses.replace(settings, evaluation_actions="sample"), spec, learner, lanes=None)

    def actions(policy, seed):
        return policy.act(observation, None, np.random.default_rng(seed)).action.tolist()

    assert actions(judged, 1) == actions(judged, 2)
    assert actions(drawn, 1) != actions(drawn, 2)
    assert actions(as_drawn, 1) == actions(drawn, 1)


@pytest.mark.parametrize("evaluated", [False, True])
def test_no_masked_action_is_chosen_before_the_first_weights_nor_after(make_batch, make_observation, evaluated):
    settings = AppoSettings(**PLAIN)
    learner = trained(settings, MASKED, make_batch)
    policy = AppoLearner.policy_factory(settings, MASKED)(None if evaluated else LANES)
    rng = np.random.default_rng(0)
    for _ in range(2):
        observation = make_observation(MASKED, 500, rng)
        mask = observation[ACTION_MASK]
        mask[mask.sum(axis=1) == 0] = 1
        step = policy.act(observation, None, rng)
        assert mask[np.arange(500), step.action].all()
        if policy.version == NO_WEIGHTS:
            np.testing.assert_allclose(step.extra["action_log_prob"], -np.log(mask.sum(axis=1)), rtol=1e-6)
        policy.load(learner.weights(VERSION))


def test_before_the_first_weights_memory_stays_empty_and_is_told(specs, make_observation):
    settings = AppoSettings(**PLAIN, core=CORES["lstm"])
    policy = AppoLearner.policy_factory(settings, specs["flat"])(LANES)
    step = policy.act(
        make_observation(specs["flat"], 9, np.random.default_rng(0)), policy.initial_state(9), np.random.default_rng(0)
    )
    assert not step.state.any()
    assert step.extra["recurrent_state"].shape == (9, 12)


def test_what_was_acted_is_not_changed_by_the_next_step_nor_by_newer_weights(specs, make_batch, make_observation):
    settings = AppoSettings(**PLAIN, core=CORES["gru"])
    learner = trained(settings, specs["flat"], make_batch)
    policy, rng = loaded(settings, specs["flat"], learner), np.random.default_rng(0)
    step = policy.act(make_observation(specs["flat"], 9, rng), policy.initial_state(9), rng)
    kept = pickle.loads(pickle.dumps(step))
    policy.act(make_observation(specs["flat"], 9, rng), step.state, rng)
    policy.load(learner.weights(VERSION))
    assert np.array_equal(step.action, kept.action)
    assert np.array_equal(step.state, kept.state)
    assert all(np.array_equal(step.extra[name], kept.extra[name]) for name in kept.extra)


@pytest.mark.parametrize("core", CORES)
def test_a_flat_policy_is_unpickled_loaded_and_acts_where_torch_cannot_be_imported(specs, make_batch, tmp_path, core):
    settings = AppoSettings(**PLAIN, core=CORES[core])
    learner = trained(settings, specs["flat"], make_batch)
    factory = AppoLearner.policy_factory(settings, specs["flat"])
    (tmp_path / "policy").write_bytes(pickle.dumps((factory, learner.weights(VERSION))))
    script = (
        "import pickle, sys\n"
        "sys.modules['torch'] = None\n"  # importing it raises ImportError
        "import numpy as np\n"
        "factory, weights = pickle.load(open(sys.argv[1], 'rb'))\n"
        "policy = factory(None)\n"
        "policy.load(weights)\n"
        "observation = {'observation': np.zeros((3, 4), np.float32)}\n"
        "print(policy.act(observation, policy.initial_state(3), np.random.default_rng(0)).action.shape)\n"
    )
    found = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "policy")], capture_output=True, text=True, check=False
    )
    assert (found.returncode, found.stdout.strip()) == (0, "(3,)"), found.stderr
