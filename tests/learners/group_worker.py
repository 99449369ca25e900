"""One of several learner processes, for test_worker_group.py: learns from its own batches, saves what it ends with.

python group_worker.py RANK SIZE RENDEZVOUS OUT UPDATES [halves | slabs]
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch

from onibi.learners.actor_critic_policy import LOG_PROB_COLUMN
from onibi.learners.appo import AppoLearner, AppoSettings
from onibi.learners.dqn import DqnLearner, DqnSettings
from onibi.learners.networks.mlp import MlpSettings
from onibi.learners.worker_group import join_group
from onibi.platform.replay.samplers.fifo_sampler import Slab
from onibi.platform.replay.samplers.windows import Windows
from onibi.platform.spec import ArraySpec, ReplaySpec

SPEC = ReplaySpec(observation=(ArraySpec(name="observation", dtype="float32", shape=(4,)),), actions=3)
ROWS, NAN_AT = 16, 500


def windows_of(rng, rows):
    """Random windows of one step."""
    return Windows(
        observation={"observation": rng.normal(size=(rows, 4)).astype(np.float32)},
        bootstrap_observation={"observation": rng.normal(size=(rows, 4)).astype(np.float32)},
        action=rng.integers(3, size=rows),
        reward=rng.normal(size=(rows, 1)).astype(np.float32),
        continues=np.ones((rows, 1), np.float32),
        used=np.ones((rows, 1), bool),
        steps=np.ones(rows, np.int32),
        caption_id=np.zeros((rows, 1), np.uint32),
        caption_count=np.zeros((rows, 1, 1), np.uint16),
        policy_version=np.zeros(rows, np.int64),
        lane=np.zeros(rows, np.int64),
        generation=np.zeros(rows, np.int64),
        weight=np.ones(rows, np.float32),
    )


def learner_of(seed=0, *, normalize=True):
    """A small dqn."""
    network = MlpSettings(hidden=(32,), normalize_observation=normalize)
    settings = DqnSettings(value_loss="mse", n_steps=1, network=network, gradient_norm=1.0)
    return DqnLearner(settings, SPEC, None, seed, "cpu")


def slab_of(rng, lanes, rows, first_lane):
    """Random rows of lanes of one's own."""
    each = (lanes, rows)
    return Slab(
        observation={"observation": rng.normal(size=(lanes, rows + 1, 4)).astype(np.float32)},
        action=rng.integers(3, size=each),
        reward=rng.normal(size=each).astype(np.float32),
        terminated=(rng.random(each) < 0.1).astype(np.uint8),
        truncated=np.zeros(each, np.uint8),
        role=np.zeros(each, np.uint8),
        policy_version=np.zeros(each, np.int64),
        caption_id=np.zeros(each, np.uint32),
        caption_count=np.zeros((*each, 1), np.uint16),
        used=np.ones(each, bool),
        begins=np.zeros(each, bool),
        lane=first_lane + np.arange(lanes),
        generation=np.zeros(lanes, np.int64),
        extra={LOG_PROB_COLUMN: np.full(each, -np.log(3.0), np.float32)},
    )


def appo():
    """A small appo of all that workers must have in common: several steps a slab, statistics, a scale of rewards."""
    network = MlpSettings(hidden=(16,), normalize_observation=True)
    settings = AppoSettings(
        value_loss="mse", network=network, rows=8, batch_lanes=4, epochs=2, minibatches=2, normalize_reward=True
    )
    return AppoLearner(settings, SPEC, None, 0, "cpu")


def half_of(windows, rank, size):
    """Every ``size``-th row."""
    rows = slice(rank, None, size)
    for name, value in vars(windows).items():
        if isinstance(value, np.ndarray):
            setattr(windows, name, value[rows].copy())
        else:
            setattr(windows, name, {key: array[rows].copy() for key, array in value.items()})
    return windows


def main() -> None:
    """Learn, and save the state."""
    rank, size, updates = int(sys.argv[1]), int(sys.argv[2]), int(sys.argv[5])
    rendezvous, out, mode = sys.argv[3], Path(sys.argv[4]), sys.argv[6] if len(sys.argv) > 6 else ""
    halves = mode == "halves"
    torch.set_num_threads(1)
    torch.manual_seed(0)
    join_group(rank, size, rendezvous)
    # One seed for all, as in a run. Halves: one seed for the batches, too.
    learner = appo() if mode == "slabs" else learner_of(normalize=not halves)
    rng = np.random.default_rng(0 if halves else 1 + rank)
    for update in range(updates):
        if mode == "slabs":
            slab = slab_of(rng, 4, 8, 4 * rank)
            if update == NAN_AT // 4 and rank == size - 1:
                slab.observation["observation"][1, 2] = np.nan
            learner.update(slab, slab.reward)
            continue
        windows = windows_of(rng, ROWS)
        if halves:
            windows = half_of(windows, rank, size)
        elif update == NAN_AT and rank == size - 1:
            windows.reward[3] = np.nan
        learner.update(windows, windows.reward)
        if update == 0:
            (out / f"began-{rank}").touch()
    torch.save(learner.state_dict(), out / f"state-{rank}.pt")
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
