"""Stable-Baselines3: ``ReplayBuffer`` and ``NStepReplayBuffer`` of 16 environments."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import torch
from gymnasium import spaces
from peers.rows import (
    FRAGMENT_ROWS,
    GAMMA,
    LANES,
    WIDTHS,
    Width,
    fill_steps,
    newest_observation,
    transitions,
    wrong_transitions,
)
from peers.worker import BATCH, Case, Contender
from stable_baselines3.common.buffers import NStepReplayBuffer, ReplayBuffer

N_STEPS = 3
INFOS: list[dict] = [{} for _ in range(LANES)]


def space_of(width: Width) -> spaces.Box:
    """The observation space."""
    if width.dtype == "uint8":
        return spaces.Box(0, 255, width.shape, np.uint8)
    return spaces.Box(-np.inf, np.inf, width.shape, np.float32)


def fragment(width: Width, number: np.ndarray) -> list[tuple]:
    """The arguments of ``add`` for each of T steps of all environments: SB3 inserts time-major."""
    columns = transitions(width, np.ascontiguousarray(number.T))
    names = ("observation", "next_observation", "action", "reward", "terminated")
    return [(*(columns[name][step] for name in names), INFOS) for step in range(number.shape[1])]


def prepare(rows: int, folder: Path) -> Contender:
    """Fill the buffers and check one batch of each."""
    torch.set_num_threads(1)
    cases, wrong = {}, {}
    for width in WIDTHS.values():
        arguments = (rows, space_of(width), spaces.Discrete(4), "cpu", LANES)
        buffers = {1: ReplayBuffer(*arguments)}
        if width.name == "wide":
            buffers[N_STEPS] = NStepReplayBuffer(*arguments, n_steps=N_STEPS, gamma=GAMMA)
        numbers = fill_steps(rows)
        for number in numbers:
            for step in fragment(width, number):
                for buffer in buffers.values():
                    buffer.add(*step)
        sources = itertools.cycle([fragment(width, number) for number in fill_steps(rows)[:4]])

        def insert(buffer=buffers[1], sources=sources) -> int:
            for step in next(sources):
                buffer.add(*step)
            return LANES * FRAGMENT_ROWS

        cases[f"{width.name} insert"] = Case(insert)
        for n, buffer in buffers.items():
            name = f"{width.name} uniform" + ("" if n == 1 else f" {n}")
            cases[name] = Case(lambda buffer=buffer: len(buffer.sample(BATCH).actions))
            batch = buffer.sample(BATCH)
            columns = batch.observations, batch.next_observations, batch.actions, batch.rewards, batch.dones
            wrong[name] = wrong_transitions(
                width, n, newest_observation(numbers), *(column.numpy() for column in columns)
            )
    return Contender(cases=cases, wrong=wrong)
