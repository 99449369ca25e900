"""The rows that every contender stores, told apart by a number, so that what comes back can be checked.

Lane e's observations are numbered ``e * LANE_NUMBERS + k``, k = 0, 1, …; the number stands in the observation itself.
An episode has STEPS steps and STEPS + 1 observations: k % (STEPS + 1) == STEPS is the one after the terminal step,
where no step begins. The reward of the step from k is ``k % 7``.
Needs NumPy alone, of any version: the workers of all peers import it.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np

LANES = 16
FRAGMENT_ROWS = 128
STEPS = 100
LANE_NUMBERS = 1_000_000  # 16 lanes stay below 2**24: float32 holds each number
GAMMA = 0.99
_POOL = 2_048


@dataclass(frozen=True)
class Width:
    """One kind of observation."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def row_bytes(self) -> int:
        """Bytes of one observation."""
        return int(np.dtype(self.dtype).itemsize * np.prod(self.shape))


WIDE = Width("wide", "uint8", (4_096,))
SMALL = Width("small", "float32", (4,))
WIDTHS = {width.name: width for width in (WIDE, SMALL)}


@functools.cache
def _noise(width: Width) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 255, (_POOL, *width.shape)).astype(width.dtype)


def observations(width: Width, number: np.ndarray) -> np.ndarray:
    """[..., *shape] observations of some numbers: noise that does not compress, with the number in front."""
    rows = _noise(width)[number % _POOL]
    if width.dtype == "uint8":
        rows[..., :8] = number.astype("<i8")[..., None].view(np.uint8)
    else:
        rows[..., 0] = number
    return rows


def numbers_of(width: Width, rows: np.ndarray) -> np.ndarray:
    """[B] the numbers in front of [B, *shape] observations."""
    rows = np.asarray(rows)
    if width.dtype == "uint8":
        return np.ascontiguousarray(rows[:, :8]).view("<i8")[:, 0]
    return rows[:, 0].astype(np.int64)


def lane_steps(first: int, count: int) -> np.ndarray:
    """[LANES, count] numbers of steps ``first`` to ``first + count`` of each lane, final observations left out."""
    step = np.arange(first, first + count)
    return step + step // STEPS + np.arange(LANES)[:, None] * LANE_NUMBERS


def transitions(width: Width, number: np.ndarray) -> dict[str, np.ndarray]:
    """Columns of steps in the layout of ``number``: observation, action, reward, terminated, next_observation."""
    k = number % LANE_NUMBERS
    return {
        "observation": observations(width, number),
        "action": (k % 4).astype(np.int64),
        "reward": (k % 7).astype(np.float32),
        "terminated": (k % (STEPS + 1) == STEPS - 1).astype(np.uint8),
        "next_observation": observations(width, number + 1),
    }


def fill_steps(rows: int) -> list[np.ndarray]:
    """[LANES, FRAGMENT_ROWS] step numbers, as many as fill a store of ``rows`` rows and a little more."""
    fragments = -(-rows // (LANES * FRAGMENT_ROWS)) + 1
    return [lane_steps(i * FRAGMENT_ROWS, FRAGMENT_ROWS) for i in range(fragments)]


def newest_observation(numbers: list[np.ndarray]) -> int:
    """Number, in its lane, of the observation after the newest of some steps."""
    return int(numbers[-1][0, -1]) + 1


def wrong_transitions(
    width: Width, n_steps: int, newest: int, observation, next_observation, action, reward, terminated
) -> list[str]:
    """What contradicts the rows in a batch of n-step transitions; [] = all of them are right.

    Args:
        newest: number, in its lane, of the newest observation: windows may end there, being shorter.
        reward: [B] the discounted sum of the window's rewards.
        terminated: [B] whether the window ended in the terminal step; then nobody looks at its next observation.
    """
    number, after = numbers_of(width, observation), numbers_of(width, next_observation)
    k = number % LANE_NUMBERS
    place = k % (STEPS + 1)
    left = STEPS - place  # steps up to the terminal one, itself included
    used = np.minimum(np.minimum(left, n_steps), newest - k)
    expected = sum(np.where(i < used, GAMMA**i * ((k + i) % 7), 0) for i in range(n_steps))
    ended = np.asarray(terminated).reshape(-1) != 0
    wrong = {
        "a start that is no step": place == STEPS,
        "action": np.asarray(action).reshape(-1) != k % 4,
        "reward": ~np.isclose(np.asarray(reward).reshape(-1), expected, rtol=1e-5),
        "terminated": ended != (left <= used),
        "next observation": ~ended & (after != number + used),
        "noise": (np.asarray(observation) != observations(width, number)).reshape(len(number), -1).any(axis=1),
    }
    return [f"{name}: {int(bad.sum())} of {len(bad)}" for name, bad in wrong.items() if bad.any()]
