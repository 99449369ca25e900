"""Q-learning and policy evaluation under reward noise, with one value loss: the trial of `stop-regressing`.

    y = r + u + γ max_a Q̄(s′, a)              control;      u ~ U(0, η), drawn anew with every transition
    y = r + u + γ Σ_a π(a|s′) Q̄(s′, a)        evaluation of a fixed π

States and actions are drawn uniformly, so exploration plays no part; Q̄ is a copy of Q, some updates old. No replay, no
Ray: the loss is all that differs.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from onibi.clusters.experiments.tabular import (
    TabularTask,
    TaskName,
    greedy,
    make_task,
    optimal_values,
    policy_values,
    start_value,
)
from onibi.learners.networks.heads import ActionValueHead
from onibi.learners.networks.mlp import Trunk
from onibi.learners.support import Support
from onibi.learners.value_losses import ScalarLossName, ValueHead

Mode = Literal["control", "evaluation"]

_BINS, _SIGMA_BINS, _MARGIN_SIGMAS = 51, 0.75, 3.0
_EVALUATIONS = 20
_HUBER_DELTA = 1.0


class TabularQNetwork(nn.Module):
    """Values of all states at once: one-hot states → two hidden layers → outputs [S, A, K].

    Args:
        task: gives S and A.
        width: of both hidden layers.
        value_head: form of the outputs.
    """

    def __init__(self, task: TabularTask, width: int, value_head: ValueHead) -> None:
        super().__init__()
        self.trunk = Trunk(task.states, (width, width), layer_norm=False)
        self.head = ActionValueHead(width, task.actions, value_head.initial_bias(), dueling=False)
        self.register_buffer("inputs", torch.eye(task.states))

    def forward(self) -> Tensor:
        """[S, A, K] float32."""
        outputs: Tensor = self.head(self.trunk(self.inputs))
        return outputs


def run(
    *,
    seed: int,
    mode: Mode,
    task: TaskName,
    noise: float,
    width: int,
    value_loss: ScalarLossName,
    learning_rate: float,
    updates: int,
    batch_size: int = 32,
    discount: float = 0.9,
    target_period: int = 20,
) -> dict[str, float]:
    """Learn for ``updates`` gradient steps; judge by exact values 20 times on the way.

    Args:
        seed: of the transitions, their noise, and the parameters.
        mode: what the target bootstraps from.
        task: in its continuing form.
        noise: η.
        width: of the hidden layers.
        value_loss: of a scalar target.
        learning_rate: Adam's.
        updates: gradient steps.
        batch_size: transitions of a step.
        discount: γ.
        target_period: updates between two copies into Q̄.
    Returns: ``return``: the greedy policy's exact expected return as a share of the way from the random policy's to the
        best, mean of all evaluations; ``final_return``: of the last; ``value_error``: root mean square error
        of Q at the end, as a share of the exact values' root mean square; ``clipped_share`` of targets.
    """
    process = make_task(task).continuing()
    rng = np.random.default_rng(seed)
    exact, policy, highest = _truth(process, mode, noise, discount)
    value_head = ValueHead(value_loss, *_support(value_loss, highest), _HUBER_DELTA)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = TabularQNetwork(process, width, value_head)
    optimizer = torch.optim.Adam(network.parameters(), lr=learning_rate, fused=True)
    bootstrap = _bootstrap(network, value_head, policy)
    returns, clipped = [], 0.0
    for update in range(1, updates + 1):
        state = rng.integers(process.states, size=batch_size)
        action = rng.integers(process.actions, size=batch_size)
        following, reward = process.draw(state, action, rng)
        noisy = reward + rng.uniform(0.0, noise, batch_size)
        target = torch.from_numpy(noisy + discount * bootstrap[following]).float()
        prediction = network()[torch.from_numpy(state), torch.from_numpy(action)]
        terms = value_head.terms(prediction, target)
        optimizer.zero_grad(set_to_none=True)
        terms.loss.mean().backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        clipped += float(terms.clipped.float().mean())
        if update % target_period == 0:
            bootstrap = _bootstrap(network, value_head, policy)
        if update % max(1, updates // _EVALUATIONS) == 0:
            returns.append(_share_of_best(process, _read(network, value_head), discount))
    found = _read(network, value_head)
    size = np.sqrt((exact**2).mean())
    return {
        "return": float(np.mean(returns)),
        "final_return": returns[-1],
        "value_error": float(np.sqrt(((found - exact) ** 2).mean()) / size),
        "clipped_share": clipped / updates,
    }


def _truth(
    process: TabularTask, mode: Mode, noise: float, discount: float
) -> tuple[NDArray[np.float64], NDArray[np.float64] | None, float]:
    """Exact values under the noise's mean, the policy that is evaluated, and the highest target there can be."""
    best = optimal_values(process, discount, bonus=noise / 2)
    highest = float(process.reward.max() + noise + discount * best.max())
    if mode == "control":
        return best, None, highest
    policy = 0.5 * greedy(best) + 0.5 / process.actions
    return policy_values(process, policy, discount, bonus=noise / 2), policy, highest


def _support(value_loss: ScalarLossName, highest: float) -> tuple[Support | None, float]:
    """Bins over [0, highest] with 3 σ on either side, and σ; rewards are never negative, values start at 0."""
    if value_loss not in ("hl_gauss", "two_hot"):
        return None, 0.0
    bin_width = highest / (_BINS - 2 * _MARGIN_SIGMAS * _SIGMA_BINS)
    margin = _MARGIN_SIGMAS * _SIGMA_BINS * bin_width
    return Support(-margin, highest + margin, _BINS), _SIGMA_BINS * bin_width


@torch.no_grad()
def _read(network: TabularQNetwork, value_head: ValueHead) -> NDArray[np.float64]:
    """[S, A] values."""
    values: NDArray[np.float64] = value_head.decode(network()).double().numpy()
    return values


def _bootstrap(
    network: TabularQNetwork, value_head: ValueHead, policy: NDArray[np.float64] | None
) -> NDArray[np.float64]:
    """[S] values that targets bootstrap from until the next copy."""
    values = _read(network, value_head)
    return np.asarray(values.max(axis=1) if policy is None else (policy * values).sum(axis=1))


def _share_of_best(process: TabularTask, values: NDArray[np.float64], discount: float) -> float:
    uniform = np.full((process.states, process.actions), 1.0 / process.actions)
    at_random = start_value(process, uniform, discount)
    best = start_value(process, greedy(optimal_values(process, discount)), discount)
    reached = start_value(process, greedy(values), discount)
    return (reached - at_random) / (best - at_random)
