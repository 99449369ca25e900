"""Row layouts and windows that the tests of learners share."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from onibi.learners.learner import ReplayNeeds
from onibi.platform.replay.samplers.draws import Batch, SequenceDraws, WindowDraws
from onibi.platform.replay.samplers.fifo_sampler import Slab
from onibi.platform.replay.samplers.sequences import Sequences
from onibi.platform.replay.samplers.windows import Windows
from onibi.platform.spec import ArraySpec, ReplaySpec

torch.set_num_threads(1)  # small networks: on busy cores torch's own threads wait for each other


def observation_of(spec: ReplaySpec, rows: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Random leaves within their dtypes and bounds."""
    leaves = {}
    for leaf in spec.observation:
        shape = (rows, *leaf.shape)
        if np.issubdtype(np.dtype(leaf.dtype), np.floating):
            leaves[leaf.name] = rng.normal(size=shape).astype(leaf.dtype)
        else:
            info = np.iinfo(leaf.dtype)
            low = info.min if leaf.low is None else int(leaf.low)
            high = info.max if leaf.high is None else int(leaf.high)
            leaves[leaf.name] = rng.integers(low, high, size=shape, endpoint=True).astype(leaf.dtype)
    return leaves


def windows_of(spec: ReplaySpec, rows: int, n_steps: int, rng: np.random.Generator) -> Windows:
    """Full windows of random observations, actions and rewards, none of them ending an episode."""
    return Windows(
        observation=observation_of(spec, rows, rng),
        bootstrap_observation=observation_of(spec, rows, rng),
        action=rng.integers(spec.actions, size=rows),
        reward=rng.random((rows, n_steps)).astype(np.float32),
        continues=np.ones((rows, n_steps), np.float32),
        used=np.ones((rows, n_steps), bool),
        steps=np.full(rows, n_steps, np.int32),
        caption_id=np.zeros((rows, n_steps), np.uint32),
        caption_count=np.zeros((rows, n_steps, spec.keys_per_caption), np.uint16),
        policy_version=np.zeros(rows, np.int64),
        lane=np.zeros(rows, np.int64),
        generation=np.arange(rows),
        weight=np.ones(rows, np.float32),
    )


def batch_of(spec: ReplaySpec, needs: ReplayNeeds, rng: np.random.Generator) -> Batch:
    """A full batch of random rows in the form that a learner needs, none of them ending an episode.

    Extra columns are random from 0 to 1, but for log-probabilities, which are those of the uniformly random policy.
    """
    draws, rows = needs.draws, needs.draws.batch_size
    if isinstance(draws, WindowDraws):
        windows = windows_of(spec, rows, draws.n_steps, rng)
        windows.extra.update(_extra_of(needs, (rows,), spec.actions, rng))
        return windows
    sequences = isinstance(draws, SequenceDraws)
    shape = (draws.window_rows, rows) if sequences else (rows, draws.window_rows)
    steps, after = (shape, (shape[0] + 1, rows)) if sequences else (shape, (rows, shape[1] + 1))
    flat = observation_of(spec, int(np.prod(after)), rng)
    extra = _extra_of(needs, steps, spec.actions, rng)
    common = {
        "observation": {name: leaf.reshape(*after, *leaf.shape[1:]) for name, leaf in flat.items()},
        "action": rng.integers(max(spec.actions, 1), size=steps),
        "reward": rng.random(steps).astype(np.float32),
        "caption_id": np.zeros(steps, np.uint32),
        "caption_count": np.zeros((*steps, spec.keys_per_caption), np.uint16),
        "policy_version": np.zeros(steps, np.int64),
        "used": np.ones(steps, bool),
        "lane": np.arange(rows),
        "generation": np.full(rows, 100),
    }
    if not sequences:
        flags = {name: np.zeros(steps, np.uint8) for name in ("terminated", "truncated", "role")}
        return Slab(**common, **flags, begins=np.zeros(steps, bool), extra=extra)
    first = {state.name: rng.random((rows, *state.shape)).astype(state.dtype) for state in needs.states}
    assert tuple(first) == draws.first_row_columns
    return Sequences(
        **common,
        continues=np.ones(steps, np.float32),
        learning_mask=np.broadcast_to(np.arange(shape[0])[:, None] >= draws.burn_in, steps).copy(),
        steps=np.full(rows, shape[0], np.int32),
        burn_in=np.full(rows, draws.burn_in, np.int32),
        weight=np.ones(rows, np.float32),
        extra=extra,
        first_extra=first,
    )


def _extra_of(
    needs: ReplayNeeds, shape: tuple[int, ...], actions: int, rng: np.random.Generator
) -> dict[str, np.ndarray]:
    extra = {column.name: rng.random((*shape, *column.shape)).astype(column.dtype) for column in needs.extra}
    if "action_log_prob" in extra:
        extra["action_log_prob"][...] = -np.log(max(actions, 1))
    return extra


