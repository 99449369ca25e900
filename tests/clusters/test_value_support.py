"""Whether a run is warned of bins that are wider than all that a step pays."""

from __future__ import annotations

import pytest

from onibi.clusters.run_settings import RunSettings
from onibi.clusters.value_support import bounds_of_values, coarse_support
from onibi.platform.config import read_settings

OWN = {"environment": {"id": "CartPole-v1"}, "learner": {"kind": "dqn"}}


def settings_of(*overrides):
    return read_settings(RunSettings, OWN, overrides=overrides)


def test_a_run_that_says_nothing_of_its_episodes_is_warned_with_the_numbers():
    assert bounds_of_values(settings_of()) == (pytest.approx(-1000.0), pytest.approx(1000.0))  # ±10 over 1 − 0.99
    # A tenth of the range at either end: 2,400 in 51 bins.
    assert "-1,200 to 1,200 in 51 bins of 47.1, wider than all that a step pays" in coarse_support(settings_of())


@pytest.mark.parametrize(
    "overrides",
    [
        ("rewards.extrinsic.episode_low=0", "rewards.extrinsic.episode_high=500"),
        ("learner.support.low=-1", "learner.support.high=100"),
        ("learner.support.spacing=symlog",),
        ("learner.value_loss=mse",),
        ("learner.discount=0.9",),
        ("learner.kind=r2d2",),
        ("rewards.extrinsic.clip=null",),  # no bounds at all: the learner itself refuses that
    ],
)
def test_others_are_not(overrides):
    assert coarse_support(settings_of(*overrides)) == ""


def test_the_warning_comes_before_anything_is_trained(workshop, caplog):
    changes = {"rewards__extrinsic": {"coefficient": 1.0}, "learner__support": {}, "budget__max_env_steps": 50}
    workshop.train(**changes)
    assert "wider than all that a step pays" in caplog.text
    caplog.clear()
    workshop.train("other", budget__max_env_steps=50)
    assert "wider than all that a step pays" not in caplog.text
