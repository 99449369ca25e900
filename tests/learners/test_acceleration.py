"""Every learner of the registry, accelerated: it learns from each batch, and learns nearly the same."""

from __future__ import annotations

from contextlib import contextmanager

import numpy as np
import pytest
import torch

from onibi.learners.registry import LEARNERS
from onibi.platform.config import load_class, read_settings
from onibi.platform.errors import ConfigError

BOUNDS = (-1.0, 2.0)
SMALL = {
    "r2d2": {"length": 6, "burn_in": 3, "period": 3, "batch_size": 4},
    "impala": {"rows": 6, "batch_lanes": 4},
    "appo": {"rows": 6, "batch_lanes": 4},
    "pqn": {"rows": 6, "batch_lanes": 4},
}


@pytest.fixture(params=sorted(LEARNERS))
def kind(request):
    return request.param


def learnt(kind, spec, make_batch, acceleration, batches=3):
    owner = load_class(LEARNERS, kind)
    settings = read_settings(owner.Settings, {**SMALL.get(kind, {}), "acceleration": acceleration})
    learner, needs = owner(settings, spec, BOUNDS, 0, "cpu"), owner.needs(settings)
    for seed in range(batches):
        batch = make_batch(spec, needs, np.random.default_rng(seed))
        learner.update(batch, batch.reward)
    return learner


def moved(first, second):
    """Share of the way that parameters moved differently: 0 where both moved alike."""
    names = [name for name in first if name.startswith("network.") and first[name].dtype == torch.float32]
    return torch.cat([(first[name] - second[name]).flatten() for name in names]).norm().item()


def test_bf16_moves_the_parameters_nearly_as_fp32_does_and_keeps_them_in_float32(kind, specs, make_batch):
    begin = learnt(kind, specs["flat"], make_batch, {}, batches=0).state_dict()
    plain = learnt(kind, specs["flat"], make_batch, {}).state_dict()
    half = learnt(kind, specs["flat"], make_batch, {"precision": "bf16"}).state_dict()
    assert {name: tensor.dtype for name, tensor in half.items()} == {
        name: tensor.dtype for name, tensor in plain.items()
    }
    way, apart = moved(begin, plain), moved(plain, half)
    assert 0 < apart < 0.6 * way  # Adam's first steps are of one size for every parameter, whatever the gradient's


def test_accumulation_makes_one_step_of_several_gradients(kind, specs, make_batch):
    owner, spec = load_class(LEARNERS, kind), specs["flat"]
    once = {"epochs": 1, "minibatches": 1} if kind == "pqn" else {}
    options = {**SMALL.get(kind, {}), **once, "metrics_period_updates": 1, "acceleration": {"accumulation": 3}}
    settings = read_settings(owner.Settings, options)
    learner = owner(settings, spec, BOUNDS, 0, "cpu")
    for number in range(6):
        batch = make_batch(spec, owner.needs(settings), np.random.default_rng(number))
        metrics = learner.update(batch, batch.reward).metrics
        assert learner.updates == (number + 1) // 3
        assert bool(metrics) == (number % 3 == 2)
        assert not metrics or metrics["gradient_norm"] > 0


@pytest.mark.parametrize("steps", [{"epochs": 2, "minibatches": 1}, {"epochs": 1, "minibatches": 2}])
@pytest.mark.parametrize("slabs", ["appo", "pqn"])
def test_accumulation_is_refused_where_a_slab_makes_several_steps(slabs, steps):
    settings = load_class(LEARNERS, slabs).Settings
    with pytest.raises(ConfigError, match=r"accumulation is 2, .* makes 2 steps of each"):
        read_settings(settings, {**steps, "acceleration": {"accumulation": 2}})
    read_settings(settings, {**steps, "acceleration": {"accumulation": 1}})


def test_statistics_are_learnt_of_every_batch_that_is_accumulated(kind, specs, make_batch):
    owner, spec = load_class(LEARNERS, kind), specs["flat"]
    once = {"epochs": 1, "minibatches": 1} if kind == "pqn" else {}
    network = {"kind": "mlp", "normalize_observation": True}
    rows = []
    for accumulation in (1, 3):
        options = {**SMALL.get(kind, {}), **once, "network": network, "acceleration": {"accumulation": accumulation}}
        settings = read_settings(owner.Settings, options)
        learner = owner(settings, spec, BOUNDS, 0, "cpu")
        for number in range(4):
            batch = make_batch(spec, owner.needs(settings), np.random.default_rng(number))
            learner.update(batch, batch.reward)
        state = learner.state_dict()
        rows += [float(state[name]) for name in state if name.endswith("normalizer.count") and "target" not in name]
    assert rows[0] == rows[1] > 0


