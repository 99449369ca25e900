from __future__ import annotations

import itertools
import pickle
import subprocess
import sys

import numpy as np
import pytest
import torch

from onibi.learners.dqn import DqnLearner, DqnSettings, policy_factory
from onibi.learners.dqn_policy import VALUES, NumpyQForward, NumpyQPolicyFactory, TorchQForward
from onibi.learners.exploration import ExplorationSettings
from onibi.learners.networks.mlp import MlpSettings
from onibi.learners.support import SupportSettings
from onibi.platform.policy import NO_WEIGHTS, LaneRange, weights_version

VERSION = weights_version(2, 7)


def settings_of(loss="hl_gauss", **others):
    support = SupportSettings(low=-1.0, high=2.0, bins=21) if loss == "hl_gauss" else SupportSettings()
    return DqnSettings(value_loss=loss, support=support, **others)


def trained(settings, spec, make_windows):
    """A learner whose every parameter and buffer has left its start."""
    learner = DqnLearner(settings, spec, None, 0, "cpu")
    for seed in range(3):
        windows = make_windows(spec, 32, settings.n_steps, np.random.default_rng(seed))
        learner.update(windows, windows.reward)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in learner._network.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.6)
    return learner


@pytest.mark.parametrize(
    ("loss", "dueling", "layer_norm", "normalize"),
    list(itertools.product(["hl_gauss", "mse"], [True, False], [True, False], [True, False])),
)
def test_numpy_values_are_torch_values(specs, make_windows, make_observation, loss, dueling, layer_norm, normalize):
    network = MlpSettings(hidden=(17, 9), layer_norm=layer_norm, normalize_observation=normalize)
    settings = settings_of(loss, dueling=dueling, network=network)
    for spec in (specs["flat"], specs["mixed"]):
        learner = trained(settings, spec, make_windows)
        policy = policy_factory(settings, spec)(None)
        assert isinstance(policy._forward, NumpyQForward)
        policy.load(learner.weights(VERSION))
        observation = make_observation(spec, 50, np.random.default_rng(9))
        tensors = {name: torch.from_numpy(values) for name, values in observation.items()}
        with torch.no_grad():
            expected = learner._network.action_values(tensors).numpy()
        np.testing.assert_allclose(policy._forward(observation)[VALUES], expected, rtol=1e-4, atol=1e-5)
        actions = policy.act(observation, None, np.random.default_rng(0)).action
        assert (actions == expected.argmax(axis=1)).mean() > 0.95  # near ties may differ
        assert expected.std(axis=0).min() > 0.003  # or equality would say little
        assert policy.version == VERSION


@pytest.mark.parametrize("name", ["nethack", "grid"])
@pytest.mark.parametrize("loss", ["hl_gauss", "huber"])
def test_the_torch_policy_acts_by_the_published_weights(specs, make_windows, make_observation, name, loss):
    spec, settings = specs[name], settings_of(loss)
    learner = trained(settings, spec, make_windows)
    policy = pickle.loads(pickle.dumps(policy_factory(settings, spec)))(None)
    assert isinstance(policy._forward, TorchQForward)
    policy.load(learner.weights(VERSION))
    observation = make_observation(spec, 40, np.random.default_rng(9))
    with torch.no_grad():
        values = learner._network.action_values({key: torch.from_numpy(array) for key, array in observation.items()})
    actions = policy.act(observation, None, np.random.default_rng(0)).action
    assert actions.tolist() == values.argmax(dim=1).tolist()
    assert len(set(actions.tolist())) > 1
    assert actions.dtype == np.int64


@pytest.mark.parametrize("name", ["flat", "nethack"])
def test_weights_published_before_are_not_touched_by_later_updates(specs, make_windows, name):
    spec, settings = specs[name], settings_of()
    learner = trained(settings, spec, make_windows)
    weights = learner.weights(VERSION)
    kept = {key: array.copy() for key, array in weights.arrays.items()}
    policy = policy_factory(settings, spec)(None)
    policy.load(weights)
    windows = make_windows(spec, 32, settings.n_steps, np.random.default_rng(5))
    learner.update(windows, windows.reward)
    assert any(not np.array_equal(kept[key], array) for key, array in learner.weights(VERSION).arrays.items())
    assert all(np.array_equal(kept[key], array) for key, array in weights.arrays.items())


@pytest.mark.parametrize("name", ["flat", "nethack"])
def test_without_weights_every_action_is_equally_likely(specs, make_observation, name):
    spec = specs[name]
    policy = policy_factory(settings_of(), spec)(LaneRange(0, 10, 10))
    assert policy.version == NO_WEIGHTS
    rng, observation = np.random.default_rng(0), make_observation(spec, 10, np.random.default_rng(1))
    actions = np.concatenate([policy.act(observation, None, rng).action for _ in range(1000)])
    expected = len(actions) / spec.actions
    chi_square = ((np.bincount(actions, minlength=spec.actions) - expected) ** 2 / expected).sum()
    assert chi_square < 20.0  # p < 0.001 for at most 4 degrees of freedom


def test_lanes_explore_by_their_place_in_the_ladder(specs, make_windows, make_observation):
    spec = specs["flat"]
    settings = settings_of(exploration=ExplorationSettings(base=0.5, alpha=4.0))
    learner = trained(settings, spec, make_windows)
    factory = policy_factory(settings, spec)
    greedy, explorer = factory(None), factory(LaneRange(2, 2, 4))
    for policy in (greedy, explorer):
        policy.load(learner.weights(VERSION))
    rng, observation = np.random.default_rng(0), make_observation(spec, 2, np.random.default_rng(1))
    best = greedy.act(observation, None, rng).action
    off = sum((explorer.act(observation, None, rng).action != best).astype(int) for _ in range(6000)) / 6000
    # ε = ½^(1 + 4·2/3), ½^5; a random action is off in 2 of 3 cases
    np.testing.assert_allclose(off, np.array([0.5 ** (11 / 3), 0.5**5]) * 2 / 3, atol=0.012)


def test_the_policy_for_evaluations_is_greedy_whatever_the_ladder(specs, make_windows, make_observation):
    spec = specs["flat"]
    settings = settings_of(exploration=ExplorationSettings(base=1.0))
    learner = trained(settings, spec, make_windows)
    policy = policy_factory(settings, spec)(None)
    policy.load(learner.weights(VERSION))
    observation = make_observation(spec, 5000, np.random.default_rng(1))
    best = policy._forward(observation)[VALUES].argmax(axis=1)
    assert (policy.act(observation, None, np.random.default_rng(0)).action == best).all()


def test_a_flat_policy_is_unpickled_loaded_and_acts_where_torch_cannot_be_imported(specs, make_windows, tmp_path):
    spec, settings = specs["mixed"], settings_of()
    factory, weights = policy_factory(settings, spec), trained(settings, spec, make_windows).weights(VERSION)
    assert isinstance(factory, NumpyQPolicyFactory)
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
        "print(policy.act(observation, None, np.random.default_rng(0)).action.shape)\n"
    )
    found = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "policy")], capture_output=True, text=True, check=False
    )
    assert (found.returncode, found.stdout.strip()) == (0, "(3,)"), found.stderr
