"""How fast an actor-critic learner learns and its NumPy policy acts, alone, on one core; with a profile.

    OPENBLAS_NUM_THREADS=1 OMP_NUM_THREADS=1 python tests/benchmarks/actor_critic_speed.py [--profile]

CartPole's shapes, 2 × 64 tanh, batch 1,024 (32 lanes × 32 rows), 256 lanes acting. Each learner twice, in turns: with
its gradient by hand, as it is, and by autograd.
"""

from __future__ import annotations

import argparse
import cProfile
import pstats
import statistics
import time
from collections.abc import Callable
from typing import Any
from unittest import mock

import numpy as np
import torch

from onibi.learners.appo import AppoLearner
from onibi.learners.impala import ImpalaLearner
from onibi.learners.networks.mlp import MlpSettings
from onibi.learners.support import SupportSettings
from onibi.platform.policy import LaneRange, weights_version
from onibi.platform.replay.fifo_sampler import Slab
from onibi.platform.spec import ArraySpec, ReplaySpec

SPEC = ReplaySpec(observation=(ArraySpec(name="observation", dtype="float32", shape=(4,)),), actions=2)
NETWORK = MlpSettings(hidden=(64, 64), layer_norm=False, activation="tanh")
LANES, ROWS, ACTING = 32, 32, 256
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


def by_hand_and_autograd(owner: type[Any], options: dict[str, Any]) -> tuple[Any, Any]:
    """The learner as it is, and one whose loss goes through autograd."""
    settings = owner.Settings(**options)
    with mock.patch(f"{owner.__module__}.gradient_by_hand", return_value=None):
        autograd = owner(settings, SPEC, None, 0, "cpu")
    return owner(settings, SPEC, None, 0, "cpu"), autograd


def seconds_each(step: Callable[[], object], seconds: float) -> float:
    """Processor time of a step."""
    began, ends, count = time.process_time(), time.perf_counter() + seconds, 0
    while time.perf_counter() < ends:
        step()
        count += 1
    return (time.process_time() - began) / count


def spread(values: list[float], form: str) -> str:
    """Median [least, most]."""
    return f"{statistics.median(values):{form}} [{min(values):{form}}, {max(values):{form}}]"


def main() -> None:
    """Print the table, or the profile."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--profile", action="store_true", help="of 500 updates of the first learner, instead")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--seconds", type=float, default=ROUND_SECONDS, help="of each side in a round")
    told = parser.parse_args()
    torch.set_num_threads(1)
    slab = slab_of(np.random.default_rng(0))
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
    }
    if told.profile:
        learner = pairs["impala, mse"][0]
        with cProfile.Profile() as profile:
            for _ in range(500):
                learner.update(slab, slab.reward)
        pstats.Stats(profile).sort_stats("tottime").print_stats(25)
        return
    print(f"{LANES * ROWS} rows, processor time of an update in ms, median of {told.rounds} rounds [least, most]")
    for name, learners in pairs.items():
        found: tuple[list[float], list[float]] = ([], [])
        for learner in learners:
            for _ in range(20):
                learner.update(slab, slab.reward)
        for at in range(told.rounds):  # in turns, the order changing: a busy machine slows both sides
            for side in (0, 1) if at % 2 else (1, 0):
                learner = learners[side]
                found[side].append(
                    1e3 * seconds_each(lambda each=learner: each.update(slab, slab.reward), told.seconds)
                )
        ratios = [autograd / by_hand for by_hand, autograd in zip(*found, strict=True)]
        print(
            f"{name:32} by hand {spread(found[0], '.2f')}   autograd {spread(found[1], '.2f')}   "
            f"{spread(ratios, '.2f')} times as fast"
        )
    learner = pairs["impala, mse"][0]
    policy = ImpalaLearner.policy_factory(learner.settings, SPEC)(LaneRange(0, ACTING, ACTING))
    policy.load(learner.weights(weights_version(0, 1)))
    rng = np.random.default_rng(0)
    observation = {"observation": rng.normal(size=(ACTING, 4)).astype(np.float32)}
    acting = [1e6 * seconds_each(lambda: policy.act(observation, None, rng), told.seconds) for _ in range(told.rounds)]
    print(f"NumPy policy, {ACTING} lanes: {spread(acting, '.0f')} µs")


if __name__ == "__main__":
    main()