def ended(slab, rng):
    """Episodes put into a slab: final rows, terminations, truncations, begins; action and log-probability 0 there."""
    lanes, rows = slab.used.shape
    slab.used[:] = rng.random((lanes, rows)) > 0.2
    slab.used[:, 1:] |= ~slab.used[:, :-1]
    followed = np.zeros((lanes, rows), bool)
    followed[:, :-1] = ~slab.used[:, 1:]
    kind = rng.integers(2, size=(lanes, rows))
    slab.terminated[:] = followed & slab.used & (kind == 0)
    slab.truncated[:] = followed & slab.used & (kind == 1)
    slab.begins[:, 0] = rng.random(lanes) < 0.5
    slab.begins[:, 1:] = ~slab.used[:, :-1]
    slab.reward[~slab.used] = 0
    slab.action[~slab.used] = 0
    for column in slab.extra.values():
        column[~slab.used] = 0
    return slab


FLAT = ReplaySpec(observation=(ArraySpec(name="observation", dtype="float32", shape=(4,)),), actions=3)
MIXED = ReplaySpec(
    observation=(
        ArraySpec(name="observation.position", dtype="float32", shape=(2, 2)),
        ArraySpec(name="observation.room", dtype="int64", low=1, high=5),
    ),
    actions=3,
)
NETHACK = ReplaySpec(
    observation=(
        ArraySpec(name="observation.crop", dtype="uint8", shape=(5, 5), low=0, high=15),
        ArraySpec(name="observation.locator", dtype="int8", shape=(16, 3), low=-40, high=40),
        ArraySpec(name="observation.blstats", dtype="float32", shape=(6,)),
        ArraySpec(name="observation.message", dtype="uint8", shape=(7,)),
        ArraySpec(name="observation.map", dtype="uint8", shape=(21, 79)),
        ArraySpec(name="observation.caption_counts", dtype="float32", shape=(68,)),
    ),
    actions=5,
)
IMAGE = ReplaySpec(observation=(ArraySpec(name="observation", dtype="uint8", shape=(4, 44, 44)),), actions=3)
GRID = ReplaySpec(
    observation=(
        ArraySpec(name="observation.image", dtype="uint8", shape=(7, 7, 3)),
        ArraySpec(name="observation.direction", dtype="int64", low=0, high=3),
    ),
    actions=3,
)
BOX = ReplaySpec(
    observation=(ArraySpec(name="observation", dtype="float32", shape=(3,)),),
    actions=0,
    action=ArraySpec(name="action", dtype="float32", shape=(2,)),
    action_low=(-1.0, -1.0),
    action_high=(1.0, 1.0),
)
SPECS = {"flat": FLAT, "box": BOX, "mixed": MIXED, "nethack": NETHACK, "image": IMAGE, "grid": GRID}


def found_by(compute, network, inputs, backward):
    """(loss, gradients by name, figures by name) of one way to compute them."""
    network.zero_grad(set_to_none=True)
    loss, learnt = compute(inputs)
    if backward:
        loss.backward()
    gradients = {name: each.grad.numpy().copy() for name, each in network.named_parameters()}
    return float(loss.detach()), gradients, {name: each.detach().numpy() for name, each in learnt._asdict().items()}


def agreement(network, losses, by_hand, inputs):
    """Hold loss, gradients and figures of ``by_hand`` against those of ``losses`` and autograd; of figures that say
    which rows are ``used``, these.
    """
    assert by_hand is not None
    expected_loss, expected, expected_figures = found_by(losses, network, inputs, backward=True)
    for _ in range(2):  # the second time in buffers that the first one filled
        loss, gradients, figures = found_by(by_hand, network, inputs, backward=False)
        assert loss == pytest.approx(expected_loss, rel=1e-5, abs=1e-6)
        for name, gradient in expected.items():
            size = np.abs(gradient).max()
            np.testing.assert_allclose(gradients[name], gradient, rtol=1e-4, atol=2e-6 + 2e-6 * size, err_msg=name)
        used = figures["used"] != 0 if "used" in figures else slice(None)
        assert figures.keys() == expected_figures.keys()
        for name, figure in expected_figures.items():
            assert figures[name].dtype == figure.dtype, name
            np.testing.assert_allclose(figures[name][used], figure[used], rtol=1e-4, atol=1e-5, err_msg=name)
    assert any(np.abs(gradient).max() > 1e-3 for gradient in expected.values())


@pytest.fixture
def check_gradient():
    return agreement


@pytest.fixture
def specs():
    return SPECS


@pytest.fixture
def make_windows():
    return windows_of


@pytest.fixture
def make_batch():
    return batch_of


@pytest.fixture
def slab_of():
    """(owner, settings, spec) → a random slab with episodes that begin and end in it."""

    def make(owner, settings, spec, seed=0, ends=True):
        rng = np.random.default_rng(seed)
        slab = batch_of(spec, owner.needs(settings), rng)
        if spec.action is not None:
            slab.action = rng.normal(size=(*slab.used.shape, spec.action.shape[0])).astype(np.float32)
        slab.extra["action_log_prob"][:] = rng.normal(size=slab.used.shape) - 1.0
        return ended(slab, rng) if ends else slab

    return make


@pytest.fixture
def make_observation():
    return observation_of


@pytest.fixture(scope="session")
def published():
    """(inputs, what published implementations give for them) as float32 arrays by name; see published_numbers.py."""
    document = json.loads(Path(__file__).with_name("published_numbers.json").read_text(encoding="utf-8"))
    return tuple(
        {name: np.array(rows, np.float32) for name, rows in document[part].items()} for part in ("given", "found")
    )
