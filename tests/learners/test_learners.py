"""The contract of a learner, run over every name in the registry."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from onibi.learners.registry import LEARNERS
from onibi.platform.config import Settings, load_class, read_settings, to_mapping
from onibi.platform.errors import CheckpointError
from onibi.platform.policy import NO_WEIGHTS, LaneRange, weights_version

BOUNDS = (-1.0, 2.0)
SMALLER = {"r2d2": {"length": 6, "burn_in": 3, "period": 3, "batch_size": 4}}
"""Where the default batch is thousands of rows."""


@pytest.fixture(params=sorted(LEARNERS))
def owner(request):
    return load_class(LEARNERS, request.param)


@pytest.fixture
def settings(owner):
    return read_settings(owner.Settings, SMALLER.get(owner.Settings().kind, {}))


@pytest.fixture(params=["flat", "nethack", "grid"])
def spec(request, specs):
    return specs[request.param]


def updated(owner, settings, spec, make_batch, count=2):
    learner = owner(settings, spec, BOUNDS, 0, "cpu")
    needs = owner.needs(settings)
    for seed in range(count):
        batch = make_batch(spec, needs, np.random.default_rng(seed))
        learner.update(batch, batch.reward)
    return learner


def test_settings_are_settings_whose_kind_is_the_registered_name(owner, settings):
    assert isinstance(settings, Settings)
    assert LEARNERS[settings.kind].endswith(f":{owner.__name__}")
    assert read_settings(owner.Settings, to_mapping(settings)) == settings


def test_needs_are_told_without_making_a_learner(owner, settings):
    needs = owner.needs(settings)
    assert needs.draws.batch_size >= 1
    assert 1 <= needs.draws.batch_rows <= needs.draws.batch_size * needs.draws.window_rows


def test_updates_are_counted_and_batches_stay_as_they_were(owner, settings, spec, make_batch):
    learner, needs = owner(settings, spec, BOUNDS, 0, "cpu"), owner.needs(settings)
    batch = make_batch(spec, needs, np.random.default_rng(0))
    kept = pickle.loads(pickle.dumps(batch))
    learner.update(batch, batch.reward)
    assert learner.updates >= 1
    for name in ("reward", "used", "action", "policy_version"):
        np.testing.assert_array_equal(getattr(batch, name), getattr(kept, name))
    for part in ("observation", "extra"):
        for name, values in getattr(batch, part).items():
            np.testing.assert_array_equal(values, getattr(kept, part)[name])


def test_its_policies_take_its_weights_and_act_within_the_actions(owner, settings, spec, make_batch, make_observation):
    learner = updated(owner, settings, spec, make_batch)
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
        assert policy.version == weights_version(1, learner.updates)
        for step in (before, after):
            assert step.action.shape == (6,)
            assert step.action.dtype == np.int64
            assert ((step.action >= 0) & (step.action < spec.actions)).all()


def test_a_greedy_policy_gives_the_same_actions_whatever_the_random_numbers(
    owner, settings, spec, make_batch, make_observation
):
    policy = owner.policy_factory(settings, spec)(None)
    policy.load(updated(owner, settings, spec, make_batch).weights(weights_version(0, 2)))
    observation = make_observation(spec, 20, np.random.default_rng(0))
    state = policy.initial_state(20)
    first, second = (policy.act(observation, state, np.random.default_rng(seed)).action for seed in (1, 2))
    np.testing.assert_array_equal(first, second)


def test_its_state_goes_through_safetensors_and_goes_on_from_there(owner, settings, spec, make_batch, tmp_path):
    learner = updated(owner, settings, spec, make_batch)
    save_file(learner.state_dict(), tmp_path / "state.safetensors")
    restored = owner(settings, spec, BOUNDS, 1, "cpu")
    restored.load_state_dict(load_file(tmp_path / "state.safetensors"))
    assert restored.updates == learner.updates
    needs = owner.needs(settings)
    batch = make_batch(spec, needs, np.random.default_rng(9))
    for each in (learner, restored):
        each.update(batch, batch.reward)
    states = learner.state_dict(), restored.state_dict()
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_a_loss_that_a_class_of_yours_changes_is_the_one_that_is_learnt_from(owner, settings, specs, make_batch):
    class Unmoved(owner):
        def _losses(self, inputs):
            loss, details = super()._losses(inputs)
            return 0.0 * loss, details

    def parameters(learner):
        return {
            name: each
            for name, each in learner.state_dict().items()
            if name.startswith("network.") and "centres" not in name
        }

    begin = parameters(updated(owner, settings, specs["flat"], make_batch, count=0))
    moved, unmoved = (parameters(updated(each, settings, specs["flat"], make_batch)) for each in (owner, Unmoved))
    assert all(torch.equal(begin[name], unmoved[name]) for name in begin)
    assert not all(torch.equal(begin[name], moved[name]) for name in begin)


@pytest.mark.parametrize("spec", ["flat"], indirect=True)
def test_a_state_whose_bins_lie_elsewhere_is_refused_and_changes_nothing(owner, settings, spec, make_batch):
    """Shapes are the same, but what was learnt would mean other values: with an automatic support after a change of
    the rewards.
    """
    state = updated(owner, settings, spec, make_batch).state_dict()
    other = owner(settings, spec, (-1.0, 20.0), 0, "cpu")
    before = other.state_dict()
    with pytest.raises(CheckpointError, match=r"read off 51 bins from -1\.\d+ to 2\.\d+, those of these settings off"):
        other.load_state_dict(state)
    for name, values in other.state_dict().items():
        assert torch.equal(values, before[name]), name
    nearly = owner(settings, spec, (BOUNDS[0], BOUNDS[1] * (1 + 1e-7)), 0, "cpu")
    nearly.load_state_dict(state)
    assert nearly.updates > 0


@pytest.mark.parametrize("owner", ["appo", "impala"], indirect=True)
@pytest.mark.parametrize("spec", ["flat"], indirect=True)
def test_a_state_from_before_its_bins_were_kept_is_taken(owner, settings, spec, make_batch):
    state = updated(owner, settings, spec, make_batch).state_dict()
    del state["value_head.centres"]
    learner = owner(settings, spec, BOUNDS, 0, "cpu")
    learner.load_state_dict(state)
    assert learner.updates > 0
