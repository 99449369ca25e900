"""What gradients by hand save: each learner twice, in turns, as it is and by autograd, alone on one core.

    python tests/benchmarks/gradient_by_hand.py [--profile "dqn, mse"]

CartPole's shapes and 2 × 64 tanh where nothing else is said: actor-critic learners with 1,024 rows (32 lanes × 32), dqn
with 128 windows. NetHack's row is the network of `minihack-oni` on made-up views, a third of whose crop is not blank.
Last, 256 lanes acting by a NumPy policy.
"""

from __future__ import annotations

import argparse
import cProfile
import os
import pstats
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any
from unittest import mock

import numpy as np
import torch
from peers.spread import spread

from onibi.learners.appo import AppoLearner
from onibi.learners.dqn import DqnLearner
from onibi.learners.impala import ImpalaLearner
from onibi.learners.networks.mlp import MlpSettings
from onibi.learners.support import SupportSettings
from onibi.platform.policy import LaneRange, weights_version
from onibi.platform.replay.samplers.fifo_sampler import Slab
from onibi.platform.replay.samplers.windows import Windows
from onibi.platform.spec import ArraySpec, ReplaySpec
from onibi.platform.threads import ONE_THREAD

SPEC = ReplaySpec(observation=(ArraySpec(name="observation", dtype="float32", shape=(4,)),), actions=2)
NETWORK = MlpSettings(hidden=(64, 64), layer_norm=False, activation="tanh")
VIEW = ReplaySpec(
    observation=(
        ArraySpec(name="observation.crop", dtype="uint8", shape=(9, 9)),
        ArraySpec(name="observation.locator", dtype="int8", shape=(8, 3)),
        ArraySpec(name="observation.blstats", dtype="float32", shape=(12,)),
        ArraySpec(name="observation.message", dtype="uint8", shape=(12,)),
    ),
    actions=10,
)
LANES, ROWS, ACTING, WINDOWS = 32, 32, 256, 128
ROUNDS, ROUND_SECONDS = 5, 2.0
HL_GAUSS = {"value_loss": "hl_gauss", "support": SupportSettings(low=-1.0, high=11.0)}


def slab_of(rng: np.random.Generator) -> Slab:
    """Rows of CartPole's kind: an episode ends every 50 rows."""
    used = rng.random((LANES, ROWS)) > 0.02
    flags = {name: np.zeros((LANES, ROWS), np.uint8) for name in ("terminated", "truncated", "role")}
    flags["terminated"][:, :-1] = ~used[:, 1:]
    begins = np.zeros((LANES, ROWS), bool)
    begins[:, 1:] = ~used[:, :-1]
    return Slab(
        observation={"observation": rng.normal(size=(LANES, ROWS + 1, 4)).astype(np.float32)},
        action=rng.integers(2, size=(LANES, ROWS)),
        reward=used.astype(np.float32) * 0.1,
        **flags,
        policy_version=np.zeros((LANES, ROWS), np.int64),
        caption_id=np.zeros((LANES, ROWS), np.uint32),
        caption_count=np.zeros((LANES, ROWS, 1), np.uint16),
        used=used,
        begins=begins,
        lane=np.arange(LANES),
        generation=np.zeros(LANES, np.int64),
        extra={"action_log_prob": np.full((LANES, ROWS), -np.log(2), np.float32)},
    )


def windows_of(rng: np.random.Generator, spec: ReplaySpec, n_steps: int) -> Windows:
    """A twentieth of the steps terminate."""

    def leaf(column: ArraySpec) -> Any:
        shape = (WINDOWS, *column.shape)
        if column.dtype == "float32":
            return rng.normal(size=shape).astype(np.float32)
        return (rng.integers(1, 16, size=shape) * (rng.random(shape) < 1 / 3)).astype(column.dtype)

    shape = (WINDOWS, n_steps)
    return Windows(
        observation={column.name: leaf(column) for column in spec.observation},
        bootstrap_observation={column.name: leaf(column) for column in spec.observation},
        action=rng.integers(spec.actions, size=WINDOWS),
        reward=rng.normal(size=shape).astype(np.float32),
        continues=(rng.random(shape) > 0.05).astype(np.float32),
        used=np.ones(shape, bool),
        steps=np.full(WINDOWS, n_steps, np.int32),
        caption_id=np.zeros(shape, np.uint32),
        caption_count=np.zeros((*shape, 1), np.uint16),
        policy_version=np.zeros(WINDOWS, np.int64),
        lane=np.arange(WINDOWS),
        generation=np.zeros(WINDOWS, np.int64),
        weight=np.ones(WINDOWS, np.float32),
    )


