"""A run in which nothing moves: told early, given up late."""

from __future__ import annotations

import pytest

from onibi.clusters.coordinator import stuck_watch
from onibi.clusters.coordinator.stuck_watch import StuckWatch
from onibi.clusters.run_settings import BudgetSettings
from onibi.platform.config import read_settings
from onibi.platform.errors import ConfigError, TrainingError

STORE = {"pacing": {"replay/learner_stalled": 1.0}, "inserted_rows": 7, "drawn_rows": 3}


def watch(patience=1_800.0):
    return StuckWatch(patience, lambda: "computing rollout 0 (1.00 cores)", (0, 0), now=100.0)


def test_it_is_told_after_a_minute_and_then_after_twice_as_long_each():
    looked = watch()
    told = [seconds for seconds in range(1_800) if looked.look((0, 0), STORE, 100.0 + seconds)]
    assert told == [60, 120, 240, 480, 960]
    (text,) = watch().look((0, 0), STORE, 161.0)
    assert text.startswith("nothing has moved for 61 s: 7 rows inserted, 3 drawn; the run waits for the actors.")
    assert "up to 1800 s (budget.patience_seconds)" in text
    assert "rollout 0 (1.00 cores)" in text


def test_it_is_given_up_after_the_patience_and_never_without_one():
    with pytest.raises(TrainingError, match=r"for 1801 s.*longer than budget\.patience_seconds \(1800\): raise it"):
        watch().look((0, 0), STORE, 1_901.0)
    (text,) = watch(None).look((0, 0), STORE, 10.0**6)
    assert "for ever" in text


@pytest.mark.parametrize("counted", [(1, 0), (0, 1)])
def test_a_row_or_an_update_begins_the_wait_anew(counted):
    looked = watch()
    assert looked.look((0, 0), STORE, 170.0)
    assert looked.look(counted, STORE, 1_850.0) == []
    assert looked.look(counted, STORE, 1_905.0) == []
    assert looked.look(counted, STORE, 1_911.0)


@pytest.mark.parametrize("patience", [0.0, -1.0])
def test_a_patience_of_nothing_is_refused(patience):
    with pytest.raises(ConfigError, match=r"patience_seconds is .*; allowed: a finite number, above 0 or null"):
        read_settings(BudgetSettings, {"patience_seconds": patience})


def waited_for(workshop, **changes):
    """A fragment of each actor takes 4 s: 2 environments, 8 steps, 0.25 s each."""
    make = "onibi.actors.environments.sleeping:make"
    rewards = {"extrinsic": {"coefficient": 1.0, "clip": 1.0}, "intrinsic": None}
    return workshop.train(
        serial=False,
        environment={"id": make, "kwargs": {"step_seconds": 0.25, "episode_steps": 4}},
        captioner={"kind": "none"},
        rewards=rewards,
        learner={"kind": "dqn", "batch_size": 16, "support": {"low": 0.0, "high": 5.0}},
        evaluation={"period_env_steps": None, "episodes": 1, "envs": 1},
        **changes,
    )


@pytest.mark.slow
def test_environments_slower_than_the_warning_cost_a_warning_and_not_the_run(small_ray, workshop, monkeypatch, caplog):
    monkeypatch.setattr(stuck_watch, "_WARN_SECONDS", 1.5)
    result = waited_for(workshop, budget={"max_env_steps": 40, "max_seconds": None})
    assert result.status == "finished"
    assert result.env_steps >= 40
    (told, *_) = [record.message for record in caplog.records if "nothing has moved for" in record.message]
    assert "It goes on waiting, up to 1800 s" in told
    named = {role for role in ("rollout 0", "rollout 1", "learner", "shard", "hub") if role in told}
    assert len(named) == 5, "every role computes, waits or does not answer"


def test_a_run_whose_environments_are_slower_than_its_patience_is_given_up(small_ray, workshop):
    with pytest.raises(TrainingError, match=r"0 rows inserted.*longer than budget\.patience_seconds \(1\)"):
        waited_for(workshop, budget={"max_env_steps": 40, "max_seconds": None, "patience_seconds": 1.0})
    assert list(workshop.rings.iterdir()) == []


ENDLESS = """
import math, time, torch
from torch import nn

class Endless(nn.Module):
    def __init__(self, observation):
        super().__init__()
        self.layer = nn.Linear(sum(math.prod(leaf.shape) for leaf in observation), 4)

    def forward(self, observation):
        rows = torch.cat([leaf.reshape(len(leaf), -1).float() for leaf in observation.values()], 1)
        if torch.is_grad_enabled() and len(rows) > 8:
            time.sleep(3600)
        return self.layer(rows)
"""


@pytest.mark.slow
def test_a_learner_that_never_ends_its_update_does_not_keep_the_watch_from_giving_the_run_up(workshop):
    (workshop.runs.parent / "endless_network.py").write_text(ENDLESS, encoding="utf-8")
    process = workshop.start(
        serial=False,
        learner__network={"kind": "custom", "path": "endless_network:Endless"},
        budget={"max_env_steps": 10**6, "patience_seconds": 6.0},
        checkpoint__period_seconds=0.5,
    )
    assert process.wait(120) == 1
    assert "longer than budget.patience_seconds (6)" in " ".join(workshop.log_of().split())
