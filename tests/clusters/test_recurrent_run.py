"""Runs of a learner with a memory: what is stored with each row, what sequences start from, and that runs repeat."""

from __future__ import annotations

import numpy as np
import pytest

from onibi.clusters import train
from onibi.clusters.run_plan import plan_run
from onibi.clusters.run_settings import RunSettings
from onibi.clusters.run_state import open_feed, open_shard
from onibi.learners.networks.core_settings import STATE_COLUMN
from onibi.platform.checkpoint import load_checkpoint
from onibi.platform.config import read_settings
from onibi.platform.policy import weights_version
from onibi.platform.replay.ring.reader import RingReader
from onibi.platform.spec import ROLE_FINAL

HIDDEN = "onibi.actors.environments.hidden_cartpole:make"
LEARNER = {
    "kind": "r2d2",
    "length": 6,
    "burn_in": 4,
    "period": 3,
    "batch_size": 8,
    "core": {"size": 5},
    "network": {"kind": "mlp", "hidden": [8]},
    "support": {"low": 0.0, "high": 110.0},
}


def trained(workshop, settings, name="run"):
    return train(settings, serial=True, name=name, runs_folder=workshop.runs, display=False)


@pytest.fixture
def hidden(workshop):
    """Settings of a small run on CartPole without velocities, episodes of 25 steps at most."""

    def make(**learner):
        return {
            "seed": 5,
            "environment": {"id": HIDDEN, "max_episode_steps": 25},
            "actors": {"count": 1, "rollout": {"envs_per_actor": 3, "fragment_steps": 8, "fragment_steps_max": 8}},
            "replay": {
                "capacity_rows": 2_000,
                "folder": str(workshop.rings),
                "limiter": {"samples_per_insert": 6, "minimum_rows": 100},
            },
            "learner": LEARNER | learner,
            "budget": {"max_env_steps": 300, "max_seconds": None},
            "evaluation": {"period_env_steps": None, "episodes": 2, "envs": 2},
            "tracking": {"enabled": False},
        }

    return make


@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_the_state_that_a_sequence_starts_from_is_the_one_that_the_actor_had_there(hidden, cell):
    """Played anew from the begin of its episode, over what is stored, a lane comes to the same state."""
    plan = plan_run(read_settings(RunSettings, hidden(core={"cell": cell, "size": 5})))
    learner = plan.make_learner()
    shard, _ = open_shard(plan, "states", lambda captions: np.zeros(len(captions), np.uint32), None)
    lease = shard.register(0, 3)
    rollout = plan.make_rollout(0, lease.incarnation, lease.next_sequence)
    weights = learner.weights(weights_version(0, 1))
    for _ in range(12):
        shard.insert(rollout.collect(lambda version: weights if version < weights.version else None))
    rollout.close()

    feed, reader = open_feed(plan, shard.path, 0), RingReader(shard.path)
    policy = plan.policy_factory(None)
    policy.load(weights)
    rng, seen_begins, seen_middles = np.random.default_rng(0), 0, 0
    for _ in range(4):
        batch = feed.draw()
        for b in range(batch.batch_size):
            lane, first = int(batch.lane[b]), int(batch.first_row[b])
            columns = {name: column[lane * reader.slots :] for name, column in reader.columns.items()}
            begin = first
            while begin > 0 and columns["role"][begin - 1] != ROLE_FINAL:
                begin -= 1
            state = policy.initial_state(1)
            for row in range(begin, first):
                state = policy.act({"observation": columns["observation"][row : row + 1]}, state, rng).state
                state[:, -1] = columns["action"][row] + 1  # exploration may have chosen another
            np.testing.assert_allclose(batch.first_extra[STATE_COLUMN][b], state[0], atol=1e-5)
            seen_begins, seen_middles = seen_begins + (first == begin), seen_middles + (first > begin)
            assert (first == begin) == (not state.any())
    assert min(seen_begins, seen_middles) > 3
    feed.close(), reader.close(), shard.close()


def test_a_run_with_a_memory_repeats_under_its_seed_and_goes_on_from_its_checkpoint(workshop, hidden, caplog):
    runs = [trained(workshop, hidden(), name) for name in ("a", "b")]
    assert runs[0].updates > 10
    first, second = (load_checkpoint(workshop.runs / name / "checkpoints", "last").tensors["learner"] for name in "ab")
    assert all(np.array_equal(first[name], second[name]) for name in first)
    assert "the replay ring is new" not in caplog.text
    caplog.set_level("INFO")
    resumed = workshop.resume("a", overrides=["budget.max_env_steps=700"])  # the refilled ring's minimum comes first
    assert "the replay ring is new" in caplog.text, "the session before ended in order"
    assert resumed.updates > runs[0].updates
    assert resumed.env_steps >= 700
    # States are kept at other steps then: every second one, where it was every one.
    again = workshop.resume("a", overrides=["budget.max_env_steps=1100", "learner.period=4", "learner.burn_in=2"])
    assert again.updates > resumed.updates


@pytest.mark.parametrize("changes", [{"state": "zero"}, {"priorities": None}, {"core": {"cell": "gru", "size": 5}}])
def test_its_options_run(workshop, hidden, changes):
    assert trained(workshop, hidden(**changes)).updates > 10
