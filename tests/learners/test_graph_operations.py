"""What a CUDA graph would record of a step: no operation that makes the host wait, or whose shape hangs on values."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from onibi.learners import loss_program
from onibi.learners.networks import nethack
from onibi.learners.registry import LEARNERS
from onibi.platform.config import load_class, read_settings
from onibi.platform.spec import ACTION_MASK, ArraySpec, ReplaySpec

SLABS = {"rows": 6, "batch_lanes": 4}
SMALL = {
    "appo": SLABS,
    "dqn": {"batch_size": 8},
    "impala": SLABS,
    "pqn": SLABS,
    "r2d2": {"length": 6, "burn_in": 3, "period": 3, "batch_size": 4},
}
VARIANTS = [
    *((kind, layout, {}) for kind in sorted(SMALL) for layout in ("flat", "masked", "grid", "nethack")),
    ("impala", "box", {}),
    ("appo", "box", {}),
    ("dqn", "flat", {"value_loss": "c51"}),
    ("dqn", "flat", {"value_loss": "iqn", "noisy": {"sigma": 0.5}}),
    ("r2d2", "flat", {"value_loss": "quantile"}),
]


class Waits(TorchDispatchMode):
    """Keeps the operations by which the host, or a shape, asks for values."""

    def __init__(self):
        super().__init__()
        self.operations, self.found = 0, []

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        self.operations += 1
        name = str(operation)
        chosen = args[1] if name.startswith("aten.index") and len(args) > 1 else ()
        masks = isinstance(chosen, (list, tuple)) and any(
            isinstance(each, torch.Tensor) and each.dtype in (torch.bool, torch.uint8) for each in chosen
        )
        if masks or any(part in name for part in ("_local_scalar_dense", "nonzero", "masked_select", "unique")):
            self.found.append(name)
        return operation(*args, **(kwargs or {}))


class WatchedGraph:
    """Stands for the recorded graph: the step that it would replay, watched."""

    def __init__(self, move):
        self._move, self.waits = move, Waits()

    def replay(self, inputs):
        with self.waits:
            return self._move(inputs)


def unchecked_one_hot(classes, count):
    """As on CUDA: on the CPU alone torch looks whether all classes are there."""
    return (classes[..., None] == torch.arange(count)).long()


def watched(owner, options, spec, make_batch):
    """What an update of a learner asks for within its graph."""
    settings = read_settings(owner.Settings, options)
    learner = owner(settings, spec, (-1.0, 2.0), 0, "cpu")
    if settings.kind == "r2d2":
        learner._packs = False  # as with compile: graphs, which needs CUDA
    program = learner._program
    program._by_hand, program._graphs, program._plain_steps = None, True, 99
    program._recorded = WatchedGraph(program._move)
    batch = make_batch(spec, owner.needs(settings), np.random.default_rng(0))
    if spec.action is not None:
        batch.action = np.random.default_rng(1).normal(size=(*batch.used.shape, *spec.action.shape)).astype(np.float32)
    learner.update(batch, batch.reward)
    return program._recorded.waits


@pytest.mark.parametrize(("kind", "layout", "options"), VARIANTS)
def test_a_step_asks_for_no_values(specs, make_batch, monkeypatch, kind, layout, options):
    monkeypatch.setattr(nethack, "_packs", lambda ids: False)  # as on CUDA
    monkeypatch.setattr(torch.nn.functional, "one_hot", unchecked_one_hot)
    mask = ArraySpec(name=ACTION_MASK, dtype="int8", shape=(3,), low=0, high=1)
    masked = ReplaySpec(observation=(*specs["mixed"].observation, mask), actions=3)
    spec = masked if layout == "masked" else specs[layout]
    waits = watched(load_class(LEARNERS, kind), {**SMALL[kind], **options}, spec, make_batch)
    assert waits.operations > 50
    assert waits.found == []


@pytest.mark.parametrize("shortest", [3, 1])
def test_a_burn_in_that_the_host_arranges_asks_for_no_values_either(specs, make_batch, monkeypatch, shortest):
    monkeypatch.setattr(torch.nn.functional, "one_hot", unchecked_one_hot)
    owner, spec = load_class(LEARNERS, "r2d2"), specs["flat"]
    learner = owner(read_settings(owner.Settings, SMALL["r2d2"]), spec, (-1.0, 2.0), 0, "cpu")
    batch = make_batch(spec, owner.needs(learner.settings), np.random.default_rng(0))
    batch.burn_in[2] = shortest
    inputs, waits = learner._inputs(batch, batch.reward), Waits()
    with waits:  # where Python looks at a number torch.compile warns and cuts the loss in two
        learner._losses(inputs)
    assert waits.found == []
    assert ("packed_burn_in" in inputs["lanes"]) == (shortest < 3)


class RecordedNothing:
    """Stands for ``torch.cuda.graph``: keeps how it was asked to record."""

    def __init__(self, graph, **options):
        self.graph, self.options = graph, options
        graph.append(self)

    def __enter__(self):
        return None

    def __exit__(self, *error):
        return None


def test_a_graph_is_recorded_of_its_own_thread_alone_as_another_may_draw_ahead_meanwhile(monkeypatch):
    monkeypatch.setattr(torch.cuda, "CUDAGraph", list)
    monkeypatch.setattr(torch.cuda, "graph", RecordedNothing)
    recorded = loss_program._Recorded({"batch": {"reward": torch.ones(3)}}, lambda inputs: inputs)
    assert [each.options for each in recorded._graph] == [{"capture_error_mode": "thread_local"}]
    assert recorded._outputs["batch"]["reward"].shape == (3,)


def test_every_learner_is_watched():
    assert sorted(SMALL) == sorted(LEARNERS)


@pytest.mark.parametrize(
    "look",
    [lambda x: x[x > 0].sum(), lambda x: x.max().item(), lambda x: x.nonzero(), lambda x: torch.zeros(3)[x > 0]],
)
def test_what_would_wait_is_found(look):
    with Waits() as waits:
        look(torch.tensor([1.0, -1.0, 2.0]))
    assert waits.found
