"""Small tasks whose values are known exactly: a chain of cells and FrozenLake, with dynamic programming over both."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

_SWEEPS = 100_000
_PRECISION = 1e-12

TaskName = Literal["chain", "frozen_lake"]


@dataclass(frozen=True)
class TabularTask:
    """A finite Markov decision process. Letters: S states, A actions.

    Args:
        transition: [S, A, S] float64, probabilities of the next state.
        reward: [S, A, S] float64, paid on the way.
        terminal: [S] bool; entering such a state terminates, and nothing is learnt in it.
        start: [S] float64, probabilities of the first state.
    """

    transition: NDArray[np.float64]
    reward: NDArray[np.float64]
    terminal: NDArray[np.bool_]
    start: NDArray[np.float64]

    @property
    def states(self) -> int:
        """S."""
        return int(self.transition.shape[0])

    @property
    def actions(self) -> int:
        """A."""
        return int(self.transition.shape[1])

    def continuing(self) -> TabularTask:
        """The same without ends: who enters a terminal state stands at the start next.

        A reward that comes with every step then adds the same to the return of every policy. With ends it would make
        another task of this one: to live long.
        """
        transition = self.transition.copy()
        # Rewards are paid on the way into the terminal state, so they move into the mean over next states.
        entering = (transition * self.terminal).sum(axis=2)
        paid = (transition * self.reward).sum(axis=2)
        transition[:, :, self.terminal] = 0.0
        transition += entering[:, :, None] * self.start
        transition[self.terminal] = self.start
        reward = np.broadcast_to(paid[:, :, None], transition.shape).copy()
        reward[self.terminal] = 0.0
        return TabularTask(transition, reward, np.zeros_like(self.terminal), self.start)

    def draw(
        self, state: NDArray[np.int64], action: NDArray[np.int64], rng: np.random.Generator
    ) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Next states and rewards, both [B], of states and actions [B]."""
        steps = np.cumsum(self.transition[state, action], axis=1)
        following = np.minimum((rng.random(len(state))[:, None] >= steps).sum(axis=1), self.states - 1)
        return following, self.reward[state, action, following]


def make_task(name: TaskName) -> TabularTask:
    """A chain of sixteen cells, or Gymnasium's FrozenLake-v1 on its slippery 4 × 4 map."""
    return chain(16, slip=0.1) if name == "chain" else frozen_lake()


def chain(cells: int, slip: float) -> TabularTask:
    """Cells in a row: action 1 steps right, 0 left, with chance ``slip`` the other way. The last pays 1 and ends."""
    transition, reward = np.zeros((cells, 2, cells)), np.zeros((cells, 2, cells))
    for cell in range(cells - 1):
        for action in (0, 1):
            for direction, chance in ((action, 1 - slip), (1 - action, slip)):
                transition[cell, action, max(0, cell + (1 if direction else -1))] += chance
    reward[:, :, cells - 1] = 1.0
    terminal = np.arange(cells) == cells - 1
    transition[cells - 1, :, cells - 1] = 1.0
    reward[cells - 1] = 0.0
    return TabularTask(transition, reward, terminal, np.eye(cells)[0])


def frozen_lake() -> TabularTask:
    """FrozenLake-v1: 16 states, 4 actions, slippery; the goal pays 1, holes and goal end."""
    import gymnasium

    environment = gymnasium.make("FrozenLake-v1", is_slippery=True)
    table = environment.unwrapped.P  # type: ignore[attr-defined]
    states, actions = len(table), len(table[0])
    transition, reward = np.zeros((states, actions, states)), np.zeros((states, actions, states))
    terminal = np.zeros(states, bool)
    for state, by_action in table.items():
        for action, outcomes in by_action.items():
            for chance, following, paid, is_end in outcomes:
                transition[state, action, following] += chance
                reward[state, action, following] = paid
                terminal[following] |= is_end
    environment.close()  # type: ignore[no-untyped-call]
    return TabularTask(transition, reward, terminal, np.eye(states)[0])


def optimal_values(task: TabularTask, discount: float, bonus: float = 0.0) -> NDArray[np.float64]:
    """Q* by value iteration, [S, A]; 0 in terminal states.

    Args:
        task: the process.
        discount: γ < 1, or any γ where every policy ends.
        bonus: paid with each step besides, as the mean of a reward noise.
    """
    paid = (task.transition * (task.reward + bonus)).sum(axis=2) * ~task.terminal[:, None]
    values = np.zeros((task.states, task.actions))
    for _ in range(_SWEEPS):
        following = np.where(task.terminal, 0.0, values.max(axis=1))
        newer = paid + discount * np.where(task.terminal[:, None], 0.0, task.transition @ following)
        if np.abs(newer - values).max() < _PRECISION:
            return np.asarray(newer)
        values = newer
    raise ValueError(f"no fixed point after {_SWEEPS} sweeps at discount {discount}: some policy may never end")


def policy_values(
    task: TabularTask, policy: NDArray[np.float64], discount: float, bonus: float = 0.0
) -> NDArray[np.float64]:
    """Q of a fixed policy, [S, A], by solving V = P_π (r + γ V); 0 in terminal states.

    Args:
        task: the process.
        policy: [S, A], rows sum to 1.
        discount: γ.
        bonus: as in ``optimal_values``.
    """
    alive = ~task.terminal
    paid = (task.transition * (task.reward + bonus)).sum(axis=2) * alive[:, None]
    moves = task.transition * alive[:, None, None] * alive
    under = np.einsum("sa,sat->st", policy, moves)
    values = np.linalg.solve(np.eye(task.states) - discount * under, (policy * paid).sum(axis=1))
    found: NDArray[np.float64] = paid + discount * (moves @ values)
    return found


def start_value(task: TabularTask, policy: NDArray[np.float64], discount: float) -> float:
    """Expected discounted return of a policy [S, A] from the start."""
    values = (policy * policy_values(task, policy, discount)).sum(axis=1)
    return float(task.start @ values)


def greedy(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """[S, A] probabilities of the policy that takes the first of the best actions."""
    found: NDArray[np.float64] = np.eye(values.shape[1])[values.argmax(axis=1)]
    return found
