"""cpprb (Cython, one process): uniform, prioritized with n-step returns, and its memory-saving ``next_of``."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
from cpprb import PrioritizedReplayBuffer, ReplayBuffer
from peers.rows import (
    FRAGMENT_ROWS,
    GAMMA,
    LANES,
    STEPS,
    WIDTHS,
    Width,
    fill_steps,
    newest_observation,
    transitions,
    wrong_transitions,
)
from peers.worker import BATCH, Case, Contender

N_STEPS = 3


def environment(width: Width, *, next_observation: bool) -> dict:
    """cpprb's description of a row."""
    observation = {"shape": width.shape, "dtype": np.dtype(width.dtype)}
    return {
        "obs": observation,
        "act": {"dtype": np.int64},
        "rew": {"dtype": np.float32},
        "done": {"dtype": np.uint8},
        **({"next_obs": observation} if next_observation else {}),
    }


def named(columns: dict[str, np.ndarray], take) -> dict[str, np.ndarray]:
    """Our columns under cpprb's names, each run through ``take``."""
    names = {"obs": "observation", "act": "action", "rew": "reward", "done": "terminated"}
    names["next_obs"] = "next_observation"
    return {name: take(columns[ours]) for name, ours in names.items()}


def flat(column: np.ndarray) -> np.ndarray:
    """[LANES, T, ...] as [LANES × T, ...]."""
    return column.reshape(-1, *column.shape[2:])


def prepare(rows: int, folder: Path) -> Contender:
    """Fill the buffers and check one batch of each kind."""
    cases, wrong = {}, {}
    for width in WIDTHS.values():
        uniform = ReplayBuffer(rows, environment(width, next_observation=True))
        saving = ReplayBuffer(rows, environment(width, next_observation=False), next_of="obs")
        n_step = {"size": N_STEPS, "gamma": GAMMA, "rew": "rew", "next": "next_obs"}
        prioritized = PrioritizedReplayBuffer(rows, environment(width, next_observation=True), alpha=0.6, Nstep=n_step)
        numbers = fill_steps(rows)
        for number in numbers:
            columns = transitions(width, number)
            uniform.add(**named(columns, flat))
            for lane in range(LANES):  # a lane's steps follow each other: next_of needs that
                saving.add(**named(columns, lambda column, lane=lane: column[lane]))
                saving.on_episode_end()
        for lane in range(LANES):  # and n-step windows need whole episodes: an end in between would shorten them
            of_lane = named(transitions(width, np.concatenate([number[lane] for number in numbers])), np.asarray)
            for begin in range(0, len(of_lane["act"]), STEPS):
                prioritized.add(**{name: column[begin : begin + STEPS] for name, column in of_lane.items()})
                prioritized.on_episode_end()
        rng = np.random.default_rng(0)
        priorities = [rng.random(BATCH) for _ in range(64)]
        turn = itertools.count()

        def draw(buffer=uniform) -> int:
            buffer.sample(BATCH)
            return BATCH

        def draw_and_update(buffer=prioritized, priorities=priorities, turn=turn) -> int:
            drawn = buffer.sample(BATCH, beta=0.4)
            buffer.update_priorities(drawn["indexes"], priorities[next(turn) % len(priorities)])
            return BATCH

        sources = [transitions(width, number) for number in fill_steps(rows)[:4]]
        whole = itertools.cycle([named(columns, flat) for columns in sources])
        by_lane = itertools.cycle(
            [[named(columns, lambda c, lane=lane: c[lane]) for lane in range(LANES)] for columns in sources]
        )

        def insert(buffer=uniform, whole=whole) -> int:
            buffer.add(**next(whole))
            return LANES * FRAGMENT_ROWS

        def insert_by_lane(buffer=saving, by_lane=by_lane) -> int:
            for columns in next(by_lane):
                buffer.add(**columns)
                buffer.on_episode_end()
            return LANES * FRAGMENT_ROWS

        cases |= {
            f"{width.name} uniform": Case(draw),
            f"{width.name} uniform next_of": Case(lambda buffer=saving: len(buffer.sample(BATCH)["act"])),
            f"{width.name} prioritized 3": Case(draw_and_update),
            f"{width.name} insert": Case(insert),
            f"{width.name} insert next_of": Case(insert_by_lane),
        }
        checked = {"uniform": (uniform, 1), "uniform next_of": (saving, 1), "prioritized 3": (prioritized, N_STEPS)}
        for name, (buffer, n) in checked.items():
            batch = buffer.sample(BATCH)
            columns = (batch["obs"], batch["next_obs"], batch["act"], batch["rew"], batch["done"])
            wrong[f"{width.name} {name}"] = wrong_transitions(width, n, newest_observation(numbers), *columns)
    return Contender(cases=cases, wrong=wrong)
