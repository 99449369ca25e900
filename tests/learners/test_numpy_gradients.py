"""Gradients by hand against autograd, over all that the NumPy side claims to compute; and what it leaves alone."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from onibi.learners.acceleration import AccelerationSettings
from onibi.learners.actor_critic import OLD_VALUES_COLUMN, lanes_of
from onibi.learners.actor_critic_targets import SlabSteps, gae_targets, vtrace_targets
from onibi.learners.appo import AppoLearner, AppoSettings
from onibi.learners.impala import ImpalaLearner, ImpalaSettings
from onibi.learners.loss_program import LossProgram
from onibi.learners.networks.cnn import CnnSettings
from onibi.learners.networks.core_settings import CoreSettings
from onibi.learners.networks.mlp import MlpEncoder, MlpSettings
from onibi.learners.numpy_gradients.actor_critic_gradient import clipped_surrogate_of
from onibi.learners.numpy_gradients.slab_targets import SlabTargets, backward_sum, gae, slab_flow, vtrace
from onibi.learners.support import SupportSettings
from onibi.platform.spec import ACTION_MASK, ArraySpec, ReplaySpec

TANH = MlpSettings(hidden=(16, 12), layer_norm=False, activation="tanh")
RELU = MlpSettings(hidden=(24,), layer_norm=True, normalize_observation=True)
SMALL = {"rows": 7, "batch_lanes": 4, "network": TANH, "value_loss": "mse", "metrics_period_updates": 1}
SUPPORT = SupportSettings(low=-3.0, high=3.0)
MASKED = ReplaySpec(
    observation=(
        ArraySpec(name="observation.state", dtype="float32", shape=(4,)),
        ArraySpec(name=ACTION_MASK, dtype="int8", shape=(3,), low=0, high=1),
    ),
    actions=3,
)
CHOICES = {
    "impala": (ImpalaLearner, {"trace_decay": 0.9, "rho_bound": 1.5}),
    "appo vtrace": (AppoLearner, {"trace_bound": 0.8, "entropy_coefficient": 0.3}),
    "appo gae": (AppoLearner, {"returns": "gae", "trace_decay": 0.9, "normalize_advantages": False}),
    "value clip": (AppoLearner, {"value_clip": 0.2, "epochs": 2}),
    "value clip huber": (AppoLearner, {"value_clip": 0.2, "epochs": 2, "value_loss": "huber", "huber_delta": 0.3}),
    "huber": (ImpalaLearner, {"value_loss": "huber", "huber_delta": 0.3}),
    "hl_gauss": (AppoLearner, {"value_loss": "hl_gauss", "support": SUPPORT}),
    "hl_gauss symlog": (
        AppoLearner,
        {"value_loss": "hl_gauss", "support": SupportSettings(low=-3.0, high=3.0, spacing="symlog")},
    ),
    "two_hot": (ImpalaLearner, {"value_loss": "two_hot", "support": SUPPORT}),
}


def learner_of(owner, options, spec, scale=0.4):
    """A learner with parameters and running statistics away from their start."""
    learner = owner(owner.Settings(**{**SMALL, **options}), spec, None, 0, "cpu")
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in learner._shared.network.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * scale)
        for name, buffer in learner._shared.network.named_buffers():
            if name.endswith(("mean", "variance")):
                buffer.add_(torch.rand(buffer.shape, generator=generator))
    return learner


def inputs_of(learner, slab, old=None):
    inputs = learner._shared.inputs(slab, slab.reward)
    return inputs if old is None else {**inputs, "rows": {**inputs["rows"], OLD_VALUES_COLUMN: old}}


@pytest.fixture
def check_agreement(check_gradient):
    return lambda learner, inputs: check_gradient(
        learner._shared.network, learner._losses, learner._program._by_hand, inputs
    )


@pytest.mark.parametrize("choice", CHOICES)
@pytest.mark.parametrize("network", [TANH, RELU], ids=["tanh", "relu norms"])
@pytest.mark.parametrize("shared", [True, False], ids=["shared", "own critic"])
@pytest.mark.parametrize("name", ["flat", "mixed", "masked"])
def test_loss_gradients_and_figures_are_those_of_autograd(
    specs, slab_of, choice, network, shared, name, check_agreement
):
    owner, options = CHOICES[choice]
    spec = MASKED if name == "masked" else specs[name]
    learner = learner_of(owner, {**options, "network": network, "shared_encoder": shared}, spec)
    for seed in range(2):
        slab = slab_of(owner, learner.settings, spec, seed)
        if name == "masked":
            mask = slab.observation[ACTION_MASK]
            mask[:] = np.random.default_rng(seed).integers(2, size=mask.shape)
            at = np.arange(mask[:, :-1, 0].size)
            allowed = mask[:, :-1].reshape(-1, 3)
            allowed[at[slab.used.reshape(-1)], slab.action.reshape(-1)[slab.used.reshape(-1)]] = 1
            mask[:, :-1] = allowed.reshape(mask[:, :-1].shape)
        old = None
        if learner.settings.kind == "appo" and learner.settings.value_clip is not None:
            values = learner._values(inputs_of(learner, slab))
            old = values + torch.from_numpy(np.random.default_rng(seed).normal(0, 0.3, values.shape)).float()
        check_agreement(learner, inputs_of(learner, slab, old))


@pytest.mark.parametrize("owner", [ImpalaLearner, AppoLearner])
def test_a_slab_without_a_step_and_one_of_a_single_row_agree_too(specs, slab_of, owner, check_agreement):
    learner = learner_of(owner, {}, specs["flat"])
    slab = slab_of(owner, learner.settings, specs["flat"])
    slab.used[:] = False
    loss, _ = learner._program._by_hand(inputs_of(learner, slab))
    assert float(loss) == 0.0
    assert all(not parameter.grad.any() for parameter in learner._shared.network.parameters())
    learner = learner_of(owner, {"rows": 1}, specs["flat"])
    check_agreement(learner, inputs_of(learner, slab_of(owner, learner.settings, specs["flat"], ends=False)))


def test_constant_features_outliers_and_masks_that_allow_nothing_agree_too(specs, slab_of, check_agreement):
    learner = learner_of(AppoLearner, {"network": RELU}, specs["flat"])
    normalizer = learner._shared.network.actor.encoder.normalizer
    slab = slab_of(AppoLearner, learner.settings, specs["flat"])
    slab.observation["observation"][..., 1] = 2.0
    with torch.no_grad():
        normalizer.mean[1], normalizer.variance[1] = 2.0 - 1e-3, 0.0  # a feature that was never anything else
    slab.observation["observation"][0, :, 0] = 1e4  # clipped to ten deviations
    check_agreement(learner, inputs_of(learner, slab))
    learner = learner_of(AppoLearner, {}, MASKED)
    slab = slab_of(AppoLearner, learner.settings, MASKED)
    slab.observation[ACTION_MASK][:] = 0  # in used rows, too: all actions count as allowed
    check_agreement(learner, inputs_of(learner, slab))


def test_buffers_follow_the_size_of_the_batch_in_both_directions(specs, slab_of, check_agreement):
    learner = learner_of(AppoLearner, {"network": RELU}, specs["flat"])
    inputs = inputs_of(learner, slab_of(AppoLearner, learner.settings, specs["flat"]))
    for lanes in (4, 1, 3):
        check_agreement(learner, lanes_of(inputs, torch.arange(lanes)))


def test_gradients_that_autograd_left_are_not_added_to(specs, slab_of):
    learner = learner_of(AppoLearner, {}, specs["flat"])
    inputs = inputs_of(learner, slab_of(AppoLearner, learner.settings, specs["flat"]))
    learner._program._by_hand(inputs)
    expected = [parameter.grad.clone() for parameter in learner._shared.network.parameters()]
    for parameter in learner._shared.network.parameters():
        parameter.grad = torch.ones_like(parameter)
    learner._program._by_hand(inputs)
    for parameter, gradient in zip(learner._shared.network.parameters(), expected, strict=True):
        assert torch.equal(parameter.grad, gradient)


@pytest.mark.parametrize("value", [1e17, 1e25, 1e30, np.nan])
@pytest.mark.parametrize("row", [0, -1])
def test_an_overflow_skips_the_step_where_autograd_skips_it(specs, slab_of, value, row):
    options = {"network": MlpSettings(hidden=(8, 8))}
    learners = [learner_of(AppoLearner, options, specs["flat"]) for _ in range(2)]
    learners[1]._program = LossProgram(learners[1]._losses, learners[1]._shared.gradient, AccelerationSettings())
    slab = slab_of(AppoLearner, learners[0].settings, specs["flat"])
    slab.observation["observation"][1, row, 2] = value
    for learner in learners:
        learner.update(slab, slab.reward)
    by_hand, by_autograd = (learner._shared.gradient.skipped_updates for learner in learners)
    assert by_hand == by_autograd
    assert by_autograd == (not value < 1e20)


def test_a_clipped_row_whose_product_overflows_is_not_learnt_and_nothing_else_suffers():
    terms_of = clipped_surrogate_of(0.2, normalize_advantages=False)
    advantages = np.array([[200.0, -3.0, 1.0]], np.float32)
    log_ratios = np.array([[88.5, 0.1, -1.0]], np.float32)
    targets = SlabTargets(advantages, advantages, advantages, advantages)
    with np.errstate(over="ignore"):
        terms, slopes = terms_of(targets, log_ratios, log_ratios, np.ones_like(advantages))
    np.testing.assert_allclose(terms, [[-240.0, 3.0 * np.exp(0.1), -np.exp(-1.0)]], rtol=1e-5)
    np.testing.assert_allclose(slopes, [[0.0, 3.0 * np.exp(0.1), -np.exp(-1.0)]], rtol=1e-5)


@pytest.mark.parametrize(
    "options", [{}, {"epochs": 3, "minibatches": 2}, {"value_loss": "hl_gauss", "support": SUPPORT}]
)
def test_a_hundred_updates_by_hand_lead_where_autograd_leads(specs, slab_of, options):
    learners = [learner_of(AppoLearner, options, specs["mixed"], scale=0.1) for _ in range(2)]
    plain = learners[1]
    plain._program = LossProgram(plain._losses, plain._shared.gradient, plain.settings.acceleration)
    slabs = [slab_of(AppoLearner, plain.settings, specs["mixed"], seed) for seed in range(5)]
    for at in range(100):
        by_hand, by_autograd = (learner.update(slabs[at % 5], slabs[at % 5].reward) for learner in learners)
    assert learners[0].updates == plain.updates
    assert by_hand.metrics.keys() == by_autograd.metrics.keys()
    for name, figure in by_autograd.metrics.items():
        assert by_hand.metrics[name] == pytest.approx(figure, rel=0.02, abs=0.01), name
    pairs = zip(*(learner._shared.network.parameters() for learner in learners), strict=True)
    for ours, theirs in pairs:
        np.testing.assert_allclose(ours.detach(), theirs.detach(), atol=0.01)


def test_what_is_not_finite_moves_nothing_and_is_counted(specs, slab_of):
    learner = learner_of(AppoLearner, {}, specs["flat"])
    slab = slab_of(AppoLearner, learner.settings, specs["flat"])
    assert learner._program._by_hand is not None
    before = {name: each.clone() for name, each in learner._shared.network.state_dict().items()}
    for bad in (np.nan, np.inf, -np.inf):
        reward = slab.reward.copy()
        reward[slab.used] = bad
        learner.update(slab, reward)
    assert learner._shared.gradient.skipped_updates == 3
    assert all(torch.equal(each, before[name]) for name, each in learner._shared.network.state_dict().items())
    learner.update(slab, slab.reward)
    assert any(not torch.equal(each, before[name]) for name, each in learner._shared.network.state_dict().items())


class OwnEncoder(MlpEncoder):
    """Computes something else than its base."""

    def forward(self, observation):
        return super().forward(observation) * 2.0


@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch.*")  # the compiler's own
@pytest.mark.parametrize(
    ("options", "spec"),
    [
        ({"network": MlpSettings(hidden=(300,))}, "flat"),
        ({"network": CnnSettings()}, "image"),
        ({"core": CoreSettings(cell="gru", size=8)}, "flat"),
        ({}, "box"),
        ({"acceleration": AccelerationSettings(precision="bf16")}, "flat"),
        ({"acceleration": AccelerationSettings(accumulation=2)}, "flat"),
        ({"acceleration": AccelerationSettings(compile="default")}, "flat"),
    ],
)
def test_other_networks_spaces_and_accelerations_are_left_to_autograd(specs, slab_of, options, spec):
    learner = ImpalaLearner(ImpalaSettings(**{**SMALL, **options}), specs[spec], None, 0, "cpu")
    assert learner._program._by_hand is None


@pytest.mark.parametrize(("width", "is_by_hand"), [(256, True), (257, False)])
def test_layers_of_up_to_256_are_computed_by_hand(specs, width, is_by_hand):
    network = MlpSettings(hidden=(8, width))
    learner = ImpalaLearner(ImpalaSettings(**{**SMALL, "network": network}), specs["flat"], None, 0, "cpu")
    assert (learner._program._by_hand is not None) == is_by_hand


def test_an_encoder_of_another_class_is_left_to_autograd(specs, monkeypatch):
    from onibi.learners.networks import actor_critic

    monkeypatch.setattr(actor_critic, "build_encoder", lambda form, leaves: OwnEncoder(form, leaves))
    learner = AppoLearner(AppoSettings(**SMALL), specs["flat"], None, 0, "cpu")
    assert learner._program._by_hand is None


def test_gradients_that_were_written_do_not_accumulate(specs):
    options = {"acceleration": AccelerationSettings(accumulation=2)}
    learner = ImpalaLearner(ImpalaSettings(**{**SMALL, **options}), specs["flat"], None, 0, "cpu")
    with pytest.raises(ValueError, match="accumulation"):
        learner._shared.gradient.step_by(torch.zeros(()))


@given(st.integers(1, 40), st.integers(1, 4), st.integers(0, 2**32 - 1))
@settings(max_examples=60, deadline=None)
def test_targets_are_those_of_the_torch_side(rows, lanes, seed):
    rng = np.random.default_rng(seed)
    used = rng.random((lanes, rows)) > 0.2
    kind = rng.integers(4, size=(lanes, rows))
    terminated, truncated = ((kind == each).astype(np.uint8) for each in (0, 1))
    reward = (rng.normal(size=(lanes, rows)) * used).astype(np.float32)
    values = rng.normal(size=(lanes, rows + 1)).astype(np.float32)
    log_ratios = (rng.normal(size=(lanes, rows)) * used).astype(np.float32)
    steps = SlabSteps(*map(torch.from_numpy, (reward, terminated, truncated, used.astype(np.float32))))
    flow = slab_flow(reward, terminated, truncated, used, 0.97)
    decay, bounds = float(rng.random()), {"rho_bound": 1.3, "trace_bound": 0.9}
    pairs = [
        (
            vtrace(flow, values, log_ratios, trace_decay=decay, **bounds),
            vtrace_targets(
                steps, *map(torch.from_numpy, (values, log_ratios)), discount=0.97, trace_decay=decay, **bounds
            ),
        ),
        (
            gae(flow, values, trace_decay=decay),
            gae_targets(steps, torch.from_numpy(values), discount=0.97, trace_decay=decay),
        ),
    ]
    for found, expected in pairs:
        for name, figure in dataclasses.asdict(expected).items():
            np.testing.assert_allclose(getattr(found, name), figure.numpy(), rtol=1e-4, atol=1e-5, err_msg=name)


@pytest.mark.parametrize("rows", [1, 2, 3, 7, 32, 33])
def test_the_backward_sum_is_its_recursion(rows):
    rng = np.random.default_rng(rows)
    terms, factors = rng.normal(size=(2, 3, rows)).astype(np.float32)
    expected, behind = np.zeros((3, rows)), np.zeros(3)
    for row in reversed(range(rows)):
        behind = terms[:, row] + (factors[:, row] * behind if row + 1 < rows else 0.0)
        expected[:, row] = behind
    np.testing.assert_allclose(backward_sum(terms.copy(), factors.copy()), expected, rtol=1e-4, atol=1e-5)
