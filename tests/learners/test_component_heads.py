"""A value head for each term of the reward: targets by hand, sums, discounts of their own, actors that read the sum."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from onibi.learners.component_heads import ComponentHeadSettings, ComponentValueHead
from onibi.learners.dqn import DqnLearner, DqnSettings
from onibi.learners.networks.mlp import MlpSettings
from onibi.platform.config import read_settings
from onibi.platform.errors import ConfigError
from onibi.platform.policy import WeightsVersion
from onibi.platform.replay.samplers.windows import Windows
from onibi.platform.spec import ArraySpec, ReplaySpec

SPEC = ReplaySpec(observation=(ArraySpec(name="observation", dtype="float32", shape=(3,)),), actions=2)
HEADS = {"extrinsic": ComponentHeadSettings(), "curiosity": ComponentHeadSettings(discount=0.5, episodic=False)}


def learner(**changes):
    settings = {
        "value_loss": "mse",
        "heads": HEADS,
        "discount": 0.9,
        "n_steps": 1,
        "learning_rate": 0.02,
        "target": read_settings(DqnSettings, {"target": {"rate": 0.2}}).target,
        "network": MlpSettings(hidden=(32,)),
        "metrics_period_updates": 1,
    }
    return DqnLearner(DqnSettings(**{**settings, **changes}), SPEC, None, seed=1, device="cpu")


def windows(observation, after, action, continues, n=1):
    batch = len(action)
    return Windows(
        observation={"observation": np.eye(3, dtype=np.float32)[observation]},
        bootstrap_observation={"observation": np.eye(3, dtype=np.float32)[after]},
        action=np.array(action),
        reward=np.zeros((batch, n), np.float32),
        continues=np.array(continues, np.float32).reshape(batch, n),
        used=np.ones((batch, n), np.bool_),
        steps=np.full(batch, n, np.int32),
        caption_id=np.zeros((batch, n), np.uint32),
        caption_count=np.zeros((batch, n, 1), np.uint16),
        policy_version=np.zeros(batch, np.int64),
        lane=np.zeros(batch, np.int64),
        generation=np.arange(batch),
        weight=np.ones(batch, np.float32),
    )


def test_targets_are_those_of_each_heads_own_discount_and_one_action():
    head = ComponentValueHead("mse", 1.0, HEADS, 0.9)
    rewards = torch.tensor([[[1.0, 10.0], [2.0, 20.0]], [[3.0, 30.0], [4.0, 40.0]]])
    values = torch.tensor([[[1.0, 8.0], [5.0, 2.0]], [[1.0, 8.0], [5.0, 2.0]]])  # Q_c of two actions
    chooser = torch.tensor([[0.0, 1.0], [1.0, 0.0]])
    targets = head.targets(
        rewards,
        continues=torch.tensor([[1.0, 1.0], [1.0, 0.0]]),
        used=torch.tensor([[True, True], [True, True]]),
        outputs=2 * values,
        chooser=chooser,
        temperature=0.0,
        allowed=None,
    )
    first = [1 + 0.9 * (2 + 0.9 * 5), 10 + 0.5 * (20 + 0.5 * 2)]
    second = [3 + 0.9 * 4, 30 + 0.5 * (40 + 0.5 * 8)]  # it ended: only the head that is not episodic goes on
    assert targets.tolist() == [pytest.approx(first), pytest.approx(second)]


def test_the_loss_is_the_sum_over_heads_and_the_value_the_sum_of_values():
    head = ComponentValueHead("mse", 1.0, HEADS, 0.9)
    outputs = torch.tensor([[2.0, 6.0]])
    assert head.components(outputs).tolist() == [[1.0, 3.0]]
    assert head.decode(outputs).tolist() == [4.0]
    terms = head.component_terms(outputs, torch.tensor([[0.0, 1.0]]))
    assert terms.loss.tolist() == [0.5 * 1 + 0.5 * 4]


def test_each_head_learns_its_own_return_on_a_chain_and_actors_act_by_the_sum():
    """0 → 1 → 2, which ends; the reward of the way is extrinsic, curiosity pays 1 everywhere. Action 1 pays nothing."""
    learning = learner()
    batch = windows([0, 1, 0, 1], [1, 2, 0, 1], [0, 0, 1, 1], [1, 0, 1, 1])
    terms = {
        "extrinsic": np.array([[0.0], [1.0], [0.0], [0.0]], np.float32),
        "curiosity": np.array([[1.0], [1.0], [0.0], [0.0]], np.float32),
    }
    for _ in range(300):
        update = learning.update(batch, terms["extrinsic"] + terms["curiosity"], terms)
    network = learning._network
    observation = {"observation": torch.eye(3)}
    with torch.no_grad():
        outputs = network(observation)
        values = learning.value_head.components(outputs)
        beyond = values[2, network.head.action_values(network.encoder(observation), None)[2].argmax()]
    assert values[1, 0, 0].item() == pytest.approx(1.0, abs=0.02)
    assert values[0, 0, 0].item() == pytest.approx(0.9, abs=0.02)
    assert values[1, 0, 1].item() == pytest.approx(1 + 0.5 * beyond[1].item(), abs=0.03), "it goes on behind the end"
    assert values[0, 0, 1].item() == pytest.approx(1 + 0.5 * values[1, 0, 1].item(), abs=0.03)
    assert update.metrics["q_mean/curiosity"] == pytest.approx(values[:2, :, 1].mean().item(), abs=0.05)
    policy = learning.policy_factory(learning.settings, SPEC)(None)
    policy.load(learning.weights(WeightsVersion(1)))
    acted = policy.act({"observation": np.eye(3, dtype=np.float32)[:2]}, None, np.random.default_rng(0)).action
    assert acted.tolist() == outputs.mean(-1)[:2].argmax(dim=1).tolist() == [0, 0]


def test_equal_episodic_discounts_learn_what_one_head_learns_from_the_sum():
    rng = np.random.default_rng(0)
    batch = windows(rng.integers(0, 3, 32), rng.integers(0, 3, 32), rng.integers(0, 2, 32), rng.random(32) < 0.7)
    terms = {name: rng.normal(size=(32, 1)).astype(np.float32) for name in ("a", "b", "c")}
    total = sum(terms.values())
    both = [learner(heads={name: ComponentHeadSettings() for name in terms}), learner(heads=None)]
    for _ in range(300):
        both[0].update(batch, total, terms)
        both[1].update(batch, total)
    with torch.no_grad():
        told = [each.value_head.decode(each._network({"observation": torch.eye(3)})) for each in both]
    seen = np.unique(np.stack([batch.observation["observation"].argmax(1), batch.action], 1), axis=0)
    for place, action in seen:
        assert told[0][place, action].item() == pytest.approx(told[1][place, action].item(), abs=0.1)


def test_heads_go_through_a_checkpoint():
    first, second = learner(dueling=False), learner(dueling=False)
    batch = windows([0, 1], [1, 2], [0, 1], [1, 0])
    terms = {name: np.ones((2, 1), np.float32) for name in HEADS}
    for _ in range(3):
        first.update(batch, sum(terms.values()), terms)
    state = first.state_dict()
    second.load_state_dict(state)
    restored = second.state_dict()
    assert second.reads_terms
    assert state.keys() == restored.keys()
    assert [name for name in state if not torch.equal(state[name], restored[name])] == []
    for each in (first, second):
        each.update(batch, sum(terms.values()), terms)
    assert torch.equal(
        first.state_dict()["network.head.advantage.weight"], second.state_dict()["network.head.advantage.weight"]
    )


@pytest.mark.parametrize("changes", [{"value_loss": "hl_gauss"}, {"heads": {}}])
def test_heads_that_cannot_be_are_refused(changes):
    with pytest.raises(ConfigError, match="heads has"):
        read_settings(DqnSettings, {"value_loss": "mse", "heads": {"extrinsic": {}}, **changes})
