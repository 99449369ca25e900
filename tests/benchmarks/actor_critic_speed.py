"""How fast an actor-critic learner learns and its NumPy policy acts, alone, on one core; with a profile.

    OPENBLAS_NUM_THREADS=1 OMP_NUM_THREADS=1 python tests/benchmarks/actor_critic_speed.py [--profile]

CartPole's shapes, 2 × 64 tanh, batch 1,024 (32 lanes × 32 rows), 256 lanes acting. Medians of 5 rounds with the least
and the most.
"""

from __future__ import annotations

import argparse
import cProfile
import pstats
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch

from onibi.learners.appo import AppoLearner, AppoSettings
from onibi.learners.impala import ImpalaLearner, ImpalaSettings
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


def rate(step: Callable[[], object], rows: int) -> str:
    """Rows a second, over rounds."""
    for _ in range(20):
        step()
    found = []
    for _ in range(ROUNDS):
        began, count = time.perf_counter(), 0
        while time.perf_counter() - began < ROUND_SECONDS:
            step()
            count += 1
        found.append(count * rows / (time.perf_counter() - began) / 1e3)
    return f"{statistics.median(found):8.0f} k/s   ({min(found):.0f} to {max(found):.0f})"


def main() -> None:
    """Print the table, or the profile."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--profile", action="store_true")
    profiled = parser.parse_args().profile
    torch.set_num_threads(1)
    slab = slab_of(np.random.default_rng(0))
    shape = {"rows": ROWS, "batch_lanes": LANES, "network": NETWORK}
    learners = {
        "impala, mse": ImpalaLearner(ImpalaSettings(**shape, value_loss="mse"), SPEC, None, 0, "cpu"),
        "impala, hl_gauss": ImpalaLearner(ImpalaSettings(**shape, **HL_GAUSS), SPEC, None, 0, "cpu"),
        "appo, mse, V-trace": AppoLearner(AppoSettings(**shape, value_loss="mse"), SPEC, None, 0, "cpu"),
        "appo, mse, GAE, 4 minibatches": AppoLearner(
            AppoSettings(**shape, value_loss="mse", returns="gae", minibatches=4), SPEC, None, 0, "cpu"
        ),
    }
    if profiled:
        learner = learners["impala, mse"]
        with cProfile.Profile() as profile:
            for _ in range(500):
                learner.update(slab, slab.reward)
        pstats.Stats(profile).sort_stats("tottime").print_stats(25)
        return
    for name, learner in learners.items():
        print(f"{name:34} {rate(lambda learner=learner: learner.update(slab, slab.reward), LANES * ROWS)}")
    learner = learners["impala, mse"]
    policy = ImpalaLearner.policy_factory(learner.settings, SPEC)(LaneRange(0, ACTING, ACTING))
    policy.load(learner.weights(weights_version(0, 1)))
    rng = np.random.default_rng(0)
    observation = {"observation": rng.normal(size=(ACTING, 4)).astype(np.float32)}
    print(f"{'NumPy policy, 256 lanes':34} {rate(lambda: policy.act(observation, None, rng), ACTING)}")


if __name__ == "__main__":
    main()
