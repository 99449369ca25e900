"""What a DQN learner learns with each value loss, on a chain whose values are known."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from onibi.learners.dqn import DqnLearner, DqnSettings, policy_factory
from onibi.learners.dqn_policy import VALUES
from onibi.learners.networks.mlp import MlpSettings
from onibi.learners.support import SupportSettings
from onibi.learners.target_network import TargetSettings
from onibi.learners.value_losses import BINNED_LOSSES
from onibi.platform.policy import weights_version
from onibi.platform.replay.samplers.windows import Windows
from onibi.platform.spec import ArraySpec, ReplaySpec

STATES, GOAL, DISCOUNT = 5, 4, 0.9
CHAIN = ReplaySpec(observation=(ArraySpec(name="observation", dtype="int64", low=0, high=STATES - 1),), actions=2)


def chain_windows(rng, rows, n_steps):
    """A walk on 5 cells: 1 steps right, 0 steps left; entering the last cell pays 1 and ends.

    Only the first action varies, later ones step right: so the n-step targets are those of the best policy.
    """
    state, action = rng.integers(STATES - 1, size=rows), rng.integers(2, size=rows)
    reward, continues = np.zeros((rows, n_steps), np.float32), np.ones((rows, n_steps), np.float32)
    used, at, alive = np.zeros((rows, n_steps), bool), state.copy(), np.ones(rows, bool)
    for step in range(n_steps):
        used[:, step] = alive
        move = np.where(action == 1, 1, -1) if step == 0 else np.ones(rows, int)
        at = np.where(alive, np.clip(at + move, 0, GOAL), at)
        arrived = alive & (at == GOAL)
        reward[arrived, step], continues[arrived, step] = 1.0, 0.0
        alive &= ~arrived
    return Windows(
        observation={"observation": state},
        bootstrap_observation={"observation": at},
        action=action,
        reward=reward,
        continues=continues,
        used=used,
        steps=used.sum(axis=1).astype(np.int32),
        caption_id=np.zeros((rows, n_steps), np.uint32),
        caption_count=np.zeros((rows, n_steps, 1), np.uint16),
        policy_version=np.zeros(rows, np.int64),
        lane=np.zeros(rows, np.int64),
        generation=np.zeros(rows, np.int64),
        weight=np.ones(rows, np.float32),
    )


def settings_of(loss, **others):
    support = SupportSettings(low=-0.2, high=1.2) if loss in BINNED_LOSSES else SupportSettings()
    return DqnSettings(**{"value_loss": loss, "support": support, "network": MlpSettings(hidden=(32,))} | others)


def chain_error(settings, updates=400, seed=0):
    """Largest error of the values learnt, against those known: γ^(steps to the goal after the action)."""
    learner, rng = DqnLearner(settings, CHAIN, None, seed, "cpu"), np.random.default_rng(seed)
    for _ in range(updates):
        windows = chain_windows(rng, 32, settings.n_steps)
        learner.update(windows, windows.reward)
    right = DISCOUNT ** (GOAL - 1 - np.arange(STATES - 1))
    left = DISCOUNT ** (GOAL - np.maximum(np.arange(STATES - 1) - 1, 0))
    policy = policy_factory(settings, CHAIN)(None)  # what acts: the values are those that an actor reads
    policy.load(learner.weights(weights_version(0, updates)))
    values = policy._forward({"observation": np.arange(STATES - 1)})[VALUES]
    return np.abs(values - np.stack((left, right), axis=1)).max()


def chain_settings(loss, n_steps, learning_rate=3e-3, **others):
    target = TargetSettings(rate=0.05)
    return settings_of(loss, discount=DISCOUNT, n_steps=n_steps, learning_rate=learning_rate, target=target, **others)


@pytest.mark.parametrize(
    ("loss", "n_steps"),
    [("hl_gauss", 1), ("hl_gauss", 3), ("mse", 3), ("huber", 1), ("two_hot", 3)]
    + [(loss, n_steps) for loss in ("c51", "quantile", "iqn") for n_steps in (1, 3)],
)
def test_the_known_values_of_a_chain_are_learnt(loss, n_steps):
    assert chain_error(chain_settings(loss, n_steps)) < 0.05


@pytest.mark.parametrize("loss", ["hl_gauss", "two_hot", "c51"])
def test_the_known_values_of_a_chain_are_learnt_over_symlog_bins(loss):
    support = SupportSettings(low=-2.0, high=50.0, spacing="symlog")
    assert chain_error(chain_settings(loss, 3, support=support)) < 0.05


@pytest.mark.parametrize("loss", ["hl_gauss", "two_hot", "c51", "quantile", "iqn"])
def test_the_same_chain_stays_unlearnt_without_a_learning_rate(loss):
    assert chain_error(chain_settings(loss, 3, learning_rate=0.0)) > 0.5


def coin_shares(loss, learning_rate):
    """What is learnt of a reward of 0 or 1 with equal odds, then the end: ((lower, upper) quantile or share, mean)."""
    support = {"support": SupportSettings(low=-0.5, high=1.5, bins=9)} if loss == "c51" else {"huber_delta": 0.05}
    learner = DqnLearner(chain_settings(loss, 1, learning_rate, **support), CHAIN, None, 0, "cpu")
    rng = np.random.default_rng(0)
    for _ in range(300):
        windows = chain_windows(rng, 32, 1)
        windows.continues[:] = 0.0
        learner.update(windows, rng.integers(2, size=(32, 1)).astype(np.float32))
    observation = {"observation": torch.arange(STATES - 1)}
    with torch.no_grad():
        mean = learner._network.action_values(observation).mean().item()
        if loss == "iqn":
            outputs = learner._network(observation, torch.tensor([[0.2, 0.8]]).expand(STATES - 1, -1))
        else:
            outputs = learner._network(observation)
    outputs = torch.softmax(outputs, -1) if loss == "c51" else outputs
    at = {"c51": [2, 6], "quantile": [6, 25], "iqn": [0, 1]}[loss]  # atoms 0 and 1; fractions 0.2 and 0.8
    return outputs.mean(dim=(0, 1))[at].tolist(), mean


@pytest.mark.parametrize(("loss", "expected"), [("c51", [0.5, 0.5]), ("quantile", [0.0, 1.0]), ("iqn", [0.0, 1.0])])
def test_a_coin_is_learnt_as_two_outcomes_and_acted_on_by_its_mean(loss, expected):
    found, mean = coin_shares(loss, 3e-3)
    assert found == pytest.approx(expected, abs=0.15)
    assert mean == pytest.approx(0.5, abs=0.1)


@pytest.mark.parametrize(("loss", "start"), [("c51", [1.0, 0.0]), ("quantile", [0.0, 0.0]), ("iqn", [0.0, 0.0])])
def test_the_same_coin_stays_a_point_at_zero_without_a_learning_rate(loss, start):
    found, mean = coin_shares(loss, 0.0)
    assert found == pytest.approx(start, abs=0.05)
    assert mean == pytest.approx(0.0, abs=0.05)
