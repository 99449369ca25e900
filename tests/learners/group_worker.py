"""One of several learner processes, for test_worker_group.py: learns from its own batches, saves what it ends with.

python group_worker.py RANK SIZE RENDEZVOUS OUT UPDATES [halves]
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch

from onibi.learners.dqn import DqnLearner, DqnSettings
from onibi.learners.networks.mlp import MlpSettings
from onibi.learners.worker_group import join_group, leave_group
from onibi.platform.replay.windows import Windows
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
    rendezvous, out, halves = sys.argv[3], Path(sys.argv[4]), len(sys.argv) > 6
    torch.set_num_threads(1)
    torch.manual_seed(0)
    join_group(rank, size, rendezvous)
    # One seed for all, as in a run. Halves: one seed for the batches, too.
    learner = learner_of(normalize=not halves)
    rng = np.random.default_rng(0 if halves else 1 + rank)
    for update in range(updates):
        windows = windows_of(rng, ROWS)
        if halves:
            windows = half_of(windows, rank, size)
        elif update == NAN_AT and rank == size - 1:
            windows.reward[3] = np.nan
        learner.update(windows, windows.reward)
        if update == 0:
            (out / f"began-{rank}").touch()
    torch.save(learner.state_dict(), out / f"state-{rank}.pt")
    leave_group()


if __name__ == "__main__":
    main()
