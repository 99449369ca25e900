"""A Q-learner's gradient by hand against autograd, over all that the NumPy side claims to compute."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from onibi.learners.acceleration import AccelerationSettings
from onibi.learners.component_heads import ComponentHeadSettings
from onibi.learners.dqn import DqnLearner, DqnSettings
from onibi.learners.exploration import ExplorationSettings
from onibi.learners.impala import ImpalaLearner, ImpalaSettings
from onibi.learners.loss_program import LossProgram
from onibi.learners.networks.cnn import CnnSettings
from onibi.learners.networks.mlp import MlpSettings
from onibi.learners.networks.nethack import NethackSettings
from onibi.learners.networks.noisy import NoisySettings
from onibi.learners.support import SupportSettings
from onibi.platform.replay.samplers.draws import PrioritySettings
from onibi.platform.spec import ACTION_MASK, ArraySpec, ReplaySpec

SUPPORT = SupportSettings(low=-3.0, high=3.0, bins=21)
TANH = MlpSettings(hidden=(16, 12), layer_norm=False, activation="tanh")
NORMS = MlpSettings(hidden=(24,), layer_norm=True, normalize_observation=True)
CROP = ArraySpec(name="observation.crop", dtype="uint8", shape=(3, 3), low=0, high=12)
MESSAGE = ArraySpec(name="observation.message", dtype="uint8", shape=(4,), low=0, high=255)
BLSTATS = ArraySpec(name="observation.blstats", dtype="float32", shape=(6,))
LOCATOR = ArraySpec(name="observation.locator", dtype="int8", shape=(2, 3), low=-40, high=40)
OTHER = ArraySpec(name="observation.inventory", dtype="float32", shape=(5,))
MASK = ArraySpec(name=ACTION_MASK, dtype="int8", shape=(3,), low=0, high=1)
STATE = ArraySpec(name="observation.state", dtype="float32", shape=(4,))
VIEWS = {
    "all": (CROP, MESSAGE, BLSTATS, LOCATOR, OTHER),
    "bag alone": (CROP, MESSAGE),
    "message": (MESSAGE, BLSTATS),
    "crop": (CROP, OTHER),
    "numbers alone": (BLSTATS, LOCATOR),
    "masked": (CROP, BLSTATS, MASK),
}
CHOICES = {
    "hl_gauss": {"support": SUPPORT},
    "hl_gauss symlog": {"support": SupportSettings(low=-3.0, high=3.0, bins=21, spacing="symlog")},
    "two_hot": {"value_loss": "two_hot", "support": SUPPORT},
    "mse": {"value_loss": "mse"},
    "huber": {"value_loss": "huber", "huber_delta": 0.2},
    "plain head": {"support": SUPPORT, "dueling": False, "double": False},
    "plain head mse": {"value_loss": "mse", "dueling": False},
    "softmax policy": {"support": SUPPORT, "exploration": ExplorationSettings(temperature=0.3)},
    "softmax policy, single": {
        "value_loss": "mse",
        "double": False,
        "exploration": ExplorationSettings(temperature=0.3),
    },
}


def learner_of(spec, options, scale=0.3):
    """A learner with parameters, a target and running statistics away from their start."""
    given = {"batch_size": 9, "metrics_period_updates": 1, "network": TANH, **options}
    learner = DqnLearner(DqnSettings(**given), spec, None, 0, "cpu")
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for network in (learner._network, learner._target):
            for parameter in network.parameters():
                parameter.add_(torch.randn(parameter.shape, generator=generator) * scale)
        for name, buffer in learner._network.named_buffers():
            if name.endswith(("mean", "variance")):
                buffer.add_(torch.rand(buffer.shape, generator=generator))
                dict(learner._target.named_buffers())[name].copy_(buffer)
    return learner


def inputs_of(learner, spec, make_windows, seed=0, rows=9):
    rng = np.random.default_rng(seed)
    windows = make_windows(spec, rows, 3, rng)
    windows.continues[:] = rng.random((rows, 3)) > 0.2
    windows.used[:, 2] = rng.random(rows) > 0.3
    windows.reward[:] = rng.normal(size=(rows, 3)) * windows.used
    windows.weight[:] = rng.random(rows)
    return learner._inputs(windows, windows.reward)


@pytest.fixture
def check_agreement(check_gradient):
    return lambda learner, inputs: check_gradient(learner._network, learner._losses, learner._program._by_hand, inputs)


@pytest.mark.parametrize("choice", CHOICES)
@pytest.mark.parametrize("network", [TANH, NORMS], ids=["tanh", "relu norms"])
@pytest.mark.parametrize("name", ["flat", "mixed", "masked"])
def test_loss_gradients_and_figures_are_those_of_autograd(specs, make_windows, choice, network, name, check_agreement):
    spec = ReplaySpec(observation=(STATE, MASK), actions=3) if name == "masked" else specs[name]
    learner = learner_of(spec, {**CHOICES[choice], "network": network})
    for seed in range(2):
        check_agreement(learner, inputs_of(learner, spec, make_windows, seed))


@pytest.mark.parametrize("choice", ["hl_gauss", "plain head mse"])
@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize(
    "network",
    [
        NethackSettings(hidden=(16, 12)),
        NethackSettings(hidden=(16,), layer_norm=False),
        NethackSettings(hidden=(8, 8, 8), normalize_blstats=True, crop_classes=6),
    ],
    ids=["two layers", "one layer", "three and norms"],
)
def test_so_they_are_for_views_of_nethack(make_windows, choice, view, network, check_agreement):
    spec = ReplaySpec(observation=VIEWS[view], actions=3)
    learner = learner_of(spec, {**CHOICES[choice], "network": network})
    for seed in range(2):
        check_agreement(learner, inputs_of(learner, spec, make_windows, seed))


def test_an_actor_critic_learns_views_of_nethack_by_hand_too(slab_of):
    spec = ReplaySpec(observation=VIEWS["all"], actions=3)
    options = {"rows": 7, "batch_lanes": 4, "network": NethackSettings(hidden=(16, 12)), "value_loss": "mse"}
    learner = ImpalaLearner(ImpalaSettings(**options), spec, None, 0, "cpu")
    slab = slab_of(ImpalaLearner, learner.settings, spec)
    inputs, network = learner._shared.inputs(slab, slab.reward), learner._shared.network
    loss, _ = learner._losses(inputs)
    loss.backward()
    expected = {name: each.grad.clone() for name, each in network.named_parameters()}
    network.zero_grad(set_to_none=True)
    assert float(learner._program._by_hand(inputs)[0]) == pytest.approx(float(loss.detach()), rel=1e-5)
    for name, each in network.named_parameters():
        torch.testing.assert_close(each.grad, expected[name], rtol=1e-4, atol=1e-5, msg=name)


def test_a_view_in_which_nothing_is_to_be_seen_or_read_agrees_too(make_windows, check_agreement):
    spec = ReplaySpec(observation=(CROP, MESSAGE), actions=3)
    learner = learner_of(spec, {"network": NethackSettings(hidden=(8, 8)), "value_loss": "mse"})
    inputs = inputs_of(learner, spec, make_windows)
    for group in ("observation", "bootstrap"):
        for leaf in inputs[group].values():
            leaf[::2] = 0
    check_agreement(learner, inputs)
    for group in ("observation", "bootstrap"):
        for leaf in inputs[group].values():
            leaf[:] = 0
    check_agreement(learner, inputs)


def test_buffers_follow_the_size_of_the_batch_in_both_directions(specs, make_windows, check_agreement):
    learner = learner_of(specs["flat"], {"network": NORMS, "support": SUPPORT})
    for rows in (9, 1, 14):
        check_agreement(learner, inputs_of(learner, specs["flat"], make_windows, rows=rows))


@pytest.mark.parametrize("value", [1e17, 1e30, np.nan, np.inf])
@pytest.mark.parametrize("where", ["observation", "bootstrap_observation"])
def test_an_overflow_skips_the_step_where_autograd_skips_it(specs, make_windows, value, where):
    learners = [learner_of(specs["flat"], {"network": MlpSettings(hidden=(8, 8)), "support": SUPPORT}) for _ in "12"]
    learners[1]._program = LossProgram(learners[1]._losses, learners[1]._gradient, AccelerationSettings())
    windows = make_windows(specs["flat"], 9, 3, np.random.default_rng(0))
    getattr(windows, where)["observation"][1, 2] = value
    before = {name: each.clone() for name, each in learners[0].state_dict().items() if name.startswith("network")}
    for learner in learners:
        learner.update(windows, windows.reward)
    by_hand, by_autograd = (learner.skipped_updates for learner in learners)
    assert by_hand == by_autograd == (not value < 1e20)
    after = learners[0].state_dict()
    assert all(torch.equal(after[name], each) for name, each in before.items()) == bool(by_hand)


@pytest.mark.parametrize(
    "options",
    [
        {"support": SUPPORT},
        {"value_loss": "mse", "priorities": PrioritySettings()},
        {"support": SUPPORT, "network": NORMS},
    ],
)
def test_a_hundred_updates_by_hand_lead_where_autograd_leads(specs, make_windows, options):
    learners = [learner_of(specs["mixed"], options, scale=0.1) for _ in range(2)]
    plain = learners[1]
    plain._program = LossProgram(plain._losses, plain._gradient, plain.settings.acceleration)
    drawn = [make_windows(specs["mixed"], 9, 3, np.random.default_rng(seed)) for seed in range(5)]
    for at in range(100):
        by_hand, by_autograd = (learner.update(drawn[at % 5], drawn[at % 5].reward) for learner in learners)
        if options.get("priorities") is not None:
            np.testing.assert_allclose(by_hand.priorities, by_autograd.priorities, atol=0.02)
    assert by_hand.metrics.keys() == by_autograd.metrics.keys()
    for name, figure in by_autograd.metrics.items():
        assert by_hand.metrics[name] == pytest.approx(figure, rel=0.02, abs=0.01), name
    state = [learner.state_dict() for learner in learners]
    for name, theirs in state[1].items():
        if name.startswith(("network.", "target.")):
            np.testing.assert_allclose(state[0][name], theirs, atol=0.01, err_msg=name)


@pytest.mark.parametrize("of_autograd", [True, False], ids=["from autograd", "to autograd"])
def test_a_checkpoint_of_the_one_goes_on_with_the_other(specs, make_windows, monkeypatch, of_autograd):
    by_hand = learner_of(specs["flat"], {"support": SUPPORT}, scale=0.1)
    monkeypatch.setattr(DqnLearner, "_by_hand", lambda self: None)
    by_autograd = learner_of(specs["flat"], {"support": SUPPORT})
    assert by_autograd._program._by_hand is None
    first, second = (by_autograd, by_hand) if of_autograd else (by_hand, by_autograd)
    windows = make_windows(specs["flat"], 9, 3, np.random.default_rng(0))
    first.update(windows, windows.reward)
    second.load_state_dict(first.state_dict())
    for _ in range(3):
        first.update(windows, windows.reward)
        second.update(windows, windows.reward)
        for name, each in first.state_dict().items():
            np.testing.assert_allclose(second.state_dict()[name], each, rtol=1e-3, atol=1e-5, err_msg=name)


@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch.*")  # the compiler's own
@pytest.mark.parametrize(
    ("options", "spec"),
    [
        ({"network": MlpSettings(hidden=(300,))}, "flat"),
        ({"network": CnnSettings()}, "image"),
        ({"noisy": NoisySettings()}, "flat"),
        ({"value_loss": "c51"}, "flat"),
        ({"value_loss": "quantile", "support": SupportSettings()}, "flat"),
        ({"value_loss": "iqn", "support": SupportSettings()}, "flat"),
        ({"value_loss": "mse", "support": SupportSettings(), "heads": {"e": ComponentHeadSettings()}}, "flat"),
        ({"acceleration": AccelerationSettings(precision="bf16")}, "flat"),
        ({"acceleration": AccelerationSettings(accumulation=2)}, "flat"),
        ({"acceleration": AccelerationSettings(compile="default")}, "flat"),
    ],
)
def test_other_networks_losses_and_accelerations_are_left_to_autograd(specs, options, spec):
    learner = DqnLearner(DqnSettings(**{"network": TANH, "support": SUPPORT, **options}), specs[spec], None, 0, "cpu")
    assert learner._program._by_hand is None


@pytest.mark.parametrize(
    ("options", "is_by_hand"),
    [
        ({"hidden": (256, 256)}, True),
        ({"hidden": (257, 8)}, False),
        ({"hidden": (8, 257)}, False),
        ({"hidden": (8,), "message_embedding": 4}, False),
    ],
)
def test_of_nethacks_networks_the_small_ones_without_towers_are_computed_by_hand(options, is_by_hand):
    spec = ReplaySpec(observation=VIEWS["all"], actions=3)
    settings = DqnSettings(network=NethackSettings(**options), support=SUPPORT)
    assert (DqnLearner(settings, spec, None, 0, "cpu")._program._by_hand is not None) == is_by_hand


def test_targets_of_a_class_of_yours_are_left_to_autograd(specs):
    class OtherTargets(DqnLearner):
        def _target_values(self, inputs):
            return super()._target_values(inputs) - 1.0

    class OtherUpdate(DqnLearner):
        def update(self, windows, reward, terms=None):
            return super().update(windows, -reward, terms)

    for owner, by_hand in ((DqnLearner, True), (OtherTargets, False), (OtherUpdate, True)):
        learner = owner(DqnSettings(), specs["flat"], (-1.0, 1.0), 0, "cpu")
        assert (learner._program._by_hand is not None) == by_hand
