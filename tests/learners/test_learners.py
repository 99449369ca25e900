"""The contract of a learner, run over every name in the registry."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from onibi.learners.registry import LEARNERS
from onibi.platform.config import Settings, load_class, read_settings, to_mapping
from onibi.platform.policy import NO_WEIGHTS, LaneRange, weights_version

BOUNDS = (-1.0, 2.0)


@pytest.fixture(params=sorted(LEARNERS))
def owner(request):
    return load_class(LEARNERS, request.param)


@pytest.fixture
def settings(owner):
    return read_settings(owner.Settings, {})


@pytest.fixture(params=["flat", "nethack", "grid"])
def spec(request, specs):
    return specs[request.param]


def updated(owner, settings, spec, make_windows, count=2):
    learner = owner(settings, spec, BOUNDS, 0, "cpu")
    needs = owner.needs(settings)
    for seed in range(count):
        windows = make_windows(spec, needs.batch_size, needs.n_steps, np.random.default_rng(seed))
        learner.update(windows, windows.reward)
    return learner


def test_settings_are_settings_whose_kind_is_the_registered_name(owner, settings):
    assert isinstance(settings, Settings)
    assert LEARNERS[settings.kind].endswith(f":{owner.__name__}")
    assert read_settings(owner.Settings, to_mapping(settings)) == settings


def test_needs_are_told_without_making_a_learner(owner, settings):
    needs = owner.needs(settings)
    assert needs.batch_size >= 1
    assert needs.n_steps >= 1
    assert needs.sampling == "uniform"


def test_updates_are_counted_and_windows_stay_as_they_were(owner, settings, spec, make_windows):
    learner, needs = owner(settings, spec, BOUNDS, 0, "cpu"), owner.needs(settings)
    windows = make_windows(spec, needs.batch_size, needs.n_steps, np.random.default_rng(0))
    kept = pickle.loads(pickle.dumps(windows))
    learner.update(windows, windows.reward)
    assert learner.updates == 1
    for name in ("reward", "continues", "used", "action", "weight"):
        np.testing.assert_array_equal(getattr(windows, name), getattr(kept, name))
    for name, values in windows.observation.items():
        np.testing.assert_array_equal(values, kept.observation[name])


def test_its_policies_take_its_weights_and_act_within_the_actions(
    owner, settings, spec, make_windows, make_observation
):
    learner = updated(owner, settings, spec, make_windows)
    factory = pickle.loads(pickle.dumps(owner.policy_factory(settings, spec)))
    rng = np.random.default_rng(0)
    for lanes in (None, LaneRange(4, 6, 16)):
        policy = factory(lanes)
        observation = make_observation(spec, 6, rng)
        state = policy.initial_state(6)
        assert policy.version == NO_WEIGHTS
        before = policy.act(observation, state, rng)
        policy.load(pickle.loads(pickle.dumps(learner.weights(weights_version(1, learner.updates)))))
        after = policy.act(observation, before.state, rng)
        assert policy.version == weights_version(1, 2)
        for step in (before, after):
            assert step.action.shape == (6,)
            assert step.action.dtype == np.int64
            assert ((step.action >= 0) & (step.action < spec.actions)).all()


def test_a_greedy_policy_gives_the_same_actions_whatever_the_random_numbers(
    owner, settings, spec, make_windows, make_observation
):
    policy = owner.policy_factory(settings, spec)(None)
    policy.load(updated(owner, settings, spec, make_windows).weights(weights_version(0, 2)))
    observation = make_observation(spec, 20, np.random.default_rng(0))
    first, second = (policy.act(observation, None, np.random.default_rng(seed)).action for seed in (1, 2))
    np.testing.assert_array_equal(first, second)


def test_its_state_goes_through_safetensors_and_goes_on_from_there(owner, settings, spec, make_windows, tmp_path):
    learner = updated(owner, settings, spec, make_windows)
    save_file(learner.state_dict(), tmp_path / "state.safetensors")
    restored = owner(settings, spec, BOUNDS, 1, "cpu")
    restored.load_state_dict(load_file(tmp_path / "state.safetensors"))
    assert restored.updates == learner.updates
    needs = owner.needs(settings)
    windows = make_windows(spec, needs.batch_size, needs.n_steps, np.random.default_rng(9))
    for each in (learner, restored):
        each.update(windows, windows.reward)
    states = learner.state_dict(), restored.state_dict()
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
