from __future__ import annotations

import itertools
import pickle
import subprocess
import sys

import numpy as np
import pytest
import torch

from onibi.learners.dqn_policy import VALUES
from onibi.learners.exploration import ExplorationSettings
from onibi.learners.networks.core_settings import STATE_COLUMN, CoreSettings
from onibi.learners.networks.mlp import MlpSettings
from onibi.learners.r2d2 import R2d2Learner
from onibi.learners.r2d2_policy import PREVIOUS, STATE, NumpyRecurrentNetwork, TorchRecurrentNetwork
from onibi.learners.r2d2_settings import R2d2Settings
from onibi.learners.support import SupportSettings
from onibi.learners.value_losses import BINNED_LOSSES
from onibi.platform.policy import NO_WEIGHTS, LaneRange, weights_version

VERSION = weights_version(2, 7)
ENVS = 6


def settings_of(loss="hl_gauss", **others):
    support = {"support": SupportSettings(low=-1.0, high=2.0, bins=21)} if loss in BINNED_LOSSES else {}
    given = {"length": 4, "burn_in": 2, "period": 2, "core": CoreSettings(size=6), "value_loss": loss}
    return R2d2Settings(**given | support | others)


def trained(settings, spec):
    """A learner whose every parameter has left its start."""
    learner = R2d2Learner(settings, spec, None, 0, "cpu")
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in learner._network.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.6)
    return learner


def loaded(settings, spec, learner, lanes=None):
    policy = pickle.loads(pickle.dumps(R2d2Learner.policy_factory(settings, spec)))(lanes)
    policy.load(learner.weights(VERSION))
    return policy


@pytest.mark.parametrize(
    ("loss", "cell", "layer_norm"),
    list(itertools.product(["hl_gauss", "mse", "quantile", "iqn"], ["lstm", "gru"], [True, False])),
)
def test_numpy_values_and_states_over_an_episode_are_those_of_the_unrolled_network(
    specs, make_observation, loss, cell, layer_norm
):
    core = CoreSettings(cell=cell, size=6, layer_norm=layer_norm)
    settings = settings_of(loss, core=core, network=MlpSettings(hidden=(9,), normalize_observation=True))
    for spec in (specs["flat"], specs["mixed"]):
        learner = trained(settings, spec)
        policy = loaded(settings, spec, learner)
        assert isinstance(policy._forward, NumpyRecurrentNetwork)
        episode = [make_observation(spec, ENVS, np.random.default_rng(seed)) for seed in range(12)]
        core_state, values = policy.initial_state(ENVS)[:, :-1], []
        previous = np.random.default_rng(7).integers(spec.actions + 1, size=(12, ENVS))
        for observation, before in zip(episode, previous, strict=True):
            found = policy._forward({**observation, PREVIOUS: before, STATE: core_state})
            core_state = found[STATE]
            values.append(found[VALUES])
        together = {
            name: torch.from_numpy(np.stack([observation[name] for observation in episode])) for name in episode[0]
        }
        with torch.no_grad():
            start = torch.zeros(ENVS, learner._network.core.state_size)
            features = learner._network.unroll(together, torch.from_numpy(previous), start)
            expected = learner._network.action_values(features.flatten(0, 1)).view(12, ENVS, -1).numpy()
        np.testing.assert_allclose(np.stack(values), expected, rtol=1e-4, atol=1e-5)
        assert expected.std() > 0.003  # or equality would say little


@pytest.mark.parametrize("name", ["nethack", "grid"])
def test_the_torch_policy_acts_by_the_published_weights_and_remembers(specs, make_observation, name):
    spec, settings = specs[name], settings_of()
    learner = trained(settings, spec)
    policy = loaded(settings, spec, learner)
    assert isinstance(policy._forward, TorchRecurrentNetwork)
    first, second = (make_observation(spec, ENVS, np.random.default_rng(seed)) for seed in (1, 2))
    rng = np.random.default_rng(0)
    before = policy.act(first, policy.initial_state(ENVS), rng)
    after = policy.act(second, before.state, rng)
    with torch.no_grad():
        both = {key: torch.from_numpy(np.stack((first[key], second[key]))) for key in first}
        previous = torch.from_numpy(np.stack((np.zeros(ENVS, np.int64), before.action + 1)))
        features = learner._network.unroll(both, previous, torch.zeros(ENVS, learner._network.core.state_size))
        values = learner._network.action_values(features[1])
    assert after.action.tolist() == values.argmax(dim=1).tolist()
    assert after.state.dtype == np.float32
    forgetful = policy._forward({**second, PREVIOUS: before.action + 1, STATE: policy.initial_state(ENVS)[:, :-1]})[
        VALUES
    ]
    assert not np.allclose(forgetful, values.numpy(), atol=1e-4)


