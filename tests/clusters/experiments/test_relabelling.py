"""Rows that are in replay when labels come: values become those of the new reward, from these rows alone."""

from __future__ import annotations

import dataclasses

import numpy as np
import torch

from onibi.clusters.experiments.frozen_rewards import FrozenRewards, LabelledRowsLearner
from onibi.clusters.experiments.tabular import chain, optimal_values
from onibi.learners.dqn import DqnLearner, DqnSettings
from onibi.learners.networks.build import build_q_network
from onibi.learners.networks.mlp import MlpSettings
from onibi.learners.support import SupportSettings
from onibi.learners.target_network import TargetSettings
from onibi.platform.replay.samplers.windows import Windows
from onibi.platform.rewards.mixer import RewardMixer
from onibi.platform.rewards.settings import RewardSettings
from onibi.platform.rewards.table import LABELLED, UNLABELLED, RewardTable
from onibi.platform.rewards.table_component import RetrievalSettings
from onibi.platform.spec import ArraySpec, ReplaySpec

STATES, DISCOUNT, COEFFICIENT = 10, 0.8, 0.3
PAID_STATE = 4
ROWS, BATCH, STAGES = 600, 128, (300, 150)
"""Transitions there are, and updates at two learning rates."""

SETTINGS = DqnSettings(
    value_loss="hl_gauss",
    support=SupportSettings(low=-0.25, high=1.75),
    network=MlpSettings(hidden=(64,), layer_norm=False),
    discount=DISCOUNT,
    n_steps=1,
    batch_size=BATCH,
    learning_rate=6e-3,
    target=TargetSettings(rate=0.1),
)
SPEC = ReplaySpec(observation=(ArraySpec(name="observation", dtype="int64", low=0, high=STATES - 1),), actions=2)
MIXER = RewardMixer(RewardSettings(intrinsic=RetrievalSettings(coefficient=COEFFICIENT, count_power=0.0)))


def table(version, labelled):
    """Caption s + 1 is heard on entering state s; entering ``PAID_STATE`` is helpful."""
    keys = np.concatenate([[-1], np.arange(STATES)]).astype(np.int32)[:, None]
    value = (np.arange(STATES) == PAID_STATE).astype(np.float32) if labelled else np.zeros(STATES, np.float32)
    return RewardTable(version, keys, value, np.full(STATES, LABELLED if labelled else UNLABELLED, np.uint8))


EMPTY, FULL = table(1, labelled=False), table(2, labelled=True)


def exact(bonus):
    """Q* where entering the paid state brings ``bonus``."""
    task = chain(STATES, slip=0.0)
    task.reward[: STATES - 1, :, PAID_STATE] += bonus
    return optimal_values(task, DISCOUNT)


def transitions(rng, first_row=0):
    """``ROWS`` rows of lane 0, uniform over states and actions: what replay holds."""
    task = chain(STATES, slip=0.0)
    state, action = rng.integers(STATES - 1, size=ROWS), rng.integers(2, size=ROWS)
    following, reward = task.draw(state, action, rng)
    return Windows(
        observation={"observation": state},
        bootstrap_observation={"observation": following},
        action=action,
        reward=reward[:, None].astype(np.float32),
        continues=(following != STATES - 1)[:, None].astype(np.float32),
        used=np.ones((ROWS, 1), bool),
        steps=np.ones(ROWS, np.int32),
        caption_id=(following + 1)[:, None].astype(np.uint32),
        caption_count=np.ones((ROWS, 1, 1), np.uint16),
        policy_version=np.zeros(ROWS, np.int64),
        lane=np.zeros(ROWS, np.int64),
        generation=np.arange(first_row, first_row + ROWS),
        weight=np.ones(ROWS, np.float32),
    )


def drawn(rows, rng):
    chosen = rng.integers(ROWS, size=BATCH)
    arrays = {name: value[chosen] for name, value in vars(rows).items() if isinstance(value, np.ndarray)}
    leaves = {
        name: {leaf: value[chosen] for leaf, value in getattr(rows, name).items()}
        for name in ("observation", "bootstrap_observation")
    }
    return Windows(**arrays, **leaves)