@pytest.mark.parametrize("kind", ["dqn", "r2d2"], indirect=True)
@pytest.mark.parametrize("rate", [0.5, 1.0])
def test_the_target_normalises_as_the_network_does_after_every_batch_that_is_accumulated(kind, rate, specs, make_batch):
    owner, spec = load_class(LEARNERS, kind), specs["flat"]
    options = {
        **SMALL.get(kind, {}),
        "network": {"kind": "mlp", "normalize_observation": True},
        "acceleration": {"accumulation": 3},
        "target": {"rate": rate, "period_updates": 1},
    }
    settings = read_settings(owner.Settings, options)
    learner, before = owner(settings, spec, BOUNDS, 0, "cpu"), None
    for number in range(5):
        batch = make_batch(spec, owner.needs(settings), np.random.default_rng(number))
        learner.update(batch, batch.reward)
        state = learner.state_dict()
        for name in ("mean", "variance", "count"):
            assert torch.equal(state[f"target.encoder.normalizer.{name}"], state[f"network.encoder.normalizer.{name}"])
        weight = state["target.encoder.trunk.linear.0.weight"]
        assert before is None or torch.equal(weight, before) == (number != 2)  # parameters move with the step alone
        before = weight


def test_r2d2_makes_its_burn_in_and_its_rows_in_autocast_contexts_of_their_own(specs, make_batch):
    learner = learnt("r2d2", specs["flat"], make_batch, {"precision": "bf16"}, batches=0)
    contexts, passes = [], []

    @contextmanager
    def counted():
        contexts.append(len(contexts))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            yield

    def watched(part):
        def passed(*arguments, **options):
            passes.append((contexts[-1], torch.is_autocast_enabled("cpu"), torch.is_grad_enabled()))
            return part(*arguments, **options)

        return passed

    learner._gradient.autocast = counted
    learner._network.warmed_up = watched(learner._network.warmed_up)
    learner._network.unroll = watched(learner._network.unroll)
    batch = make_batch(specs["flat"], learner.needs(learner.settings), np.random.default_rng(0))
    learner.update(batch, batch.reward)
    (burn_in, *of_burn_in), (rows, *of_rows) = passes
    assert (of_burn_in, of_rows) == ([True, False], [True, True])
    assert burn_in != rows


def test_graphs_are_refused_on_the_cpu_by_every_learner(kind, specs, make_batch):
    with pytest.raises(ConfigError, match="compile is graphs"):
        learnt(kind, specs["flat"], make_batch, {"compile": "graphs"}, batches=0)


@pytest.mark.slow
@pytest.mark.timeout(1200)  # a compiler on few cores
@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch.*", "ignore:The .grad attribute")  # the compiler's own
def test_compiled_losses_move_the_parameters_as_plain_ones_do(kind, specs, make_batch):
    begin = learnt(kind, specs["flat"], make_batch, {}, batches=0).state_dict()
    plain = learnt(kind, specs["flat"], make_batch, {}).state_dict()
    compiled = learnt(kind, specs["flat"], make_batch, {"compile": "default"}).state_dict()
    assert moved(plain, compiled) < 0.05 * moved(begin, plain)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_recorded_graph_moves_the_parameters_as_plain_steps_do(kind, specs, make_batch):
    owner = load_class(LEARNERS, kind)
    states = []
    for acceleration in ({}, {"compile": "graphs"}):
        settings = read_settings(owner.Settings, {**SMALL.get(kind, {}), "acceleration": acceleration})
        learner, needs = owner(settings, specs["flat"], BOUNDS, 0, "cuda"), owner.needs(settings)
        states.append([learner.state_dict()])
        for seed in range(12):  # plain steps, the recording, replays
            batch = make_batch(specs["flat"], needs, np.random.default_rng(seed))
            learner.update(batch, batch.reward)
        states[-1].append(learner.state_dict())
    (begin, plain), (_, graph) = states
    assert moved(plain, graph) < 0.02 * moved(begin, plain)