@pytest.mark.parametrize("name", ["flat", "grid"])
def test_each_step_brings_the_state_before_it(specs, make_observation, name):
    spec, settings = specs[name], settings_of()
    policy = loaded(settings, spec, trained(settings, spec))
    state, rng = policy.initial_state(ENVS), np.random.default_rng(0)
    assert not state.any()
    for seed in range(3):
        kept = state.copy()
        step = policy.act(make_observation(spec, ENVS, np.random.default_rng(seed)), state, rng)
        np.testing.assert_array_equal(step.extra[STATE_COLUMN], kept)
        assert step.extra[STATE_COLUMN].dtype == np.float32
        assert not np.array_equal(step.state, kept)
        assert step.state[:, -1].tolist() == (step.action + 1).tolist()
        state = step.state


def test_nothing_is_brought_where_states_are_not_stored(specs, make_observation):
    spec, settings = specs["flat"], settings_of(state="zero")
    policy = loaded(settings, spec, trained(settings, spec))
    rng = np.random.default_rng(0)
    step = policy.act(make_observation(spec, ENVS, rng), policy.initial_state(ENVS), rng)
    assert step.extra == {}


@pytest.mark.parametrize("name", ["flat", "nethack"])
def test_without_weights_every_action_is_equally_likely_and_the_core_rests(specs, make_observation, name):
    spec = specs[name]
    policy = R2d2Learner.policy_factory(settings_of(), spec)(LaneRange(0, 10, 10))
    assert policy.version == NO_WEIGHTS
    rng, observation = np.random.default_rng(0), make_observation(spec, 10, np.random.default_rng(1))
    state, actions = policy.initial_state(10), []
    for _ in range(1000):
        step = policy.act(observation, state, rng)
        actions.append(step.action)
        state = step.state
        assert not step.extra[STATE_COLUMN][:, :-1].any()
    expected = 10_000 / spec.actions
    chi_square = ((np.bincount(np.concatenate(actions), minlength=spec.actions) - expected) ** 2 / expected).sum()
    assert chi_square < 20.0  # p < 0.001 for at most 4 degrees of freedom
    assert not state[:, :-1].any()


def test_lanes_explore_by_their_place_in_the_ladder(specs, make_observation):
    spec = specs["flat"]
    settings = settings_of(exploration=ExplorationSettings(base=0.5, alpha=4.0))
    learner = trained(settings, spec)
    greedy, explorer = loaded(settings, spec, learner), loaded(settings, spec, learner, LaneRange(2, 2, 4))
    rng, observation = np.random.default_rng(0), make_observation(spec, 2, np.random.default_rng(1))
    state = greedy.initial_state(2)
    best = greedy.act(observation, state, rng).action
    off = sum((explorer.act(observation, state, rng).action != best).astype(int) for _ in range(6000)) / 6000
    # ε = ½^(1 + 4·2/3), ½^5; a random action is off in 2 of 3 cases
    np.testing.assert_allclose(off, np.array([0.5 ** (11 / 3), 0.5**5]) * 2 / 3, atol=0.012)


def test_a_flat_policy_acts_where_torch_cannot_be_imported(specs, tmp_path):
    spec, settings = specs["mixed"], settings_of()
    factory, weights = R2d2Learner.policy_factory(settings, spec), trained(settings, spec).weights(VERSION)
    (tmp_path / "policy").write_bytes(pickle.dumps((factory, weights)))
    script = (
        "import pickle, sys\n"
        "sys.modules['torch'] = None\n"  # importing it raises ImportError
        "import numpy as np\n"
        "factory, weights = pickle.load(open(sys.argv[1], 'rb'))\n"
        "policy = factory(None)\n"
        "policy.load(weights)\n"
        "position, room = np.zeros((3, 2, 2), np.float32), np.array([1, 5, 2])\n"
        "observation = {'observation.position': position, 'observation.room': room}\n"
        "step = policy.act(observation, policy.initial_state(3), np.random.default_rng(0))\n"
        "print(step.action.shape, step.state.shape)\n"
    )
    found = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "policy")], capture_output=True, text=True, check=False
    )
    assert (found.returncode, found.stdout.strip()) == (0, "(3,) (3, 13)"), found.stderr
