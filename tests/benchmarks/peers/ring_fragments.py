"""The same rows as Onibi's fragments: final observations in rows of their own, a head behind the newest row."""

from __future__ import annotations

import numpy as np
from peers.rows import FRAGMENT_ROWS, LANE_NUMBERS, LANES, STEPS, Width, observations

from onibi.platform.fragment import Fragment
from onibi.platform.spec import ROLE_FINAL, ROLE_STEP, ArraySpec, ReplaySpec


def ring_spec(width: Width) -> ReplaySpec:
    """All columns that a run of ``dqn`` stores."""
    return ReplaySpec(observation=(ArraySpec(name="observation", dtype=width.dtype, shape=width.shape),), actions=4)


def fragment_columns(width: Width, first: int) -> dict[str, np.ndarray]:
    """Columns [LANES, FRAGMENT_ROWS + 1, ...] of rows ``first`` and on of each lane, as ``peers.rows`` numbers them."""
    k = np.broadcast_to(np.arange(first, first + FRAGMENT_ROWS + 1), (LANES, FRAGMENT_ROWS + 1))
    place = k % (STEPS + 1)
    behind_head = np.arange(FRAGMENT_ROWS + 1) < FRAGMENT_ROWS
    step = (place < STEPS) & behind_head
    columns = empty_columns(width)
    columns["observation"][:] = observations(width, k + np.arange(LANES)[:, None] * LANE_NUMBERS)
    columns["action"][step] = k[step] % 4
    columns["reward"][step] = k[step] % 7
    columns["terminated"][:] = step & (place == STEPS - 1)
    columns["role"][:] = np.where((place == STEPS) & behind_head, ROLE_FINAL, ROLE_STEP)
    columns["episode_id"][:] = k // (STEPS + 1)
    columns["step"][:] = place
    return columns


def empty_columns(width: Width) -> dict[str, np.ndarray]:
    """Every ring column, zero."""
    spec = ring_spec(width)
    return {c.name: np.zeros((LANES, FRAGMENT_ROWS + 1, *c.shape), c.dtype) for c in spec.columns}


def fragment(width: Width, seed: int) -> Fragment:
    """One that follows itself and each other one: its head is its first observation, of an episode without end."""
    columns = empty_columns(width)
    observation = columns["observation"]
    observation[:] = np.random.default_rng(seed).integers(0, 255, observation.shape).astype(width.dtype)
    observation[:, 0] = np.arange(np.prod(observation[:, 0].shape)).reshape(observation[:, 0].shape) % 251
    observation[:, FRAGMENT_ROWS] = observation[:, 0]
    del columns["caption_id"]
    columns["caption_hash"] = np.zeros((LANES, FRAGMENT_ROWS + 1), np.uint64)
    return Fragment(
        actor=0,
        incarnation=0,
        sequence=0,
        rows_per_lane=np.full(LANES, FRAGMENT_ROWS, np.int32),
        columns=columns,
        env_steps=LANES * FRAGMENT_ROWS,
    )