def learnt(mixer, newest, rows, state, seed=3):
    """Values [S, A] after training on ``rows`` paid by ``mixer``, and the learner's state."""
    rng, read = np.random.default_rng(seed), []
    for stage, updates in enumerate(STAGES):
        learner = DqnLearner(
            dataclasses.replace(SETTINGS, learning_rate=SETTINGS.learning_rate / 5**stage), SPEC, None, seed, "cpu"
        )
        if state is not None:
            learner.load_state_dict(state)
        for update in range(updates):
            windows = drawn(rows, rng)
            learner.update(windows, mixer.mix(windows, newest).total)
            if stage and update >= updates // 2 and update % 10 == 0:
                read.append(values_of(learner))
        state = learner.state_dict()
    return np.mean(read, axis=0), state


def values_of(learner):
    network = build_q_network(SETTINGS.network, SPEC, learner.value_head, dueling=SETTINGS.dueling, seed=0)
    state = learner.state_dict()
    network.load_state_dict({n.removeprefix("network."): t for n, t in state.items() if n.startswith("network.")})
    with torch.no_grad():
        return network.action_values({"observation": torch.arange(STATES)}).double().numpy()


def error(values, bonus):
    """Largest difference to Q*, as a share of its largest value."""
    truth = exact(bonus)
    return float(np.abs(values - truth)[: STATES - 1].max() / truth.max())


def test_after_the_table_arrives_values_are_those_of_the_new_reward_from_old_rows_alone():
    rows = transitions(np.random.default_rng(0))
    frozen = FrozenRewards(MIXER, lanes=1)
    frozen.note(EMPTY, np.array([0]))
    before, state = learnt(MIXER, EMPTY, rows, None)
    assert error(before, 0.0) < 0.02
    assert error(before, COEFFICIENT) > 0.3  # the two rewards are told apart by far
    frozen.note(FULL, np.array([ROWS]))  # the labels come when all rows are there
    gathered, _ = learnt(MIXER, FULL, rows, state)
    assert error(gathered, COEFFICIENT) < 0.02
    kept, _ = learnt(frozen, FULL, rows, state)
    assert error(kept, 0.0) < 0.02


def test_a_row_is_paid_by_the_table_of_its_insertion_row_by_row_and_lane_by_lane():
    frozen = FrozenRewards(MIXER, lanes=2)
    frozen.note(EMPTY, np.array([0, 0]))
    frozen.note(FULL, np.array([3, 1]))
    rows = transitions(np.random.default_rng(1))
    rows = dataclasses.replace(
        rows,
        caption_id=np.full((ROWS, 1), PAID_STATE + 1, np.uint32),
        lane=np.arange(ROWS) % 2,
        generation=np.arange(ROWS) // 2,
    )
    mixed = frozen.mix(rows, FULL)
    paid = (mixed.components["intrinsic"][:, 0] > 0).tolist()
    assert paid[:8] == [False, False, False, True, False, True, True, True]  # lane 0 from row 3, lane 1 from row 1
    assert all(paid[8:])
    assert frozen.labelled.tolist() == paid
    assert np.array_equal(mixed.total, mixed.components["extrinsic"] + mixed.components["intrinsic"])


def test_rows_without_a_label_at_insertion_move_nothing():
    rng = np.random.default_rng(2)
    frozen = FrozenRewards(MIXER, lanes=1)
    frozen.note(EMPTY, np.array([0]))
    frozen.note(FULL, np.array([ROWS // 2]))
    rows = transitions(rng)
    half = {"reward": np.where(np.arange(ROWS)[:, None] < ROWS // 2, np.float32(77), rows.reward)}
    other = dataclasses.replace(rows, **half)  # what unlabelled rows say is nonsense here
    found = []
    for each in (rows, other):
        learner = DqnLearner(SETTINGS, SPEC, None, 5, "cpu")
        wrapped, drawing = LabelledRowsLearner(learner, frozen), np.random.default_rng(6)
        for _ in range(3):
            windows = drawn(each, drawing)
            wrapped.update(windows, frozen.mix(windows, FULL).total)
        assert 0.3 < frozen.labelled.mean() < 0.7
        found.append(values_of(learner))
    assert np.array_equal(*found)
    assert wrapped.updates == 3
