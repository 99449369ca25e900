"""Whole runs of actor-critic learners: rollouts store what the learner computes; memory, continuous actions."""

from __future__ import annotations

import numpy as np
import pytest

from onibi.platform.checkpoint import load_checkpoint
from onibi.platform.errors import ConfigError

NETWORK = {"kind": "mlp", "hidden": [16], "layer_norm": False, "activation": "tanh", "normalize_observation": True}
LEARNER = {"kind": "appo", "rows": 8, "batch_lanes": 4, "value_loss": "mse", "network": NETWORK}
RUN = {
    "replay__limiter": {"samples_per_insert": 1},
    "actors": {"count": 1, "rollout": {"envs_per_actor": 4, "fragment_steps": 8, "fragment_steps_max": 8}},
    "budget__max_env_steps": 800,
}
PENDULUM = {
    **RUN,
    "environment": {"id": "Pendulum-v1", "max_episode_steps": 15},
    "captioner": {"kind": "none"},
    "rewards": {"extrinsic": {"scale": 0.1, "clip": None}},
}
MEMORY = {"core": {"cell": "gru", "size": 8}, "normalize_reward": True}


def tensors(workshop, name="run"):
    return load_checkpoint(workshop.runs / name / "checkpoints").tensors["learner"]


def divergences(workshop):
    """KL of the acting policy from the learnt one, slab by slab."""
    return [row["learner/kl_from_behaviour"] for row in workshop.history() if "learner/kl_from_behaviour" in row]


@pytest.mark.parametrize(
    ("kind", "run", "options"),
    [("impala", RUN, {}), ("appo", RUN, MEMORY), ("impala", PENDULUM, MEMORY), ("appo", PENDULUM, {})],
)
def test_rows_of_the_newest_weights_bring_the_log_probabilities_that_the_learner_computes(
    workshop, monkeypatch, kind, run, options
):
    monkeypatch.setattr("onibi.clusters.serial_run._INTERVAL_SECONDS", 0.0)
    result = workshop.train(**run, learner={**LEARNER, "kind": kind, "metrics_period_updates": 1, **options})
    assert result.status == "finished"
    assert result.figures["replay/lost_rows"] == 0
    assert result.figures["learner/data_age_max_updates"] == 0
    found = divergences(workshop)
    assert len(found) >= 20
    # The first slab came from the random policy; from the second one on π is μ.
    assert max(found[1:]) < 1e-6


def test_rows_of_older_weights_are_seen_to_be_such(workshop, monkeypatch):
    monkeypatch.setattr("onibi.clusters.serial_run._INTERVAL_SECONDS", 0.0)
    learner = {**LEARNER, **MEMORY, "metrics_period_updates": 1, "publish_period_updates": 5, "learning_rate": 0.01}
    workshop.train(**PENDULUM, learner=learner)
    assert np.mean(divergences(workshop)[5:]) > 1e-4


def test_a_run_with_continuous_actions_repeats_bit_for_bit_and_goes_on_after_a_resume(workshop):
    for name in ("first", "second"):
        workshop.train(name, **PENDULUM, learner={**LEARNER, **MEMORY}, evaluation__epsilon=0.5)
    first, second = (tensors(workshop, name) for name in ("first", "second"))
    assert all(np.array_equal(first[name], second[name]) for name in first)
    more = workshop.resume("first", overrides=["budget.max_env_steps=1200"])
    assert more.status == "finished"
    assert more.figures["replay/lost_rows"] == 0


def test_continuous_actions_are_refused_by_learners_of_action_values(workshop):
    with pytest.raises(ConfigError, match=r"continuous.*learner.kind=dqn.*Set learner.kind to appo or impala"):
        workshop.train(**{**PENDULUM, "replay__limiter": {}})


def test_a_box_of_integers_and_other_spaces_are_refused(workshop, tmp_path, monkeypatch):
    (tmp_path / "odd_actions.py").write_text(
        "import gymnasium as gym, numpy as np\n"
        "class Odd(gym.Env):\n"
        "    observation_space = gym.spaces.Box(-1, 1, (2,), np.float32)\n"
        "    action_space = gym.spaces.MultiDiscrete([2, 2])\n"
        "def make():\n"
        "    return Odd()\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ConfigError, match="MultiDiscrete"):
        workshop.train(**{**PENDULUM, "environment": {"id": "odd_actions:make"}}, learner=LEARNER)


MASKED_ENVIRONMENT = """
import gymnasium as gym, numpy as np


class Doors(gym.Env):
    '''Of four doors two are shut; whoever walks into one of those is thrown out with an error.'''

    observation_space = gym.spaces.Dict(
        {"place": gym.spaces.Box(-1, 1, (2,), np.float32), "action_mask": gym.spaces.MultiBinary(4)}
    )
    action_space = gym.spaces.Discrete(4)

    def _look(self):
        self._mask = np.zeros(4, np.int8)
        self._mask[self.np_random.permutation(4)[:2]] = 1
        return {"place": self.np_random.random(2, np.float32), "action_mask": self._mask}

    def reset(self, seed=None, options=None):
        super().reset(seed=seed)
        self._steps = 0
        return self._look(), {}

    def step(self, action):
        if not self._mask[action]:
            raise RuntimeError(f"door {action} is shut")
        self._steps += 1
        return self._look(), float(action == 3), False, self._steps == 10, {}


def make():
    return Doors()
"""


@pytest.mark.parametrize("options", [{}, {"evaluation_actions": "sample"}])
@pytest.mark.parametrize("kind", ["impala", "appo"])
def test_no_masked_action_reaches_the_environment_in_training_or_in_evaluation(
    workshop, tmp_path, monkeypatch, kind, options
):
    (tmp_path / "doors.py").write_text(MASKED_ENVIRONMENT)
    monkeypatch.syspath_prepend(tmp_path)
    result = workshop.train(
        **RUN,
        environment={"id": "doors:make"},
        captioner={"kind": "none"},
        rewards={"extrinsic": {"clip": None}},
        learner={**LEARNER, **options, "kind": kind},
        evaluation__epsilon=0.5,
    )
    assert result.status == "finished"
    assert result.updates >= 20