def by_hand_and_autograd(owner: type[Any], options: dict[str, Any], spec: ReplaySpec = SPEC) -> tuple[Any, Any]:
    """The learner as it is, and one whose loss goes through autograd; each brings what it learns from."""
    settings, rng = owner.Settings(**options), np.random.default_rng(0)
    learns = owner is not DqnLearner
    drawn: Any = slab_of(rng) if learns else windows_of(rng, spec, settings.n_steps)
    name = f"{owner.__module__}.gradient_by_hand" if learns else f"{owner.__module__}.is_small_q_network"
    with mock.patch(name, return_value=None):
        autograd = owner(settings, spec, None, 0, "cpu")
    learner = owner(settings, spec, None, 0, "cpu")
    assert learner._program._by_hand is not None
    assert autograd._program._by_hand is None
    return partial(learner.update, drawn, drawn.reward), partial(autograd.update, drawn, drawn.reward)


def seconds_each(step: Callable[[], object], seconds: float) -> float:
    """Processor time of a step."""
    began, ends, count = time.process_time(), time.perf_counter() + seconds, 0
    while time.perf_counter() < ends:
        step()
        count += 1
    return (time.process_time() - began) / count


def main() -> None:
    """Print the table, or the profile."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--profile", metavar="ROW", help="of 500 updates of this one, instead")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--seconds", type=float, default=ROUND_SECONDS, help="of each side in a round")
    told = parser.parse_args()
    if ONE_THREAD.items() - os.environ.items():  # NumPy has read them already
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **ONE_THREAD})
    torch.set_num_threads(1)
    shape = {"rows": ROWS, "batch_lanes": LANES, "network": NETWORK}
    pairs = {
        "impala, mse": by_hand_and_autograd(ImpalaLearner, {**shape, "value_loss": "mse"}),
        "appo, mse, V-trace": by_hand_and_autograd(AppoLearner, {**shape, "value_loss": "mse"}),
        "appo, mse, GAE, 4 minibatches": by_hand_and_autograd(
            AppoLearner, {**shape, "value_loss": "mse", "returns": "gae", "minibatches": 4}
        ),
        "appo, hl_gauss": by_hand_and_autograd(AppoLearner, {**shape, **HL_GAUSS}),
        "appo, hl_gauss, default network": by_hand_and_autograd(
            AppoLearner, {**shape, **HL_GAUSS, "network": MlpSettings()}
        ),
        "dqn, mse": by_hand_and_autograd(DqnLearner, {"value_loss": "mse", "network": NETWORK}),
        "dqn, hl_gauss, default network": by_hand_and_autograd(DqnLearner, {"support": HL_GAUSS["support"]}),
        "dqn, hl_gauss, NetHack views": by_hand_and_autograd(DqnLearner, {"support": HL_GAUSS["support"]}, VIEW),
    }
    if told.profile:
        if told.profile not in pairs:
            parser.error(f"--profile: no row {told.profile!r}; there are {'; '.join(pairs)}")
        with cProfile.Profile() as profile:
            for _ in range(500):
                pairs[told.profile][0]()
        pstats.Stats(profile).sort_stats("tottime").print_stats(25)
        return
    print(f"processor time of an update in ms, median of {told.rounds} rounds [least, most]")
    for name, steps in pairs.items():
        found: tuple[list[float], list[float]] = ([], [])
        for step in steps:
            for _ in range(20):
                step()
        for at in range(told.rounds):  # in turns, the order changing: a busy machine slows both sides
            for side in (0, 1) if at % 2 else (1, 0):
                found[side].append(1e3 * seconds_each(steps[side], told.seconds))
        ratios = [autograd / by_hand for by_hand, autograd in zip(*found, strict=True)]
        print(
            f"{name:32} by hand {spread(found[0], 2)}   autograd {spread(found[1], 2)}   "
            f"{spread(ratios, 2)} times as fast"
        )
    learner = ImpalaLearner(ImpalaLearner.Settings(**shape), SPEC, (0.0, 100.0), 0, "cpu")
    policy = ImpalaLearner.policy_factory(learner.settings, SPEC)(LaneRange(0, ACTING, ACTING))
    policy.load(learner.weights(weights_version(0, 1)))
    rng = np.random.default_rng(0)
    observation = {"observation": rng.normal(size=(ACTING, 4)).astype(np.float32)}
    acting = [1e6 * seconds_each(lambda: policy.act(observation, None, rng), told.seconds) for _ in range(told.rounds)]
    print(f"NumPy policy, {ACTING} lanes: {spread(acting)} µs")


if __name__ == "__main__":
    main()
