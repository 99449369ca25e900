"""How far a DQN learner's values are from dynamic programming's: a trial of `onibi experiment learners`."""

from __future__ import annotations

import dataclasses

import numpy as np
import torch
from numpy.typing import NDArray

from onibi.clusters.experiments.tabular import TabularTask, TaskName, make_task, optimal_values
from onibi.learners.dqn import DqnLearner, DqnSettings
from onibi.learners.networks.build import QNetwork, build_q_network
from onibi.learners.networks.mlp import MlpSettings
from onibi.learners.support import SupportSettings
from onibi.learners.target_network import TargetSettings
from onibi.learners.value_losses import BINNED_LOSSES, ValueLossName
from onibi.platform.replay.samplers.windows import Windows
from onibi.platform.spec import ArraySpec, ReplaySpec

_NETWORK = "network."
_LEARNING_RATE_FACTORS = (1.0, 0.25, 0.0625)
"""In stages of equally many updates: what is drawn at random leaves a wobble as wide as the learning rate."""


def learn(
    *,
    seed: int,
    task: TaskName,
    value_loss: ValueLossName,
    discount: float,
    updates: int,
    learning_rate: float,
    batch_size: int = 256,
) -> dict[str, float]:
    """Feed ``DqnLearner`` with one-step windows, states and actions drawn uniformly; compare with Q*.

    Returns: ``value_error``: max |Q − Q*| over states and actions, as a share of max |Q*|; ``value_error_rms``: the
    root of the mean square, likewise.
    """
    process = make_task(task)
    exact = optimal_values(process, discount)
    spec = ReplaySpec(
        observation=(ArraySpec(name="observation", dtype="int64", low=0, high=process.states - 1),),
        actions=process.actions,
    )
    settings = DqnSettings(
        value_loss=value_loss,
        support=SupportSettings(low=-0.25, high=1.25) if value_loss in BINNED_LOSSES else SupportSettings(),
        network=MlpSettings(hidden=(64, 64), layer_norm=False),
        discount=discount,
        n_steps=1,
        batch_size=batch_size,
        learning_rate=learning_rate,
        target=TargetSettings(rate=0.02),
    )
    rng, state = np.random.default_rng(seed), None
    read: list[NDArray[np.float64]] = []
    for factor in _LEARNING_RATE_FACTORS:
        stage = dataclasses.replace(settings, learning_rate=learning_rate * factor)
        learner = DqnLearner(stage, spec, None, seed, "cpu")
        if state is not None:
            learner.load_state_dict(state)
        network = build_q_network(settings.network, spec, learner.value_head, dueling=settings.dueling, seed=seed)
        for update in range(updates // len(_LEARNING_RATE_FACTORS)):
            windows = _windows(process, batch_size, rng)
            learner.update(windows, windows.reward)
            if factor == _LEARNING_RATE_FACTORS[-1] and update % 10 == 0:
                read.append(_values(learner, network, process.states))
        state = learner.state_dict()
    # The mean over the last stage: single moments wobble around it, as rewards and next states are drawn.
    error = np.abs(np.mean(read, axis=0) - exact)[~process.terminal] / np.abs(exact).max()
    return {"value_error": float(error.max()), "value_error_rms": float(np.sqrt((error**2).mean()))}


def _values(learner: DqnLearner, network: QNetwork, states: int) -> NDArray[np.float64]:
    state = learner.state_dict()
    network.load_state_dict({n.removeprefix(_NETWORK): t for n, t in state.items() if n.startswith(_NETWORK)})
    with torch.no_grad():
        values: NDArray[np.float64] = network.action_values({"observation": torch.arange(states)}).double().numpy()
    return values


def _windows(process: TabularTask, rows: int, rng: np.random.Generator) -> Windows:
    state = rng.choice(np.flatnonzero(~process.terminal), rows)
    action = rng.integers(process.actions, size=rows)
    following, reward = process.draw(state, action, rng)
    return Windows(
        observation={"observation": state},
        bootstrap_observation={"observation": following},
        action=action,
        reward=reward[:, None].astype(np.float32),
        continues=(~process.terminal[following])[:, None].astype(np.float32),
        used=np.ones((rows, 1), bool),
        steps=np.ones(rows, np.int32),
        caption_id=np.zeros((rows, 1), np.uint32),
        caption_count=np.zeros((rows, 1, 1), np.uint16),
        policy_version=np.zeros(rows, np.int64),
        lane=np.zeros(rows, np.int64),
        generation=np.zeros(rows, np.int64),
        weight=np.ones(rows, np.float32),
    )
